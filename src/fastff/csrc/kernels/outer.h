// Conditional matrix multiplication, outer: gradients of rows, each the sum over the tokens of its node or leaf.
//
// The tokens come sorted, so those of a row lie together on every level. A task owns some columns of all rows and
// goes through the tokens once: each gradient is summed in one order whatever the number of threads, in float32, and
// written once. A few tokens at a time pass all levels, so that their columns are read from the L1 cache.
#pragma once

#include "columns.h"
#include "pool.h"

namespace FASTFF_ISA {

// The tokens of one tree, or the choices of all tokens among experts: entries, sorted by `code` (leaf or expert).
struct Entries {
  int64_t n;
  const int32_t* order;  // entry at each place
  const int64_t* code;   // of the entry at each place
  int64_t per_token;     // entries of one token: entry / per_token is the token
};

// One row for every value of code >> shift: a level of nodes, or one neuron of each leaf.
struct Slot {
  const float* factor;  // of entry e: factor[e * stride]; null: 1
  int64_t stride;
  int shift;
  int64_t first;       // node or leaf of code >> shift: first + (code >> shift >> side)
  int side;            // 1: a node has a row for each side, which the last bit of code >> shift names
  int64_t rows;        // of a node or leaf
  int64_t row;         // among them, of this slot
  const int64_t* map;  // row of a node or leaf among those that the gradient holds; null: itself
  void* grad;          // null: not asked for

  int64_t target(int64_t code) const {
    int64_t key = code >> shift, block = first + (key >> side);
    return (map ? map[block] : block) * rows + row + (side ? key & 1 : 0);
  }
  float factor_of(int64_t entry) const { return factor ? factor[entry * stride] : 1.0f; }
  bool last(const Entries& e, int64_t place) const {
    return place + 1 == e.n || (e.code[place] ^ e.code[place + 1]) >> shift;
  }
};

// Columns and tokens that are gone through together: their part of x fits the L1 cache.
constexpr int kOuterGroups = kWide, kOuterTokens = 16;

// Columns [begin, end) of the gradients of all slots; x has n columns. If large they are written past the caches.
template <bool large, class T>
inline void outer_columns(const Entries& e, const Slot* slots, int count, const T* x, int64_t n, int64_t begin,
                          int64_t end) {
  for_columns<kOuterGroups>(begin, end, [&](auto columns, int64_t c) {
    using Columns = decltype(columns);
    Scratch<Columns> carried(count);  // sums of the rows whose tokens go on
    columns.zero();
    for (int s = 0; s < count; s++) carried[s] = columns;
    const T *source[kOuterTokens], *ahead[kOuterTokens];
    auto find = [&](int64_t first, const T** found) {
      for (int64_t i = 0; i < kOuterTokens && first + i < e.n; i++)
        found[i] = x + e.order[first + i] / e.per_token * n + c;
    };
    find(0, ahead);
    for (int64_t first = 0; first < e.n; first += kOuterTokens) {
      int size = int(least(kOuterTokens, e.n - first));
      memcpy(source, ahead, sizeof source);
      find(first + kOuterTokens, ahead);
      for (int64_t i = 0; i < least(kOuterTokens, e.n - first - kOuterTokens); i++)
        prefetch_row(ahead[i], Columns::kColumns * sizeof(T));
      for (int s = 0; s < count; s++) {
        const Slot& slot = slots[s];
        columns = carried[s];
        for (int i = 0; i < size; i++) {
          columns.add(source[i], slot.factor_of(e.order[first + i]));
          if (slot.last(e, first + i)) {
            T* target = (T*)slot.grad + slot.target(e.code[first + i]) * n + c;
            if constexpr (large)
              columns.write_past_caches(target);
            else
              columns.write(target);
            columns.zero();
          }
        }
        carried[s] = columns;
      }
    }
  });
  if (large) stream_end();
}

// Gradients of one column: the factors' own sums.
template <class T>
inline void outer_bias(const Entries& e, const Slot& slot) {
  double sum = 0.0;
  for (int64_t place = 0; place < e.n; place++) {
    sum += slot.factor_of(e.order[place]);
    if (!slot.last(e, place)) continue;
    ((T*)slot.grad)[slot.target(e.code[place])] = from_float<T>(float(sum));
    sum = 0.0;
  }
}

// Rows of gradients that no token has: f(first, number) for the runs of those among `count` that were not touched.
template <class F>
inline void for_untouched(const bool* touched, int64_t count, const Pool& pool, const F& f) {
  constexpr int64_t kRows = 256;
  for_each(pool, divide_up(count, kRows), [&](int64_t task) {
    int64_t stop = least((task + 1) * kRows, count);
    for (int64_t i = task * kRows, first; i < stop; i++) {
      for (first = i; i < stop && !touched[i]; i++) {
      }
      if (i > first) f(first, i - first);
    }
  });
}

// Gradients of so many bytes leave the caches before they are read.
constexpr int64_t kLarge = 64 << 20;

template <class T>
inline void zero_rows(void* grad, int64_t first, int64_t rows, int64_t n, bool large = false) {
  if (!grad) return;
  T *p = (T*)grad + first * n, *end = p + rows * n;
  if (large && (uintptr_t)p % 64 == 0) {
    for (; p + kGroup <= end; p += kGroup) stream(p, Group{});
    stream_end();
  }
  memset(p, 0, (end - p) * sizeof(T));
}

// A weight's gradient, or several that sum the rows of the same x.
template <class T>
struct Outer {
  const Slot* slots;
  int count;
  const T* x;
  int64_t columns;
  bool large = false;  // whether the gradients are too large to stay in a cache until they are read
};

template <class T>
inline void outer(const Entries& e, const Outer<T>* sums, int count, const Pool& pool) {
  int64_t width = kOuterGroups * kGroup, total = 0;
  for (int i = 0; i < count; i++) total += sums[i].count ? divide_up(sums[i].columns, width) : 0;
  if (total < 2 * pool.threads) width = kGroup;
  for (int i = 0; i < count; i++) {
    const Outer<T>& sum = sums[i];
    if (!sum.count) continue;
    for_each(pool, divide_up(sum.columns, width), [&](int64_t task) {
      int64_t begin = task * width, end = least(sum.columns, begin + width);
      auto columns = sum.large ? outer_columns<true, T> : outer_columns<false, T>;
      columns(e, sum.slots, sum.count, sum.x, sum.columns, begin, end);
    });
  }
}

}  // namespace FASTFF_ISA
