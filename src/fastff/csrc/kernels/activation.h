// Activations and their derivatives, in the order of fastff.ops.ACTIVATIONS.
#pragma once

#include "../abi.h"
#include "pool.h"
#include "vec.h"

namespace FASTFF_ISA {
using namespace fastff;

inline Vec absolute(Vec v) { return (Vec)((Bits)v & 0x7fffffffu); }

template <int N>
inline Vec polynomial(Vec v, const float (&c)[N]) {  // c[0] + c[1] v + ...
  Vec sum = broadcast(c[N - 1]);
  for (int i = N - 2; i >= 0; i--) sum = sum * v + c[i];
  return sum;
}

// Within 1e-7 of e^v, relative; 0 below -87.3, infinity above 88.7, NaN of NaN.
inline Vec exponential(Vec v) {
  Vec x = select(v < -87.3f, broadcast(-87.3f), v);
  x = select(x > 88.7f, broadcast(88.7f), x);
  const float shift = 0x1.8p23f;  // adding it rounds to a whole number, which then stands in the low bits
  Vec shifted = x * 1.44269504f + shift;
  Vec n = shifted - shift;
  Vec r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  // (e^r - 1 - r) / r^2 for |r| < 0.35, fitted for the least largest relative error: 3e-9
  Vec p = polynomial(r, {0.5f, 0.1666666716f, 0.0416664593f, 0.0083333617f, 0.0013934486f, 0.0001985811f});
  p = p * (r * r) + r + 1.0f;
  // The power of two in two factors, of which neither overflows.
  Ints exponent = (Ints)shifted - (Ints)(Bits{} + 0x4b400000u);
  Ints half = exponent >> 1;
  Vec result = p * (Vec)((half + 127) << 23) * (Vec)((exponent - half + 127) << 23);
  result = select(v < -87.3f, Vec{}, result);
  return select(v > 88.7f, v * 0x1p127f, result);
}

// Activation and derivative.
struct Value {
  Vec value, slope;
};

template <Activation A>
inline Value activation(Vec z) {
  if constexpr (A == Activation::relu) {
    return {select(z < 0.0f, Vec{}, z), select(z <= 0.0f, Vec{}, broadcast(1.0f))};
  } else if constexpr (A == Activation::gelu) {
    Vec a = absolute(z) * 0.70710678f;
    Vec density = exponential(-a * a);  // e^(-z^2 / 2)
    Vec s = 1.0f / (0.5f * a + 1.0f);
    // erfc(a) e^(a^2) for a in [0, 15], fitted for the least largest relative error: 5e-8
    Vec tail = polynomial(s, {-1.63265895e-7f, 0.28208843f, 0.28236964f, 0.24307503f, 0.20293471f, -0.02739437f,
                              0.27935258f, -0.48842457f, 0.28520134f, -0.05920265f});
    tail = 0.5f * density * tail;
    Vec cdf = select(z < 0.0f, tail, 1.0f - tail);
    return {z * cdf, z * density * 0.39894228f + cdf};
  } else if constexpr (A == Activation::silu) {
    Vec s = 1.0f / (exponential(-z) + 1.0f);
    return {z * s, s * (z * (1.0f - s) + 1.0f)};
  } else if constexpr (A == Activation::tanh) {
    Vec a = absolute(z), q = z * z;
    Vec small = z + z * q * polynomial(q, {-0.33333328f, 0.13332717f, -0.05384315f, 0.02096097f, -0.00604479f});
    Vec large = 1.0f - 2.0f / (exponential(2.0f * a) + 1.0f);
    large = (Vec)((Bits)large | ((Bits)z & 0x80000000u));
    Vec value = select(a < 0.625f, small, large);
    return {value, 1.0f - value * value};
  } else {
    return {z, broadcast(1.0f)};
  }
}

template <Activation A>
inline void activate_all(const float* z, int64_t n, float* value, float* slope) {
  for (int64_t i = 0; i < n; i += kLanes) {
    int part = n - i < kLanes ? int(n - i) : kLanes;
    Vec v = {};
    if (part == kLanes)
      v = load_as<Vec>(z + i);
    else
      memcpy(&v, z + i, part * sizeof(float));
    Value r = activation<A>(v);
    memcpy(value + i, &r.value, part * sizeof(float));
    if (slope) memcpy(slope + i, &r.slope, part * sizeof(float));
  }
}

// n values; `value` may be `z`, `slope` may be null.
inline void activate(Activation a, const float* z, int64_t n, float* value, float* slope) {
  switch (a) {
    case Activation::relu: return activate_all<Activation::relu>(z, n, value, slope);
    case Activation::gelu: return activate_all<Activation::gelu>(z, n, value, slope);
    case Activation::silu: return activate_all<Activation::silu>(z, n, value, slope);
    case Activation::tanh: return activate_all<Activation::tanh>(z, n, value, slope);
    case Activation::identity: return activate_all<Activation::identity>(z, n, value, slope);
  }
}

// Gated neurons: of each token's 2 W values z the W values activation(z_w) z_(W + w), and their slopes after both.
inline void activate_gated(Activation a, const float* z, int64_t tokens, int64_t W, float* value, float* slope) {
  Scratch<float> active(W);
  for (int64_t t = 0; t < tokens; t++, z += 2 * W, value += W) {
    activate(a, z, W, active, slope);
    if (slope)
      for (int64_t w = 0; w < W; w++) {
        slope[w] *= z[W + w];
        slope[W + w] = active[w];
      }
    for (int64_t w = 0; w < W; w++) value[w] = active[w] * z[W + w];
    if (slope) slope += 2 * W;
  }
}

}  // namespace FASTFF_ISA
