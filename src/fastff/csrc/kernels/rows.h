// AdamW of some rows of a parameter, and what they missed while they waited. The definition, with its formulas and what
// stands behind them, is fastff/optim/rows.py.
#pragma once

#include <math.h>
#include <string.h>

#include "pool.h"

namespace FASTFF_ISA {

constexpr int64_t kPart = 128;  // elements of a row between which more of the next one is asked for: no queue fills
constexpr double kNarrow = 3e-4;  // NARROW_VARIANCE in Python

// Gauss quadrature of the measure that has these moments, 0 to 5, with 2 or 3 nodes y, whose number it returns.
inline int gauss(const double* moment, double* amount, double* y) {
  double total = moment[0], scale = 1 / fmax(total, 1e-200), mean = moment[1] * scale, square = mean * mean;
  double r2 = moment[2] * scale, r3 = moment[3] * scale, r4 = moment[4] * scale, r5 = moment[5] * scale;
  double variance = fmax(r2 - square, 1e-10), deviation = sqrt(variance);
  double skewness = (r3 - mean * (3 * r2 - 2 * square)) / (variance * deviation), sum = 0;
  int n = variance < kNarrow ? 2 : 3;
  if (n == 2) {
    double half = skewness / 2, radius = sqrt(half * half + 1);
    for (int i = 0; i < n; i++) {
      y[i] = i ? half + radius : half - radius;
      amount[i] = 1 / (1 + y[i] * y[i]);
    }
  } else {
    double c4 = (r4 - 4 * mean * r3 + square * (6 * r2 - 3 * square)) / (variance * variance);
    double c5 = r5 - 5 * mean * r4 + square * (10 * r3 - mean * (10 * r2 - 4 * square));
    double b = fmax(c4 - skewness * skewness - 1, 1e-6);
    double a = (c5 / (variance * variance * deviation) - 2 * skewness * c4 + skewness * skewness * skewness) / b;
    double third = (a + skewness) / 3, slope = a * skewness - 1 - b, radius = sqrt(third * third - slope / 3);
    double constant = third * (slope - 2 * third * third) + a;
    double angle = acos(fmin(fmax(constant / (-2 * radius * radius * radius), -1), 1)) / 3;
    for (int i = 0; i < n; i++) {
      y[i] = third + 2 * radius * cos(angle - i * (2 * M_PI / 3));
      double second = y[i] * y[i] - skewness * y[i] - 1;
      amount[i] = 1 / (1 + y[i] * y[i] + second * second / b);
    }
  }
  for (int i = 0; i < n; i++) sum += amount[i];
  for (int i = 0; i < n; i++) {
    amount[i] *= total / sum;
    y[i] = mean + deviation * y[i];
  }
  return n;
}

// How a row makes up for what it missed: p = keep p - m sum of amount / (sqrt(v) + offset); m and v fade.
struct MakeUp {
  int n = 0;  // summands: 0 where the weights missed nothing
  float keep, amount[3], offset[3], fade_m, fade_v;

  MakeUp(const AdamWRows& a, int64_t r) {
    double missed[9], amounts[3], y[3];
    for (int i = 0; i < 9; i++) missed[i] = a.pending[i * a.R + r];
    double fade = exp(-missed[1]);
    fade_m = float(missed[0] * fade);
    fade_v = float(fade * fade);
    keep = float(1 - missed[2]);
    if (a.behind[r]) n = gauss(missed + 3, amounts, y);
    for (int i = 0; i < n; i++) {
      amount[i] = float(amounts[i]);
      offset[i] = float(fmax(exp(y[i]) * a.eps, 1e-30));  // where no gradient ever came: not 0 / 0
    }
  }
};

template <int n>
inline void bring(const MakeUp& u, float* __restrict p, const float* __restrict m, const float* __restrict v,
                  int64_t size) {
  for (int64_t i = 0; i < size; i++) {
    float root = sqrtf(v[i]), factor = 0;
    for (int j = 0; j < n; j++) factor += u.amount[j] / (root + u.offset[j]);
    p[i] = u.keep * p[i] - factor * m[i];
  }
}

struct Step {
  float shrink, rate, gain_m, beta_v, gain_v, scale, eps;

  explicit Step(const AdamWRows& a)
      : shrink(float(1 - a.lr * a.weight_decay)), rate(float(a.lr / (1 - pow(a.beta1, a.step)))),
        gain_m(float(1 - a.beta1)), beta_v(float(a.beta2)), gain_v(float(1 - a.beta2)),
        scale(float(1 / sqrt(1 - pow(a.beta2, a.step)))), eps(float(a.eps)) {}

  void operator()(const MakeUp& u, float* __restrict p, float* __restrict m, float* __restrict v,
                  const float* __restrict g, int64_t size) const {
    for (int64_t i = 0; i < size; i++) {
      float faded = u.fade_m * m[i];
      m[i] = faded + gain_m * (g[i] - faded);
      v[i] = beta_v * (u.fade_v * v[i]) + gain_v * g[i] * g[i];
      p[i] = shrink * p[i] - rate * m[i] / (sqrtf(v[i]) * scale + eps);
    }
  }
};

// Notes for rows [begin, end) that they miss this step.
inline void miss(const AdamWRows& a, int64_t begin, int64_t end) {
  double decay = a.lr * a.weight_decay, correction = sqrt(1 - pow(a.beta2, a.step)), ratio = a.beta1 / sqrt(a.beta2);
  double lag = -log(a.beta2) / 2, shift = log(correction), amount = a.lr * correction / (1 - pow(a.beta1, a.step));
#ifndef __clang__
#pragma GCC ivdep
#endif
  for (int64_t r = begin; r < end; r++) {
    double* q = a.pending + r;
    q[0] *= ratio;
    q[a.R] += lag;
    q[2 * a.R] += decay * (1 - q[2 * a.R]);
    double y = q[a.R] + shift, power = q[0] * amount;
    for (int i = 3; i < 9; i++, power *= y) q[i * a.R] = q[i * a.R] * (1 - decay) + power;
  }
  memset(a.behind + begin, 1, end - begin);
}

// Brings the weights of rows up to date and, if there is a step, makes it: these rows alone, while the others miss it,
// or all, the others with a gradient of zeros.
inline void adamw_rows(const AdamWRows& a, const Pool& pool) {
  struct Row {
    int64_t r;
    const float* grad;
  };
  int64_t n = a.all ? a.R : a.U, E = a.E;
  Scratch<Row> rows(n);
  Scratch<float> zeros(E);
  memset(zeros, 0, E * sizeof(float));
  for (int64_t r = 0; a.all && r < n; r++) rows[r] = {r, zeros};
  for (int64_t u = 0; u < a.U; u++) rows[a.all ? a.rows[u] : u] = {a.rows[u], a.step ? a.grad + u * E : nullptr};

  Step step(a);
  for_each(pool, n, [&](int64_t i) {
    auto [r, grad] = rows[i];
    auto [next, next_grad] = rows[least(i + pool.threads, n - 1)];
    MakeUp u(a, r);
    for (int q = 0; q < 9; q++) __builtin_prefetch(a.pending + q * a.R + next);
    for (int64_t j = 0; j < E; j += kPart) {
      int64_t size = least(kPart, E - j), at = r * E + j, ahead = next * E + j, bytes = size * sizeof(float);
      float *p = a.weight + at, *m = a.mean + at, *v = a.square + at;
      prefetch_row(a.weight + ahead, bytes);
      prefetch_row(a.mean + ahead, bytes);
      prefetch_row(a.square + ahead, bytes);
      if (grad) prefetch_row(next_grad + j, bytes);
      if (u.n == 2) bring<2>(u, p, m, v, size);
      if (u.n == 3) bring<3>(u, p, m, v, size);
      if (grad) step(u, p, m, v, grad + j, size);
    }
  });
  constexpr int64_t kRows = 1024;
  if (a.step && !a.all)
    for_each(pool, divide_up(a.R, kRows), [&](int64_t i) { miss(a, i * kRows, least((i + 1) * kRows, a.R)); });
  for (int64_t i = 0; i < n; i++) {
    for (int q = a.step ? 0 : 2; q < 9; q++) a.pending[q * a.R + rows[i].r] = q == 0;
    a.behind[rows[i].r] = false;
  }
}

}  // namespace FASTFF_ISA
