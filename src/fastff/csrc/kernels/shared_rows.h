// What every token passes in int8, whatever it decides: products with rows that all have, and LayerNorm.
#pragma once

#include "int8.h"
#include "pool.h"

namespace FASTFF_ISA {

inline int64_t whole_lines(int64_t n) { return divide_up(n, kColumnBlock) * kColumnBlock; }

// Products of at most kSharedTokens tokens, `columns` bytes each, with `rows` rows, whole blocks: (tokens, rows).
inline void shared_products(const uint8_t* weight, const float* scale, int64_t rows, const int8_t* q, int64_t columns,
                            const Quantised* x, int tokens, float* value) {
  for (int64_t r = 0; r < rows; r += kColumnBlock) {
    alignas(64) ColumnSums sums[kSharedTokens] = {};
    add_shared(sums, tokens, weight + r * columns, q, columns, columns);
    for (int i = 0; i < tokens; i++) {
      int32_t zero = kCentred ? 0 : 128 * x[i].total;
      for (int64_t e = 0; e < kColumnBlock; e += kLanes)
        store_plain(value + i * rows + r + e, __builtin_convertvector(sums[i].part[e / kLanes] - zero, Vec) *
                                                  (x[i].scale * load_as<Vec>(scale + r + e)));
    }
  }
}

// LayerNorm without parameters, in place.
inline void normalise(float* v, int64_t n) {
  auto sum = [&](auto&& f) {
    Vec total = {};
    float rest = 0;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) total += f(load_as<Vec>(v + i));
    for (; i < n; i++) rest += f(broadcast(v[i]))[0];
    return sum_lanes(total) + rest;
  };
  float mean = sum([](Vec x) { return x; }) / float(n);
  float variance = sum([&](Vec x) { return (x - mean) * (x - mean); }) / float(n);
  float factor = 1.0f / __builtin_sqrtf(variance + 1e-5f);
  for (int64_t i = 0; i < n; i++) v[i] = (v[i] - mean) * factor;
}

}  // namespace FASTFF_ISA
