// Conditional matrix multiplication, in: products of tokens with the rows that they name.
#pragma once

#include "vec.h"

namespace FASTFF_ISA {

// Tokens that share one pass over a row: four sums each have to fit the registers beside the operands.
constexpr int kDotTokens = kRegisters >= 32 ? 4 : 2;

// The four partial sums of one token, and their order, are the same however many tokens share the pass: a token's bits
// do not depend on its batch.
template <int M, class T>
inline void dot_pass(const T* const* x, const T* row, int64_t n, float* out) {
  Vec sum[M][4] = {};
  int64_t i = 0;
  for (; i + 2 * kGroup <= n; i += 2 * kGroup) {
    Group r0 = load(row + i), r1 = load(row + i + kGroup);
    for (int m = 0; m < M; m++) {
      Group x0 = load(x[m] + i), x1 = load(x[m] + i + kGroup);
      sum[m][0] += x0.a * r0.a;
      sum[m][1] += x0.b * r0.b;
      sum[m][2] += x1.a * r1.a;
      sum[m][3] += x1.b * r1.b;
    }
  }
  for (; i < n; i += kGroup) {
    int part = n - i < kGroup ? int(n - i) : kGroup;
    Group r = part == kGroup ? load(row + i) : load_part(row + i, part);
    for (int m = 0; m < M; m++) {
      Group v = part == kGroup ? load(x[m] + i) : load_part(x[m] + i, part);
      sum[m][0] += v.a * r.a;
      sum[m][1] += v.b * r.b;
    }
  }
  for (int m = 0; m < M; m++) out[m] = sum_lanes((sum[m][0] + sum[m][1]) + (sum[m][2] + sum[m][3]));
}

#if defined(__AVX512BF16__)
// Two products an element: the instruction adds pairs of neighbours.
template <int M>
inline void dot_pass(const BFloat16* const* x, const BFloat16* row, int64_t n, float* out) {
  __m512 sum[M][4] = {};
  int64_t i = 0;
  auto vector = [](const BFloat16* p) { return (__m512bh)_mm512_loadu_si512(p); };
  for (; i + 128 <= n; i += 128) {
    __m512bh r[4];
    for (int j = 0; j < 4; j++) r[j] = vector(row + i + 32 * j);
    for (int m = 0; m < M; m++)
      for (int j = 0; j < 4; j++) sum[m][j] = _mm512_dpbf16_ps(sum[m][j], vector(x[m] + i + 32 * j), r[j]);
  }
  for (; i < n; i += 32) {
    __mmask32 part = n - i < 32 ? (1u << (n - i)) - 1 : ~0u;
    __m512bh r = (__m512bh)_mm512_maskz_loadu_epi16(part, row + i);
    for (int m = 0; m < M; m++)
      sum[m][0] = _mm512_dpbf16_ps(sum[m][0], (__m512bh)_mm512_maskz_loadu_epi16(part, x[m] + i), r);
  }
  for (int m = 0; m < M; m++) out[m] = sum_lanes((Vec)((sum[m][0] + sum[m][1]) + (sum[m][2] + sum[m][3])));
}
#endif

// out[i] = x[i] . row for `tokens` vectors of n elements.
template <class T>
inline void dots(const T* const* x, int tokens, const T* row, int64_t n, float* out) {
  int i = 0;
  for (; i + kDotTokens <= tokens; i += kDotTokens) dot_pass<kDotTokens>(x + i, row, n, out + i);
  if (kDotTokens == 4 && i + 2 <= tokens) {
    dot_pass<2>(x + i, row, n, out + i);
    i += 2;
  }
  if (i < tokens) dot_pass<1>(x + i, row, n, out + i);
}

}  // namespace FASTFF_ISA
