// The best pairs of keys for many queries, a query a lane: as fastff/ops/product_keys/reference.py, the definition.
//
// A query is compared with the n keys of either half, n F multiply-adds; the k best of each half, in order, make the k
// best pairs. The best so far are sorted, and each score sinks to its place by k exchanges without a branch: of sixteen
// queries there is nearly always one for which a branch would be mispredicted.
#pragma once

#include <math.h>

#include "pool.h"
#include "vec.h"

namespace FASTFF_ISA {

// The `size` best of what was inserted, of each lane: scores descending and their numbers, equal scores as they came.
// Where fewer were inserted (a NaN never is) the last scores are -inf, of number 0.
struct Best {
  Vec* score;
  Ints* number;
  int64_t size;

  void clear() {
    for (int64_t p = 0; p < size; p++) score[p] = broadcast(-INFINITY), number[p] = Ints{};
  }

  // `from`: how many of those inserted before are known to be no worse, in every lane.
  void insert(Vec s, Ints i, int64_t from) {
    for (int64_t p = from; p < size; p++) {
      Vec other = score[p];
      Ints other_number = number[p], better = s > other;
      score[p] = larger(s, other);
      number[p] = better ? i : other_number;
      s = smaller(other, s);
      i = better ? other_number : i;
    }
  }
};

// Products of keys [first, first + count) with a half of the queries, which is (half, lanes).
template <int count>
inline void compare_keys(const float* keys, int64_t first, int64_t half, const float* query, Best& best) {
  const float* key = keys + first * half;
  Vec sum[count] = {};
  for (int64_t d = 0; d < half; d++)
#pragma GCC unroll 4
    for (int i = 0; i < count; i++) sum[i] += key[i * half + d] * load_as<Vec>(query + d * kLanes);
  Ints better = {};
#pragma GCC unroll 4
  for (int i = 0; i < count; i++) better |= sum[i] > best.score[best.size - 1];
  if (!any(better)) return;
  for (int i = 0; i < count; i++) best.insert(sum[i], Ints{} + int32_t(first + i), 0);
}

inline void product_keys(const ProductKeys& a, const Pool& pool) {
  constexpr int kAtOnce = 4;  // keys
  constexpr int64_t kBlocks = 8;
  int64_t half = a.F / 2, k = a.k, size = least(k, a.n);
  for_each(pool, divide_up(a.Q, kBlocks * kLanes), [&](int64_t part) {
    Scratch<float> queries(half * kLanes);
    Scratch<Vec> scores(2 * size + k);
    Scratch<Ints> numbers(2 * size + k);
    Best halves[] = {{scores, numbers, size}, {scores + size, numbers + size, size}};
    Best pairs{scores + 2 * size, numbers + 2 * size, k};
    memset(queries, 0, half * kLanes * sizeof(float));  // lanes without a query
    int64_t end = least((part + 1) * kBlocks * kLanes, a.Q);
    for (int64_t q = part * kBlocks * kLanes; q < end; q += kLanes) {
      int64_t lanes = least(kLanes, end - q);
      for (int h = 0; h < 2; h++) {
        for (int64_t lane = 0; lane < lanes; lane++)
          for (int64_t d = 0; d < half; d++) queries[d * kLanes + lane] = a.query[(q + lane) * a.F + h * half + d];
        const float* keys = a.keys + h * a.n * half;
        halves[h].clear();
        int64_t i = 0;
        for (; i + kAtOnce <= a.n; i += kAtOnce) compare_keys<kAtOnce>(keys, i, half, queries, halves[h]);
        for (; i < a.n; i++) compare_keys<1>(keys, i, half, queries, halves[h]);
      }
      // Pair (i, j) is no better than the (i + 1)(j + 1) - 1 pairs of as good or better keys, which came before.
      pairs.clear();
      for (int64_t i = 0; i < size; i++)
        for (int64_t j = 0; j < size && (i + 1) * (j + 1) <= k; j++)
          pairs.insert(halves[0].score[i] + halves[1].score[j],
                       halves[0].number[i] * int32_t(a.n) + halves[1].number[j], (i + 1) * (j + 1) - 1);
      for (int64_t lane = 0; lane < lanes; lane++)
        for (int64_t p = 0; p < k; p++) {
          a.score[(q + lane) * k + p] = pairs.score[p][lane];
          a.pair[(q + lane) * k + p] = pairs.number[p][lane];
        }
    }
  });
}

// to += factor * from, n of each.
inline void add_scaled(float* to, const float* from, float factor, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Vec sum = load_as<Vec>(to + i) + factor * load_as<Vec>(from + i);
    memcpy(to + i, &sum, sizeof sum);
  }
  for (; i < n; i++) to[i] += factor * from[i];
}

// Of the chosen pairs alone: each adds either key to a half of its query's gradient and that half to the key's. Keys have
// sums of their own in each of at most 64 parts of the queries, added up in one order whatever the number of threads.
inline void product_keys_backward(const ProductKeysBackward& a, const Pool& pool) {
  constexpr int64_t kParts = 64, kQueries = 128;
  int64_t half = a.F / 2, keys = 2 * a.n * half, size = most(kQueries, divide_up(a.Q, kParts));
  int64_t parts = divide_up(a.Q, size);
  Scratch<float> sums(a.grad_keys ? parts * keys : 0);
  for_each(pool, parts, [&](int64_t part) {
    float* sum = sums + part * keys;
    if (a.grad_keys) memset(sum, 0, keys * sizeof(float));
    for (int64_t q = part * size; q < least((part + 1) * size, a.Q); q++) {
      const float* query = a.query + q * a.F;
      float* grad_query = a.grad_query ? a.grad_query + q * a.F : nullptr;
      if (grad_query) memset(grad_query, 0, a.F * sizeof(float));
      for (int64_t p = q * a.k; p < (q + 1) * a.k; p++) {
        uint32_t pair = uint32_t(a.pair[p]), n = uint32_t(a.n);
        int64_t first = pair / n * half, second = (n + pair % n) * half;
        if (grad_query) {
          add_scaled(grad_query, a.keys + first, a.grad[p], half);
          add_scaled(grad_query + half, a.keys + second, a.grad[p], half);
        }
        if (a.grad_keys) {
          add_scaled(sum + first, query, a.grad[p], half);
          add_scaled(sum + second, query + half, a.grad[p], half);
        }
      }
    }
  });
  if (!a.grad_keys) return;
  memset(a.grad_keys, 0, keys * sizeof(float));
  for (int64_t part = 0; part < parts; part++) add_scaled(a.grad_keys, sums + part * keys, 1.0f, keys);
}

}  // namespace FASTFF_ISA
