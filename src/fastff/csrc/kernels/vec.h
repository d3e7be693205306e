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

// a > b ? a : b and a < b ? a : b, where a or b is NaN b.
#if defined(__AVX512F__)
inline Vec larger(Vec a, Vec b) { return (Vec)_mm512_max_ps((__m512)a, (__m512)b); }
inline Vec smaller(Vec a, Vec b) { return (Vec)_mm512_min_ps((__m512)a, (__m512)b); }
inline bool any(Ints where) { return _mm512_test_epi32_mask((__m512i)where, (__m512i)where); }
#else
#if defined(__AVX2__)
inline Vec larger(Vec a, Vec b) { return (Vec)_mm256_max_ps((__m256)a, (__m256)b); }
inline Vec smaller(Vec a, Vec b) { return (Vec)_mm256_min_ps((__m256)a, (__m256)b); }
#else
inline Vec larger(Vec a, Vec b) { return select(a > b, a, b); }
inline Vec smaller(Vec a, Vec b) { return select(a < b, a, b); }
#endif
inline bool any(Ints where) {
  uint64_t parts[sizeof where / 8], all = 0;
  memcpy(parts, &where, sizeof where);
  for (uint64_t part : parts) all |= part;
  return all;
}
#endif

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

// Writes past the caches, to memory that is not read again soon; p is aligned to cache lines. `stream_end` comes last.
template <class T>
inline void stream(T* p, Group g) {
#if defined(__x86_64__)
  alignas(64) T group[kGroup];
  store(group, g);
  for (size_t at = 0; at < sizeof group;) {
    char* to = (char*)p + at;
    const char* from = (const char*)group + at;
#if defined(__AVX512F__)
    if (sizeof group % 64 == 0) {
      _mm512_stream_si512((__m512i*)to, _mm512_load_si512(from));
      at += 64;
      continue;
    }
#endif
    _mm_stream_si128((__m128i*)to, _mm_load_si128((const __m128i*)from));
    at += 16;
  }
#else
  store(p, g);
#endif
}
inline void stream_end() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
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

// sum_lanes of as many vectors as there are lanes, in the same order of additions.
inline Vec sum_lanes(const Vec (&v)[kLanes]) {
  Vec fours[4];  // vector i: what is left of i, i + 4, ..., four lanes each
#if defined(__AVX512F__)
  auto halves = [](Vec a, Vec b) {
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  };
  auto quarters = [](Vec a, Vec b) {
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  };
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) fours[i] = quarters(halves(v[i], v[i + 4]), halves(v[i + 8], v[i + 12]));
  auto pairs = [](Vec a, Vec b) {
    return __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
           __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  };
  Vec low = pairs(fours[0], fours[1]), high = pairs(fours[2], fours[3]);
  return __builtin_shufflevector(low, high, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30) +
         __builtin_shufflevector(low, high, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
#elif defined(__AVX2__)
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
    fours[i] = __builtin_shufflevector(v[i], v[i + 4], 0, 1, 2, 3, 8, 9, 10, 11) +
               __builtin_shufflevector(v[i], v[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  auto pairs = [](Vec a, Vec b) {
    return __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13) +
           __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
  };
  Vec low = pairs(fours[0], fours[1]), high = pairs(fours[2], fours[3]);
  return __builtin_shufflevector(low, high, 0, 2, 8, 10, 4, 6, 12, 14) +
         __builtin_shufflevector(low, high, 1, 3, 9, 11, 5, 7, 13, 15);
#else
  for (int i = 0; i < 4; i++) fours[i] = v[i];
  auto pairs = [](Vec a, Vec b) {
    return __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
  };
  Vec low = pairs(fours[0], fours[1]), high = pairs(fours[2], fours[3]);
  return __builtin_shufflevector(low, high, 0, 2, 4, 6) + __builtin_shufflevector(low, high, 1, 3, 5, 7);
#endif
}

}  // namespace FASTFF_ISA
