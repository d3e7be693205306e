// Few rows of many for each token: products with them, and sums of them.
//
// Row by row, nearly every one of many tokens would fetch its rows from the L3 cache. So the columns are gone through in
// blocks: a block of all rows is copied to lie together and fits the L2 cache, a token's columns stay in registers while
// its rows pass, and rows and tokens are read from afar once.
#pragma once

#include "columns.h"
#include "pool.h"
#include "vec.h"

namespace FASTFF_ISA {

constexpr int64_t kRowsInCache = 1 << 20;  // bytes of a block of columns of all rows

// Whether a block of so many rows fits.
template <class T>
inline bool fits_blocks(int64_t rows) {
  return rows * kGroup * int64_t(sizeof(T)) <= kRowsInCache;
}

// Whether rows are read so often that it is worth it to copy them.
inline bool worth_packing(int64_t reads, int64_t rows) { return reads >= 3 * rows; }

constexpr int64_t kRowsAhead = 16, kRowsTogether = 256;  // tokens, or rows

// Up to G groups, of which `width` elements are there and the rest zeros.
template <int G, class T>
inline void read(const T* p, int64_t width, Group (&to)[G]) {
  for (int g = 0; g < G; g++) {
    int64_t left = width - g * kGroup;
    to[g] = left >= kGroup ? load(p + g * kGroup) : left > 0 ? load_part(p + g * kGroup, int(left)) : Group{};
  }
}

// G groups of columns from `begin` on, of all of `number` rows of n, to lie together.
template <int G, class T>
inline void pack(const T* rows, int64_t number, int64_t n, int64_t begin, T* packed, const Pool& pool) {
  int64_t width = least(G * kGroup, n - begin);
  for_each(pool, divide_up(number, kRowsTogether), [&](int64_t task) {
    for (int64_t r = task * kRowsTogether; r < least((task + 1) * kRowsTogether, number); r++) {
      prefetch_row(rows + least(r + kRowsAhead, number - 1) * n + begin, width * sizeof(T));
      Group part[G];
      read(rows + r * n + begin, width, part);
      for (int g = 0; g < G; g++) store(packed + (r * G + g) * kGroup, part[g]);
    }
  });
}

// Products of tokens with their rows. Few tokens read the rows where they are, in the same order of additions.
template <class T>
class SparseProducts {
 public:
  // Of x[0 .. tokens), n columns each, with rows (number, n).
  SparseProducts(const T* const* x, int64_t tokens, const T* rows, int64_t number, int64_t n)
      : x_(x), tokens_(tokens), rows_(rows), number_(number), n_(n) {}

  // out[t * each + i] = x[t] . rows[row[t * each + i]]
  void run(const int32_t* row, int64_t each, float* out, const Pool& pool) const {
    memset(out, 0, tokens_ * each * sizeof(float));
    if (fits_blocks<T>(2 * number_))
      run<2>(row, each, out, pool);
    else
      run<1>(row, each, out, pool);
  }

 private:
  template <int G>
  void run(const int32_t* row, int64_t each, float* out, const Pool& pool) const {
    constexpr int64_t kColumns = G * kGroup;
    if (!worth_packing(tokens_ * each, number_)) {
      for_each(pool, tokens_, [&](int64_t t) {
        for (int64_t i = 0; t + 1 < tokens_ && i < each; i++)
          prefetch_row(rows_ + row[(t + 1) * each + i] * n_, n_ * sizeof(T));
        for (int64_t begin = 0; begin < n_; begin += kColumns)
          columns<G>(t, begin, rows_ + begin, n_, row + t * each, each, out + t * each);
      });
      return;
    }
    Scratch<T> packed(number_ * kColumns);
    for (int64_t begin = 0; begin < n_; begin += kColumns) {
      int64_t bytes = width<G>(begin) * sizeof(T);
      pack<G>(rows_, number_, n_, begin, (T*)packed, pool);
      for_each(pool, divide_up(tokens_, kRowsTogether), [&](int64_t task) {
        for (int64_t t = task * kRowsTogether; t < least((task + 1) * kRowsTogether, tokens_); t++) {
          prefetch_row(x_[least(t + kRowsAhead, tokens_ - 1)] + begin, bytes);
          columns<G>(t, begin, (const T*)packed, kColumns, row + t * each, each, out + t * each);
        }
      });
    }
  }

  template <int G>
  int64_t width(int64_t begin) const {
    return least(G * kGroup, n_ - begin);
  }

  // Adds what columns from `begin` on give to the products of token t; `rows` are these columns, `stride` apart.
  template <int G>
  void columns(int64_t t, int64_t begin, const T* rows, int64_t stride, const int32_t* row, int64_t each,
               float* out) const {
    Group x[G];
    read(x_[t] + begin, width<G>(begin), x);
    bool whole = stride == G * kGroup || width<G>(begin) == G * kGroup;
    for (int64_t i = 0; i < each; i += kLanes) {
      int count = int(least(kLanes, each - i));
      if (whole)
        add<G>(x, count, out + i, [&](int j, Group(&r)[G]) {
          const T* p = rows + row[i + (j < count ? j : 0)] * stride;
#pragma GCC unroll 2
          for (int g = 0; g < G; g++) r[g] = load(p + g * kGroup);
        });
      else
        add<G>(x, count, out + i, [&](int j, Group(&r)[G]) {
          read(rows + row[i + (j < count ? j : 0)] * stride, width<G>(begin), r);
        });
    }
  }

  template <int G, class Load>
  static void add(const Group (&x)[G], int count, float* out, const Load& load_row) {
    Vec sum[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++) {
      Group r[G];
      load_row(i, r);
      Vec a = {}, b = {};
#pragma GCC unroll 2
      for (int g = 0; g < G; g++) {
        a += x[g].a * r[g].a;
        b += x[g].b * r[g].b;
      }
      sum[i] = a + b;
    }
    Vec total = sum_lanes(sum);
    for (int i = 0; i < count; i++) out[i] += total[i];
  }

  const T* const* x_;
  int64_t tokens_;
  const T* rows_;
  int64_t number_, n_;
};

// y[t] = sum over i of factor[t * each + i] rows[row[t * each + i]]; rows (number, n), y (tokens, n). A column's sum is
// taken in the order of i.
template <class T, class Y>
void sparse_sums(const T* rows, int64_t number, int64_t n, const int32_t* row, const float* factor, int64_t tokens,
                 int64_t each, Y* y, const Pool& pool) {
  Scratch<T> packed(number * kGroup);
  for (int64_t begin = 0; begin < n; begin += kGroup) {
    pack<1>(rows, number, n, begin, (T*)packed, pool);
    for_each(pool, divide_up(tokens, kRowsTogether), [&](int64_t task) {
      for (int64_t t = task * kRowsTogether; t < least((task + 1) * kRowsTogether, tokens); t++) {
        Columns<1> sum{};
        for (int64_t i = t * each; i < (t + 1) * each; i++) sum.add(packed + row[i] * kGroup, factor[i]);
        Y* target = row_of(y, t, n) + begin;
        if (begin + kGroup <= n)
          sum.write(target);
        else
          store_part(target, sum.sum[0], int(n - begin));
      }
    });
  }
}

}  // namespace FASTFF_ISA
