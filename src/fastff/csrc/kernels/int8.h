// Products of bytes: rows of weights are unsigned with a zero point of 128, tokens and amplitudes are signed in
// [-127, 127], sums are exact in int32, so that no order of them shows in the bits.
#pragma once

#include "pool.h"
#include "vec.h"

namespace FASTFF_ISA {

constexpr int kColumnBlock = 64;  // columns of an output row that lie together; COLUMN_BLOCK in Python
constexpr int kWalkers = 16;      // products of rows with tokens that are summed over lanes together

// What 4 neighbouring products add to each sum of 32 bits. Instructions that multiply unsigned by signed bytes take the
// rows as they are (the zero point is taken off afterwards); where pairs of products must fit 16 bits, rows are
// centred first, and take the sign of the other factor.
#if defined(__AVX512VNNI__)
#define FASTFF_BYTES 64
constexpr bool kCentred = false;
typedef __m512i Packed;
inline Packed load_packed(const void* p) { return _mm512_loadu_si512(p); }
inline Packed dot4(Packed sum, Packed rows, Packed factors) { return _mm512_dpbusd_epi32(sum, rows, factors); }
inline Packed broadcast4(int32_t four) { return _mm512_set1_epi32(four); }
inline Packed low8(Packed a, Packed b) { return _mm512_unpacklo_epi8(a, b); }
inline Packed high8(Packed a, Packed b) { return _mm512_unpackhi_epi8(a, b); }
inline Packed low16(Packed a, Packed b) { return _mm512_unpacklo_epi16(a, b); }
inline Packed high16(Packed a, Packed b) { return _mm512_unpackhi_epi16(a, b); }
#elif defined(__AVX2__)
#define FASTFF_BYTES 32
typedef __m256i Packed;
inline Packed load_packed(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline Packed broadcast4(int32_t four) { return _mm256_set1_epi32(four); }
#if defined(__AVXVNNI__)
constexpr bool kCentred = false;
inline Packed dot4(Packed sum, Packed rows, Packed factors) { return _mm256_dpbusd_avx_epi32(sum, rows, factors); }
#else
constexpr bool kCentred = true;
inline Packed dot4(Packed sum, Packed rows, Packed factors) {
  Packed centred = _mm256_sign_epi8(_mm256_xor_si256(rows, _mm256_set1_epi8(-128)), factors);
  Packed pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(factors), centred);  // at most 2 * 127 * 127
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif
inline Packed low8(Packed a, Packed b) { return _mm256_unpacklo_epi8(a, b); }
inline Packed high8(Packed a, Packed b) { return _mm256_unpackhi_epi8(a, b); }
inline Packed low16(Packed a, Packed b) { return _mm256_unpacklo_epi16(a, b); }
inline Packed high16(Packed a, Packed b) { return _mm256_unpackhi_epi16(a, b); }
#else
constexpr bool kCentred = true;
#endif

#if defined(FASTFF_BYTES)
// out[i] = the sum over the lanes of sum[i].
inline void sum_lanes(const Packed (&sum)[kWalkers], int32_t* out) {
#if FASTFF_BYTES == 64
  Packed t[8], u[4];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++)
    t[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(sum[2 * i], sum[2 * i + 1]),
                            _mm512_unpackhi_epi32(sum[2 * i], sum[2 * i + 1]));
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
    u[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(t[2 * i], t[2 * i + 1]), _mm512_unpackhi_epi64(t[2 * i], t[2 * i + 1]));
  auto fold = [](Packed a, Packed b) {  // neighbouring quarters
    return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
  };
  _mm512_storeu_si512(out, fold(fold(u[0], u[1]), fold(u[2], u[3])));
#else
  for (int i = 0; i < kWalkers; i += 4) {
    Packed h = _mm256_hadd_epi32(_mm256_hadd_epi32(sum[i], sum[i + 1]), _mm256_hadd_epi32(sum[i + 2], sum[i + 3]));
    _mm_storeu_si128((__m128i*)(out + i), _mm_add_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1)));
  }
#endif
}
#endif

// out[i] = rows[row[i]] . x[i], of n bytes each (a multiple of 64), for kWalkers pairs. The zero point is still in, if
// not kCentred.
inline void dots(const uint8_t* rows, const int32_t* row, const int8_t* const* x, int64_t n, int32_t* out) {
#if defined(FASTFF_BYTES)
  Packed sum[kWalkers];
  if (n == FASTFF_BYTES) {
#pragma GCC unroll 16
    for (int i = 0; i < kWalkers; i++)
      sum[i] = dot4(Packed{}, load_packed(rows + int64_t(row[i]) * n), load_packed(x[i]));
  } else {
#pragma GCC unroll 4
    for (int i = 0; i < kWalkers; i += 4) {
      const uint8_t *r0 = rows + row[i] * n, *r1 = rows + row[i + 1] * n, *r2 = rows + row[i + 2] * n,
                    *r3 = rows + row[i + 3] * n;
      const int8_t *x0 = x[i], *x1 = x[i + 1], *x2 = x[i + 2], *x3 = x[i + 3];
      Packed a = {}, b = {}, c = {}, d = {};
      for (int64_t j = 0; j < n; j += FASTFF_BYTES) {
        a = dot4(a, load_packed(r0 + j), load_packed(x0 + j));
        b = dot4(b, load_packed(r1 + j), load_packed(x1 + j));
        c = dot4(c, load_packed(r2 + j), load_packed(x2 + j));
        d = dot4(d, load_packed(r3 + j), load_packed(x3 + j));
      }
      sum[i] = a, sum[i + 1] = b, sum[i + 2] = c, sum[i + 3] = d;
    }
  }
  sum_lanes(sum, out);
#else
  for (int i = 0; i < kWalkers; i++) {
    const uint8_t* r = rows + row[i] * n;
    int32_t sum = 0;
    for (int64_t j = 0; j < n; j++) sum += (int32_t(r[j]) - 128) * x[i][j];
    out[i] = sum;
  }
#endif
}

// out[4 j + i] = row[i] . x[j], of n bytes each (a multiple of 64): four rows that four tokens share. The zero point is
// still in, if not kCentred.
inline void dots_together(const uint8_t* const (&row)[4], const int8_t* const (&x)[4], int64_t n, int32_t* out) {
#if defined(FASTFF_BYTES)
  Packed sum[kWalkers] = {};
  for (int64_t b = 0; b < n; b += FASTFF_BYTES) {
    Packed own[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) own[i] = load_packed(row[i] + b);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      Packed token = load_packed(x[j] + b);
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) sum[4 * j + i] = dot4(sum[4 * j + i], own[i], token);
    }
  }
  sum_lanes(sum, out);
#else
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 4; j++) {
      int32_t sum = 0;
      for (int64_t b = 0; b < n; b++) sum += (int32_t(row[i][b]) - 128) * x[j][b];
      out[4 * j + i] = sum;
    }
#endif
}

// to[column][j] = row[j][column] for kColumnBlock columns of four rows: the layout that `add_shared` takes.
inline void interleave(const uint8_t* const (&row)[4], uint8_t* to) {
  typedef uint8_t Bytes __attribute__((vector_size(16)));
  typedef uint16_t Pairs __attribute__((vector_size(16)));
  auto low = [](Bytes a, Bytes b) {
    return (Pairs)__builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  };
  auto high = [](Bytes a, Bytes b) {
    return (Pairs)__builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  };
  auto low_pairs = [](Pairs a, Pairs b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11); };
  auto high_pairs = [](Pairs a, Pairs b) { return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15); };
  for (int c = 0; c < kColumnBlock; c += 16) {
    Bytes r[4];
    for (int j = 0; j < 4; j++) r[j] = load_as<Bytes>(row[j] + c);
    Pairs low01 = low(r[0], r[1]), high01 = high(r[0], r[1]), low23 = low(r[2], r[3]), high23 = high(r[2], r[3]);
    Pairs four[4] = {low_pairs(low01, low23), high_pairs(low01, low23), low_pairs(high01, high23),
                     high_pairs(high01, high23)};
    memcpy(to + 4 * c, four, sizeof four);
  }
}

// Sums of kColumnBlock columns, in their order.
struct ColumnSums {
  Ints part[kColumnBlock / kLanes];
};

// Of n terms (a multiple of 4) factor * rows[row]; `total` is the sum of the factors.
inline ColumnSums add_terms(const uint8_t* rows, const int32_t* row, const int8_t* factor, int64_t n, int32_t total) {
  ColumnSums result;
#if defined(FASTFF_BYTES)
  for (int half = 0; half < kColumnBlock / FASTFF_BYTES; half++) {
    Packed sum[4] = {};
    const uint8_t* first = rows + half * FASTFF_BYTES;
    for (int64_t i = 0; i < n; i += 4) {
      auto at = [&](int j) { return load_packed(first + int64_t(row[i + j]) * kColumnBlock); };
      int32_t four;
      memcpy(&four, factor + i, 4);
      Packed f = broadcast4(four), r0 = at(0), r1 = at(1), r2 = at(2), r3 = at(3);
      Packed low01 = low8(r0, r1), high01 = high8(r0, r1), low23 = low8(r2, r3), high23 = high8(r2, r3);
      sum[0] = dot4(sum[0], low16(low01, low23), f);
      sum[1] = dot4(sum[1], high16(low01, low23), f);
      sum[2] = dot4(sum[2], low16(high01, high23), f);
      sum[3] = dot4(sum[3], high16(high01, high23), f);
    }
    // Of each sixteen columns a sum has four.
    Packed ordered[4];
#if FASTFF_BYTES == 64
    Packed even[2] = {_mm512_shuffle_i32x4(sum[0], sum[1], 0x44), _mm512_shuffle_i32x4(sum[2], sum[3], 0x44)};
    Packed odd[2] = {_mm512_shuffle_i32x4(sum[0], sum[1], 0xee), _mm512_shuffle_i32x4(sum[2], sum[3], 0xee)};
    ordered[0] = _mm512_shuffle_i32x4(even[0], even[1], 0x88);
    ordered[1] = _mm512_shuffle_i32x4(even[0], even[1], 0xdd);
    ordered[2] = _mm512_shuffle_i32x4(odd[0], odd[1], 0x88);
    ordered[3] = _mm512_shuffle_i32x4(odd[0], odd[1], 0xdd);
#else
    ordered[0] = _mm256_permute2x128_si256(sum[0], sum[1], 0x20);
    ordered[1] = _mm256_permute2x128_si256(sum[2], sum[3], 0x20);
    ordered[2] = _mm256_permute2x128_si256(sum[0], sum[1], 0x31);
    ordered[3] = _mm256_permute2x128_si256(sum[2], sum[3], 0x31);
#endif
    memcpy((char*)&result + half * sizeof ordered, ordered, sizeof ordered);
  }
#else
  (void)total;
  int32_t sum[kColumnBlock] = {};
  for (int64_t i = 0; i < n; i++) {
    const uint8_t* r = rows + int64_t(row[i]) * kColumnBlock;
    for (int c = 0; c < kColumnBlock; c++) sum[c] += factor[i] * (int32_t(r[c]) - 128);
  }
  memcpy(&result, sum, sizeof sum);
#endif
  if (!kCentred)
    for (Ints& part : result.part) part -= 128 * total;
  return result;
}

// Tokens that share a pass over rows that all have: their sums have to fit the registers, or tiles.
#if FASTFF_BYTES == 64
constexpr int kTogether = 4;
#else
constexpr int kTogether = 1;
#endif

// Adds to the sums of kTogether tokens n terms (a multiple of 4), as `add_shared` does.
inline void add_shared_together(ColumnSums (&sums)[kTogether], const uint8_t* rows,
                                const int8_t* const (&factor)[kTogether], int64_t n) {
#if defined(FASTFF_BYTES)
  constexpr int kParts = 4 * kColumnBlock / FASTFF_BYTES;
  Packed part[kTogether][kParts];
  memcpy(part, &sums, sizeof part);
  for (int64_t i = 0; i < n; i += 4) {
    Packed f[kTogether];
#pragma GCC unroll 4
    for (int t = 0; t < kTogether; t++) {
      int32_t four;
      memcpy(&four, factor[t] + i, 4);
      f[t] = broadcast4(four);
    }
#pragma GCC unroll 8
    for (int p = 0; p < kParts; p++) {
      Packed row = load_packed(rows + i * kColumnBlock + p * FASTFF_BYTES);
#pragma GCC unroll 4
      for (int t = 0; t < kTogether; t++) part[t][p] = dot4(part[t][p], row, f[t]);
    }
  }
  memcpy(&sums, part, sizeof part);
#else
  int32_t sum[kColumnBlock];
  memcpy(sum, &sums, sizeof sum);
  for (int64_t i = 0; i < n; i++)
    for (int c = 0; c < kColumnBlock; c++)
      sum[c] += factor[0][i] * (int32_t(rows[i / 4 * 4 * kColumnBlock + 4 * c + i % 4]) - 128);
  memcpy(&sums, sum, sizeof sum);
#endif
}

#if defined(__AMX_INT8__)
constexpr int kSharedTokens = 16;  // rows of a tile

// While one lives, a thread's tiles are of sixteen rows of 64 bytes.
class Tiles {
 public:
  Tiles() {
    alignas(64) struct {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shape;
    _tile_loadconfig(&shape);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// The first terms, a multiple of 64, of sixteen tokens; returns how many. Four tiles of sums, sixteen columns each.
inline int64_t add_shared_tiles(ColumnSums* sums, const uint8_t* rows, const int8_t* factor, int64_t stride, int64_t n) {
  int32_t* sum = (int32_t*)sums;
  constexpr int64_t kSums = sizeof(ColumnSums), kFours = 4 * kColumnBlock;  // bytes from a row of a tile to the next
  int64_t whole = n / 64 * 64;
  if (!whole) return 0;
  _tile_loadd(0, sum, kSums);
  _tile_loadd(1, sum + 16, kSums);
  _tile_loadd(2, sum + 32, kSums);
  _tile_loadd(3, sum + 48, kSums);
  for (int64_t i = 0; i < whole; i += 64) {
    const uint8_t* r = rows + i * kColumnBlock;
    _tile_loadd(4, factor + i, stride);
    _tile_loadd(5, r, kFours);
    _tile_loadd(6, r + 64, kFours);
    _tile_dpbsud(0, 4, 5);
    _tile_dpbsud(1, 4, 6);
    _tile_loadd(5, r + 128, kFours);
    _tile_loadd(6, r + 192, kFours);
    _tile_dpbsud(2, 4, 5);
    _tile_dpbsud(3, 4, 6);
  }
  _tile_stored(0, sum, kSums);
  _tile_stored(1, sum + 16, kSums);
  _tile_stored(2, sum + 32, kSums);
  _tile_stored(3, sum + 48, kSums);
  return whole;
}
#else
constexpr int kSharedTokens = kTogether;
struct Tiles {
  Tiles() {}
};
#endif

// Adds to the sums of `tokens`, at most kSharedTokens, n terms (a multiple of 4) whose rows all tokens have: rows
// [i / 4][column][i % 4], so that nothing is interleaved here, and no sum is over lanes; the zero point stays in, if not
// kCentred. A token's factors begin `stride` after those of the one before it.
inline void add_shared(ColumnSums* sums, int tokens, const uint8_t* rows, const int8_t* factor, int64_t stride,
                       int64_t n) {
  int64_t done = 0;
#if defined(__AMX_INT8__)
  if (tokens == kSharedTokens) done = add_shared_tiles(sums, rows, factor, stride, n);
#endif
  if (done == n) return;
  for (int t = 0; t < tokens; t += kTogether) {
    ColumnSums own[kTogether];
    const int8_t* factors[kTogether];
    int count = tokens - t < kTogether ? tokens - t : kTogether;
    for (int i = 0; i < kTogether; i++) {
      int token = t + (i < count ? i : 0);
      own[i] = sums[token];
      factors[i] = factor + token * stride + done;
    }
    add_shared_together(own, rows + done * kColumnBlock, factors, n - done);
    for (int i = 0; i < count; i++) sums[t + i] = own[i];
  }
}

// Elements in their own order, not in groups.
inline Vec load_plain(const float* p) { return load_as<Vec>(p); }
inline Vec load_plain(const Float16* p) { return widen(p); }
inline Vec load_plain(const BFloat16* p) { return (Vec)(__builtin_convertvector(load_as<Halves>(p), Bits) << 16); }
inline void store_plain(float* p, Vec v) { memcpy(p, &v, sizeof v); }
inline void store_plain(Float16* p, Vec v) { narrow(p, v); }
inline void store_plain(BFloat16* p, Vec v) {
  Halves h = __builtin_convertvector(round_bfloat16(v) >> 16, Halves);
  memcpy(p, &h, sizeof h);
}

// A product that is rounded before anything is added, as the definition has it: what is then rounded to a whole number
// must not depend on how a compiler contracts.
inline Vec rounded(Vec product) {
#if defined(__x86_64__)
  asm("" : "+x"(product));
#elif defined(__aarch64__)
  asm("" : "+w"(product));
#endif
  return product;
}

struct Quantised {
  float scale;    // value = scale * byte
  int32_t total;  // of the bytes
};

// Of all lanes.
inline uint32_t largest_lane(Bits v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_epu32((__m512i)v);
#else
  uint32_t largest = 0;
  for (int lane = 0; lane < kLanes; lane++) largest = v[lane] > largest ? v[lane] : largest;
  return largest;
#endif
}
inline int32_t sum_lanes(Ints v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32((__m512i)v);
#else
  int32_t sum = 0;
  for (int lane = 0; lane < kLanes; lane++) sum += v[lane];
  return sum;
#endif
}

// n values to signed bytes, to the nearest, of which the largest is 127; zeros from n to `size`, a multiple of 64. A value
// that is no number or infinite makes the scale such.
template <class T>
inline Quantised quantise(const T* x, int64_t n, int8_t* q, int64_t size) {
  typedef int8_t Narrow __attribute__((vector_size(kLanes)));
  T padded[kLanes] = {};  // the last, incomplete vector
  int64_t whole = n / kLanes * kLanes;
  memcpy(padded, x + whole, (n - whole) * sizeof(T));
  auto magnitude = [](const T* p) { return (Bits)load_plain(p) & 0x7fffffffu; };
  auto larger = [](Bits a, Bits b) { return select((Ints)(a > b), a, b); };
  // Of magnitudes, as whole numbers: what is no number is the largest.
  Bits most[4] = {magnitude(padded)};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int e = 0; e < 4; e++) most[e] = larger(most[e], magnitude(x + i + e * kLanes));
  for (; i < whole; i += kLanes) most[0] = larger(most[0], magnitude(x + i));
  uint32_t bits = largest_lane(larger(larger(most[0], most[1]), larger(most[2], most[3])));
  float largest;
  memcpy(&largest, &bits, sizeof largest);
  if (bits >= 0x7f800000u) {  // no number or infinite: so will be whatever the scale multiplies
    memset(q, 0, size);
    return {largest / 127.0f, 0};
  }
  float factor = 127.0f / (largest > 1e-30f ? largest : 1e-30f);
  Ints total = {};
  auto put = [&](const T* p, int8_t* to) {
    const float shift = 0x1.8p23f;  // adding it rounds to a whole number, which then stands in the low bits
    Ints number = (Ints)(rounded(load_plain(p) * factor) + shift) - 0x4b400000;
    total += number;
    Narrow bytes = __builtin_convertvector(number, Narrow);
    memcpy(to, &bytes, sizeof bytes);
  };
  for (i = 0; i < whole; i += kLanes) put(x + i, q + i);
  if (whole < size) memset(q + whole, 0, size - whole);
  if (whole < n) put(padded, q + whole);
  return {largest / 127.0f, sum_lanes(total)};
}

}  // namespace FASTFF_ISA
