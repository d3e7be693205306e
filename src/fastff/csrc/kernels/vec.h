// Vectors of float, written once with the compiler's vector extensions and compiled for each instruction set.
//
// Elements are read in groups of two vectors. For bfloat16 the even elements of a group land in the first vector and
// the odd ones in the second, which costs a shift and a mask; every use is elementwise or a sum, so the order within
// a group does not matter as long as loads and stores agree.
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace FASTFF_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kLanes = 8, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kRegisters = 32;
#else
constexpr int kLanes = 4, kRegisters = 16;
#endif
constexpr int kGroup = 2 * kLanes;

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Bits __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class V, class P>
inline V load_as(const P* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline Vec broadcast(float value) { return value - Vec{}; }
inline Bits select(Ints where, Bits yes, Bits no) { return ((Bits)where & yes) | (~(Bits)where & no); }
inline Vec select(Ints where, Vec yes, Vec no) { return (Vec)select(where, (Bits)yes, (Bits)no); }

struct Group {
  Vec a, b;
};

inline Group load(const float* p) { return {load_as<Vec>(p), load_as<Vec>(p + kLanes)}; }
inline void store(float* p, Group g) {
  memcpy(p, &g.a, sizeof g.a);
  memcpy(p + kLanes, &g.b, sizeof g.b);
}

inline Group load(const BFloat16* p) {
  Bits pairs = load_as<Bits>(p);
  return {(Vec)(pairs << 16), (Vec)(pairs & 0xffff0000u)};
}
// To nearest, ties to even; a NaN stays one.
inline Bits round_bfloat16(Vec v) {
  Bits bits = (Bits)v;
  Bits rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return select(v == v, rounded, bits | 0x400000u);
}
inline void store(BFloat16* p, Group g) {
  Bits pairs = (round_bfloat16(g.a) >> 16) | (round_bfloat16(g.b) & 0xffff0000u);
  memcpy(p, &pairs, sizeof pairs);
}

#if defined(__AVX512F__)
inline Vec widen(const Float16* p) { return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
inline void narrow(Float16* p, Vec v) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(__F16C__)
inline Vec widen(const Float16* p) { return (Vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
inline void narrow(Float16* p, Vec v) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#else
inline Vec widen(const Float16* p) {
  Bits h = __builtin_convertvector(load_as<Halves>(p), Bits);
  Bits sign = (h & 0x8000u) << 16, magnitude = (h & 0x7fffu) << 13;
  Bits finite = (Bits)((Vec)magnitude * 0x1p112f);  // rebias by a product, which is exact for subnormals too
  return (Vec)(sign | select((Ints)(magnitude >= (0x7c00u << 13)), magnitude | 0x7f800000u, finite));
}
inline void narrow(Float16* p, Vec v) {
  Bits sign = (Bits)v & 0x80000000u, magnitude = (Bits)v ^ sign;
  // Below the smallest normal number adding 0.5 leaves the subnormal's bits, rounded, at the end of the mantissa.
  Bits subnormal = (Bits)((Vec)magnitude + 0.5f) - 0x3f000000u;
  Bits normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
  Bits special = select((Ints)(magnitude > 0x7f800000u), Bits{} + 0x7e00u, Bits{} + 0x7c00u);
  Bits finite = select((Ints)(magnitude < (113u << 23)), subnormal, normal);
  Bits half = select((Ints)(magnitude >= 0x477ff000u), special, finite) | (sign >> 16);
  Halves narrowed = __builtin_convertvector(half, Halves);
  memcpy(p, &narrowed, sizeof narrowed);
}
#endif
inline Group load(const Float16* p) { return {widen(p), widen(p + kLanes)}; }
inline void store(Float16* p, Group g) {
  narrow(p, g.a);
  narrow(p + kLanes, g.b);
}

// The last, incomplete group of a row: n of kGroup elements, the rest zeros.
template <class T>
inline Group load_part(const T* p, int n) {
  T padded[kGroup];
  memset(padded, 0, sizeof padded);
  memcpy(padded, p, n * sizeof(T));
  return load(padded);
}
template <class T>
inline void store_part(T* p, Group g, int n) {
  T padded[kGroup];
  store(padded, g);
  memcpy(p, padded, n * sizeof(T));
}

// A sum that is not rounded yet, kept as the vectors of a group stand: whatever type the summands have, reading gives
// back what was written. Rows of them are padded to whole groups.
struct Sum {
  float value;
};
inline Group load(const Sum* p) { return load(&p->value); }
inline void store(Sum* p, Group g) { store(&p->value, g); }
inline Group load_part(const Sum* p, int) { return load(p); }
inline void store_part(Sum* p, Group g, int) { store(p, g); }
inline int64_t padded(int64_t n) { return (n + kGroup - 1) / kGroup * kGroup; }

template <class T>
inline float to_float(T value) {
  return load_part(&value, 1).a[0];
}
inline float to_float(float value) { return value; }
template <class T>
inline T from_float(float value) {
  T result;
  store_part(&result, Group{broadcast(value), Vec{}}, 1);
  return result;
}

// A sum over lanes in one fixed order: halves are added until one lane is left.
typedef float Vec4 __attribute__((vector_size(16)));
typedef float Vec8 __attribute__((vector_size(32)));
typedef float Vec16 __attribute__((vector_size(64)));
inline Vec4 fold(Vec4 v) { return v; }
inline Vec4 fold(Vec8 v) {
  return __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
}
inline Vec4 fold(Vec16 v) {
  return fold(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
              __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
}
inline float sum_lanes(Vec v) {
  Vec4 four = fold(v);
  four += __builtin_shufflevector(four, four, 2, 3, 0, 1);
  return four[0] + four[1];
}

}  // namespace FASTFF_ISA
