// Order of tokens by key, so that tokens of one node, leaf or expert lie together.
#pragma once

#include <string.h>

#include "pool.h"

namespace FASTFF_ISA {

// Writes to order[0..n) the indices 0..n-1 sorted by key, equal keys in their own order; keys are in [0, keys).
// A radix sort: its cost does not depend on the number of keys beyond the passes over the digits.
inline void sort_by_key(const int64_t* key, int64_t stride, int64_t n, int64_t keys, int32_t* order) {
  constexpr int kDigit = 11;
  Scratch<int32_t> other(n);
  int32_t* from = order;
  int32_t* to = other;
  for (int64_t i = 0; i < n; i++) from[i] = int32_t(i);
  for (int shift = 0; (keys - 1) >> shift > 0; shift += kDigit) {
    int64_t start[(1 << kDigit) + 1] = {};
    auto digit = [&](int32_t i) { return (key[i * stride] >> shift) & ((1 << kDigit) - 1); };
    for (int64_t i = 0; i < n; i++) start[digit(from[i]) + 1]++;
    for (int d = 0; d < 1 << kDigit; d++) start[d + 1] += start[d];
    for (int64_t i = 0; i < n; i++) to[start[digit(from[i])]++] = from[i];
    int32_t* swap = from;
    from = to;
    to = swap;
  }
  if (from != order) memcpy(order, from, n * sizeof(int32_t));
}

// Where the runs of at most `longest` neighbours of one key begin in order[0..n), and n after the last; returns how many.
inline int64_t split_runs(const int64_t* key, const int32_t* order, int64_t n, int64_t longest, int64_t* start) {
  int64_t runs = 0;
  for (int64_t i = 0; i < n; i++)
    if (i == 0 || key[order[i]] != key[order[i - 1]] || i - start[runs - 1] == longest) start[runs++] = i;
  start[runs] = n;
  return runs;
}

}  // namespace FASTFF_ISA
