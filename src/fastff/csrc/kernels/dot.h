// Conditional matrix multiplication, in: products of tokens with the rows that they name.
#pragma once

#include "vec.h"

namespace FASTFF_ISA {

// Tokens that share one pass over a row: four sums each have to fit the registers beside the operands.
constexpr int kDotTokens = kRegisters >= 32 ? 4 : 2;

// How one type multiplies: load() what a step reads of a vector, part() the last of it, and add the products to sums.
// Every step fills the same four sums in the same order however many tokens share the pass, so a token's bits do not
// depend on its batch.
template <class T>
struct Products {
  static constexpr int kStep = 2 * kGroup, kPart = kGroup;
  struct Operand {
    Group first, second;
  };
  static Operand load(const T* p) { return {FASTFF_ISA::load(p), FASTFF_ISA::load(p + kGroup)}; }
  static Group part(const T* p, int n) { return n == kGroup ? FASTFF_ISA::load(p) : load_part(p, n); }
  static void add(Vec (&sum)[4], const Operand& x, const Operand& r) {
    sum[0] += x.first.a * r.first.a;
    sum[1] += x.first.b * r.first.b;
    sum[2] += x.second.a * r.second.a;
    sum[3] += x.second.b * r.second.b;
  }
  static void add_part(Vec (&sum)[4], Group x, Group r) {
    sum[0] += x.a * r.a;
    sum[1] += x.b * r.b;
  }
};

#if defined(__AVX512BF16__)
// An instruction that multiplies twice as many elements and adds pairs of neighbours.
template <>
struct Products<BFloat16> {
  static constexpr int kStep = 128, kPart = 32;
  struct Operand {
    __m512bh v[4];
  };
  static __m512bh vector(const BFloat16* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static Operand load(const BFloat16* p) { return {{vector(p), vector(p + 32), vector(p + 64), vector(p + 96)}}; }
  static __m512bh part(const BFloat16* p, int n) {
    return (__m512bh)_mm512_maskz_loadu_epi16(n == 32 ? ~0u : (1u << n) - 1, p);
  }
  static void add(Vec (&sum)[4], const Operand& x, const Operand& r) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) sum[j] = (Vec)_mm512_dpbf16_ps((__m512)sum[j], x.v[j], r.v[j]);
  }
  static void add_part(Vec (&sum)[4], __m512bh x, __m512bh r) {
    sum[0] = (Vec)_mm512_dpbf16_ps((__m512)sum[0], x, r);
  }
};
#endif

// The products of M tokens with a row, not summed over lanes yet.
template <int M, class T>
inline void products(const T* const* token, const T* row, int64_t n, Vec (&out)[M]) {
  using P = Products<T>;
  Vec sum[M][4] = {};
  int64_t i = 0;
  for (; i + P::kStep <= n; i += P::kStep) {
    auto r = P::load(row + i);
#pragma GCC unroll 4
    for (int m = 0; m < M; m++) P::add(sum[m], P::load(token[m] + i), r);
  }
  for (; i < n; i += P::kPart) {
    int part = n - i < P::kPart ? int(n - i) : P::kPart;
    auto r = P::part(row + i, part);
#pragma GCC unroll 4
    for (int m = 0; m < M; m++) P::add_part(sum[m], P::part(token[m] + i, part), r);
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; m++) out[m] = (sum[m][0] + sum[m][1]) + (sum[m][2] + sum[m][3]);
}

template <int M, class T>
inline void dot_pass(const T* const* x, const T* row, int64_t n, float* out) {
  const T* token[M];
#pragma GCC unroll 4
  for (int m = 0; m < M; m++) token[m] = x[m];
  Vec sum[M];
  products(token, row, n, sum);
#pragma GCC unroll 4
  for (int m = 0; m < M; m++) out[m] = sum_lanes(sum[m]);
}

// x[i] . row[i] for up to kLanes pairs, summed over lanes together.
template <class T>
inline Vec pair_dots(const T* const* x, const T* const* row, int count, int64_t n) {
  Vec sum[kLanes] = {};
  for (int i = 0; i < count; i++) {
    Vec one[1];
    products(x + i, row[i], n, one);
    sum[i] = one[0];
  }
  return sum_lanes(sum);
}

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
