// Products of tokens with rows, each token with some of them: a dense product of which few entries are wanted.
//
// Row by row, nearly every product of many tokens would fetch its row, or its token, from the L3 cache. So the columns are
// gone through in blocks: a block of all rows is copied to lie together and fits the L2 cache, a token's columns stay in
// registers while its rows pass, and rows and tokens are read from afar once. Few tokens read the rows where they are, in
// the same order of additions.
#pragma once

#include "pool.h"
#include "vec.h"

namespace FASTFF_ISA {

constexpr int64_t kRowsInCache = 1 << 20;  // bytes of a block of columns of all rows

// Whether a block of so many rows fits.
template <class T>
inline bool fits_blocks(int64_t rows) {
  return rows * kGroup * int64_t(sizeof(T)) <= kRowsInCache;
}

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
  static constexpr int64_t kAhead = 16, kTogether = 256;  // tokens, or rows

  template <int G>
  void run(const int32_t* row, int64_t each, float* out, const Pool& pool) const {
    constexpr int64_t kColumns = G * kGroup;
    if (tokens_ * each < 4 * number_) {
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
      for_each(pool, divide_up(number_, kTogether), [&](int64_t task) {
        for (int64_t r = task * kTogether; r < least((task + 1) * kTogether, number_); r++) {
          prefetch_row(rows_ + least(r + kAhead, number_ - 1) * n_ + begin, bytes);
          Group part[G];
          read(rows_ + r * n_ + begin, width<G>(begin), part);
          for (int g = 0; g < G; g++) store(packed + r * kColumns + g * kGroup, part[g]);
        }
      });
      for_each(pool, divide_up(tokens_, kTogether), [&](int64_t task) {
        for (int64_t t = task * kTogether; t < least((task + 1) * kTogether, tokens_); t++) {
          prefetch_row(x_[least(t + kAhead, tokens_ - 1)] + begin, bytes);
          columns<G>(t, begin, (const T*)packed, kColumns, row + t * each, each, out + t * each);
        }
      });
    }
  }

  template <int G>
  int64_t width(int64_t begin) const {
    return least(G * kGroup, n_ - begin);
  }

  template <int G>
  static void read(const T* p, int64_t width, Group (&to)[G]) {
    for (int g = 0; g < G; g++) {
      int64_t left = width - g * kGroup;
      to[g] = left >= kGroup ? load(p + g * kGroup) : left > 0 ? load_part(p + g * kGroup, int(left)) : Group{};
    }
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

}  // namespace FASTFF_ISA
