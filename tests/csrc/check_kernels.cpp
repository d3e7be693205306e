// Compares the kernels of one instruction set with the formulas written out in double, without PyTorch: for sets that
// this machine runs only in an emulator, or not in Python. Prints what differs; its exit code is the number of it.
#include <math.h>
#include <stdio.h>
#if defined(__AMX_INT8__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <random>
#include <thread>
#include <vector>

#include "indexed.h"
#include "product_keys.h"
#include "rows.h"
#include "tree_backward.h"
#include "tree_forward.h"
#include "tree_int8.h"

using namespace fastff;
using namespace FASTFF_ISA;
using Doubles = std::vector<double>;

static std::mt19937 generator(1);

// One thread, or with -DTHREADS as many: for the thread sanitizer.
#ifdef THREADS
static const Pool pool{THREADS, [](int64_t n, void (*task)(int64_t, int64_t, void*), void* context) {
                         std::vector<std::thread> threads;
                         for (int64_t i = 0; i < n; i++) threads.emplace_back(task, i, i + 1, context);
                         for (auto& thread : threads) thread.join();
                       }};
#else
static const Pool pool{1, nullptr};
#endif

static Doubles normal(int64_t n, double scale) {
  std::normal_distribution<double> distribution(0.0, scale);
  Doubles values(n);
  for (double& v : values) v = distribution(generator);
  return values;
}

// Values as the type holds them, and the same in double.
template <class T>
struct Stored {
  std::vector<T> typed;
  explicit Stored(Doubles& values) {
    for (double& v : values) {
      typed.push_back(from_float<T>(float(v)));
      v = to_float(typed.back());
    }
  }
};

static double gelu(double z) { return 0.5 * z * erfc(-z / sqrt(2.0)); }
static double gelu_slope(double z) { return 0.5 * erfc(-z / sqrt(2.0)) + z * exp(-z * z / 2) / sqrt(2 * M_PI); }
static double dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

static int failures = 0;

template <class T>
static void compare(const char* what, const std::vector<T>& got, const Doubles& expected, double tolerance) {
  double worst = 0, scale = 1e-30;
  for (size_t i = 0; i < expected.size(); i++) {
    double error = fabs(to_float(got[i]) - expected[i]);
    worst = error <= worst ? worst : error;  // a NaN stays
    scale = fmax(scale, fabs(expected[i]));
  }
  if (worst <= tolerance * scale) return;
  failures++;
  printf("%s differs: %g of %g\n", what, worst, scale);
}

// One tree, its forward and its backward with the exact gradient of the decisions.
template <class T>
static void check_tree(int64_t T_, int64_t D, int64_t I, int64_t O, int64_t S, int64_t W, int64_t leaf_S,
                       double tolerance) {
  int64_t N = (int64_t(1) << D) - 1, L = N + 1;
  Doubles x = normal(T_ * I, 1), node = normal(N * I, 1 / sqrt(I)), bias = normal(N, 0.1), out = normal(N * S * O, 0.5);
  Doubles w1 = normal(L * W * I, 1 / sqrt(I)), b1 = normal(L * W, 0.1), w2 = normal(L * W * leaf_S * O, 0.5);
  Doubles b2 = normal(L * O, 1);
  Doubles g = normal(T_ * O, 1);
  Stored<T> sx(x), snode(node), sbias(bias), sout(out), sw1(w1), sb1(b1), sw2(w2), sb2(b2), sg(g);

  std::vector<T> y(T_ * O, from_float<T>(NAN));
  std::vector<float> logits(T_ * D), hidden(T_ * W);
  std::vector<int64_t> leaf(T_);
  TreeForward f{};
  f.T = T_, f.K = 1, f.D = D, f.I = I, f.O = O, f.S = S, f.W = W, f.leaf_S = leaf_S, f.activation = Activation::gelu;
  f.x = sx.typed.data(), f.node_weight = snode.typed.data(), f.node_bias = sbias.typed.data();
  if (S) f.node_out = sout.typed.data();
  f.w1 = sw1.typed.data(), f.b1 = sb1.typed.data(), f.w2 = sw2.typed.data(), f.b2 = sb2.typed.data();
  f.y = y.data(), f.logits = logits.data(), f.leaf = leaf.data(), f.hidden = hidden.data();
  tree_forward<T>(f, pool);

  std::vector<T> gx(T_ * I), gnode(N * I), gbias(N), gout(N * S * O), gw1(L * W * I), gb1(L * W);
  std::vector<T> gw2(L * W * leaf_S * O), gb2(W ? L * O : 0);
  TreeBackward b{};
  static_cast<Tree&>(b) = f;
  b.gradient = Gradient::exact;
  b.grad_y = sg.typed.data(), b.logits = logits.data(), b.leaf = leaf.data(), b.hidden = hidden.data();
  b.grad_x = gx.data(), b.grad_node_weight = gnode.data(), b.grad_node_bias = gbias.data();
  if (S) b.grad_node_out = gout.data();
  if (W) b.grad_w1 = gw1.data(), b.grad_b1 = gb1.data(), b.grad_w2 = gw2.data(), b.grad_b2 = gb2.data();
  tree_backward<T>(b, pool);

  Doubles ey(T_ * O), ex(T_ * I), enode(N * I), ebias(N), eout(N * S * O), ew1(L * W * I), eb1(L * W);
  Doubles ew2(gw2.size()), eb2(gb2.size());
  auto add = [](double* to, const double* from, double factor, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] += factor * from[i];
  };
  for (int64_t t = 0; t < T_; t++) {
    const double *xt = &x[t * I], *gt = &g[t * O];
    // What is put out along g from `position` (in the tree, breadth first) on, following the logits.
    auto value = [](double z, int64_t rows) { return rows == 2 ? fabs(z) : gelu(z); };
    auto slope = [](double z, int64_t rows) { return rows == 2 ? (z > 0) - (z < 0) : gelu_slope(z); };
    auto logit = [&](int64_t n) { return dot(&node[n * I], xt, I) + bias[n]; };
    auto put_out = [&](int64_t position, auto&& self) -> double {
      if (position >= N) {
        double sum = W ? dot(&b2[(position - N) * O], gt, O) : 0;
        for (int64_t w = 0; w < W; w++) {
          int64_t row = (position - N) * W + w;
          double z = dot(&w1[row * I], xt, I) + b1[row];
          sum += value(z, leaf_S) * dot(&w2[(row * leaf_S + (leaf_S == 2 && z >= 0)) * O], gt, O);
        }
        return sum;
      }
      double z = logit(position), sum = 0;
      bool right = z >= 0;
      if (S) sum = value(z, S) * dot(&out[(position * S + (S == 2 && right)) * O], gt, O);
      return sum + self(2 * position + 1 + right, self);
    };
    int64_t n = 0;
    for (int64_t level = 0; level < D; level++) {
      double z = logits[t * D + level];  // the kernel's own: its path is followed
      bool right = z >= 0;
      double expected = logit(n);
      if (fabs(z - expected) > tolerance * 10) failures++, printf("logit %g, expected %g\n", z, expected);
      int64_t row = n * S + (S == 2 && right), chosen = 2 * n + 1 + right, other = 2 * n + 2 - right;
      double gradient = S ? slope(z, S) * dot(&out[row * O], gt, O) : 0, p = 1 / (1 + exp(-z));
      gradient += p * (1 - p) * (right ? 1 : -1) * (put_out(chosen, put_out) - put_out(other, put_out));
      if (S) {
        add(&ey[t * O], &out[row * O], value(z, S), O);
        add(&eout[row * O], gt, value(z, S), O);
      }
      add(&ex[t * I], &node[n * I], gradient, I);
      add(&enode[n * I], xt, gradient, I);
      ebias[n] += gradient;
      n = chosen;
    }
    if (W) {
      add(&ey[t * O], &b2[(n - N) * O], 1, O);
      add(&eb2[(n - N) * O], gt, 1, O);
    }
    for (int64_t w = 0; w < W; w++) {
      int64_t row = (n - N) * W + w;
      double z = dot(&w1[row * I], xt, I) + b1[row];
      int64_t side = (row * leaf_S + (leaf_S == 2 && z >= 0)) * O;
      double gradient = dot(&w2[side], gt, O) * slope(z, leaf_S);
      add(&ey[t * O], &w2[side], value(z, leaf_S), O);
      add(&ew2[side], gt, value(z, leaf_S), O);
      add(&ex[t * I], &w1[row * I], gradient, I);
      add(&ew1[row * I], xt, gradient, I);
      eb1[row] += gradient;
    }
  }
  compare("y", y, ey, tolerance);
  compare("grad x", gx, ex, tolerance);
  compare("grad node_weight", gnode, enode, tolerance);
  compare("grad node_bias", gbias, ebias, tolerance);
  compare("grad node_out", gout, eout, tolerance);
  compare("grad w1", gw1, ew1, tolerance);
  compare("grad b1", gb1, eb1, tolerance);
  compare("grad w2", gw2, ew2, tolerance);
  compare("grad b2", gb2, eb2, tolerance);
}

// Experts of one neuron, S a token, each weighed by a gate, forward and backward; enough of them go through blocks of columns.
template <class T>
static void check_experts(int64_t T_, int64_t S, int64_t E, int64_t I, int64_t O, double tolerance) {
  Doubles x = normal(T_ * I, 1), w1 = normal(E * I, 1 / sqrt(I)), b1 = normal(E, 0.1), w2 = normal(E * O, 0.5);
  Doubles gate = normal(T_ * S, 1), g = normal(T_ * O, 1);
  Stored<T> sx(x), sw1(w1), sb1(b1), sw2(w2), sgate(gate), sg(g);
  std::vector<int64_t> index(T_ * S);
  for (int64_t& e : index) e = generator() % E;

  std::vector<T> y(T_ * O, from_float<T>(NAN));
  std::vector<float> hidden(T_ * S);
  IndexedForward f{};
  f.T = T_, f.S = S, f.E = E, f.I = I, f.O = O, f.W = 1, f.activation = Activation::gelu, f.index = index.data();
  f.x = sx.typed.data(), f.w1 = sw1.typed.data(), f.b1 = sb1.typed.data(), f.w2 = sw2.typed.data();
  f.gate = sgate.typed.data(), f.y = y.data(), f.hidden = hidden.data();
  indexed_forward<T>(f, pool);
  IndexedBackward b{};
  static_cast<Indexed&>(b) = f;
  std::vector<T> gx(T_ * I), gw1(E * I), gb1(E), gw2(E * O), ggate(T_ * S);
  b.grad_y = sg.typed.data(), b.hidden = hidden.data(), b.grad_x = gx.data(), b.grad_w1 = gw1.data();
  b.grad_b1 = gb1.data(), b.grad_w2 = gw2.data(), b.grad_gate = ggate.data();
  indexed_backward<T>(b, pool);

  Doubles ey(T_ * O), ex(T_ * I), ew1(E * I), eb1(E), ew2(E * O), egate(T_ * S);
  for (int64_t t = 0; t < T_; t++)
    for (int64_t s = 0; s < S; s++) {
      int64_t e = index[t * S + s];
      double z = dot(&x[t * I], &w1[e * I], I) + b1[e], factor = gate[t * S + s], worth = dot(&g[t * O], &w2[e * O], O);
      double slope = worth * factor * gelu_slope(z);
      egate[t * S + s] = worth * gelu(z);
      eb1[e] += slope;
      for (int64_t i = 0; i < I; i++) ex[t * I + i] += slope * w1[e * I + i], ew1[e * I + i] += slope * x[t * I + i];
      for (int64_t o = 0; o < O; o++)
        ey[t * O + o] += factor * gelu(z) * w2[e * O + o], ew2[e * O + o] += factor * gelu(z) * g[t * O + o];
    }
  compare("experts", y, ey, tolerance);
  compare("gradient of x through experts", gx, ex, tolerance);
  compare("gradient of experts' w1", gw1, ew1, tolerance);
  compare("gradient of experts' b1", gb1, eb1, tolerance);
  compare("gradient of experts' w2", gw2, ew2, tolerance);
  compare("gradient of gates", ggate, egate, tolerance);
}

template <class T>
static void check_all(double tolerance) {
  check_experts<T>(30, 3, 20, 33, 70, tolerance);
  check_experts<T>(800, 30, 7600, 40, 75, tolerance);
  check_tree<T>(40, 4, 37, 50, 1, 0, 0, tolerance);
  check_tree<T>(300, 8, 64, 9, 2, 3, 2, tolerance);
  check_tree<T>(9, 3, 100, 131, 0, 2, 1, tolerance);
  check_tree<T>(5, 0, 3, 1, 0, 1, 1, tolerance);
  check_tree<T>(70, 2, 33, 40, 2, 5, 1, tolerance);
}

// Whole numbers in [-127, 127] and their scale, in the precision of the definition.
static double to_bytes(const std::vector<float>& x, std::vector<int>& q) {
  float largest = 0;
  for (float v : x) largest = fmaxf(largest, fabsf(v));
  float factor = 127.0f / fmaxf(largest, 1e-30f);
  q.clear();
  for (float v : x) q.push_back(int(nearbyintf(v * factor)));
  return largest / 127.0f;
}

static int padded_to_line(int64_t n) { return int((n + 63) / 64 * 64); }

// Trees in int8 of random bytes, with and without a projection and a master leaf.
static void check_int8(int64_t T_, int64_t K, int64_t D, int64_t I, int64_t O, int64_t S, int64_t W, int64_t leaf_S,
                       bool bias, int64_t R, int64_t master) {
  int64_t N = (int64_t(1) << D) - 1, L = N + 1, features = R ? R : I, M = K * (N + L * W);
  int64_t P = K * (N * S + L * (W * leaf_S + bias)), columns = padded_to_line(features), inputs = padded_to_line(I);
  int64_t blocks = padded_to_line(O) / 64, fours = (master + 3) / 4, dense = (R ? columns : 0) + padded_to_line(master);
  auto bytes = [](int64_t n, int64_t used, int64_t all) {  // rows of `all`, of which the columns after `used` are 0
    std::vector<uint8_t> v(n * all, 128);
    for (int64_t i = 0; i < n * all; i++)
      if (i % all < used) v[i] = uint8_t(1 + generator() % 255);
    return v;
  };
  auto floats = [](int64_t n, double scale, double mean) {
    std::vector<float> v;
    for (double d : normal(n, scale)) v.push_back(float(d + mean));
    return v;
  };
  std::vector<float> x = floats(T_ * I, 1, 0), in_scale = floats(M, 1e-4, 1e-3), in_bias = floats(M, 0.1, 0);
  std::vector<float> out_scale = floats(P + master, 1e-3, 1e-2), dense_scale = floats(dense, 1e-4, 1e-3);
  std::vector<float> dense_bias = floats(master, 0.1, 0);
  std::vector<uint8_t> in_rows = bytes(M, features, columns), out_rows = bytes(blocks * P, 64, 64);
  std::vector<uint8_t> dense_rows = bytes(dense, I, inputs), master_rows = bytes(blocks * fours, 256, 256);
  std::vector<uint8_t> together(dense_rows.size());  // four features of 64 rows
  for (int64_t r = 0; r < dense; r++)
    for (int64_t i = 0; i < inputs; i++)
      together[r / 64 * 64 * inputs + i / 4 * 256 + r % 64 * 4 + i % 4] = dense_rows[r * inputs + i];

  std::vector<float> y(T_ * O, NAN), logits(D * T_ * K);
  std::vector<int64_t> leaf(T_ * K);
  TreeInt8 a{};
  a.T = T_, a.K = K, a.D = D, a.I = I, a.O = O, a.S = S, a.W = W, a.leaf_S = leaf_S, a.R = features, a.leaf_bias = bias;
  a.leaves = int64_t(1) << D;
  a.activation = Activation::relu, a.x = x.data(), a.in_rows = in_rows.data(), a.in_scale = in_scale.data();
  a.in_bias = in_bias.data(), a.out_rows = out_rows.data(), a.out_count = P, a.out_scale = out_scale.data();
  a.projects = R > 0, a.master = master, a.dense_rows = dense ? together.data() : nullptr;
  a.dense_scale = dense_scale.data(), a.dense_bias = dense_bias.data(), a.master_rows = master_rows.data();
  a.y = y.data(), a.logits = logits.data(), a.leaf = leaf.data();
  tree_int8<float>(a, pool);

  for (int64_t t = 0; t < T_; t++) {
    std::vector<int> q, factor;
    double scale = to_bytes({x.begin() + t * I, x.begin() + (t + 1) * I}, q);
    auto product = [&](const uint8_t* row) {
      int64_t sum = 0;
      for (size_t i = 0; i < q.size(); i++) sum += (int(row[i]) - 128) * q[i];
      return double(sum);
    };
    std::vector<float> values;
    std::vector<const uint8_t*> rows;
    std::vector<int64_t> strides;  // from a column to the next; of a block to the next all rows
    std::vector<int64_t> per_block;
    auto term = [&](double value, int64_t row) {
      values.push_back(float(value) * out_scale[row]);
      bool shared = row >= P;
      int64_t m = row - P;
      rows.push_back(shared ? &master_rows[m / 4 * 256 + m % 4] : &out_rows[row * 64]);
      strides.push_back(shared ? 4 : 1);
      per_block.push_back(shared ? fours * 256 : P * 64);
    };
    for (int64_t h = 0; h < master; h++) {
      int64_t r = (R ? columns : 0) + h;
      term(fmax(0, product(&dense_rows[r * inputs]) * (scale * dense_scale[r]) + dense_bias[h]), P + h);
    }
    if (R) {
      std::vector<float> z;
      double mean = 0, variance = 0;
      for (int64_t r = 0; r < R; r++) z.push_back(float(product(&dense_rows[r * inputs]) * (scale * dense_scale[r])));
      for (float v : z) mean += v / R;
      for (float v : z) variance += (v - mean) * (v - mean) / R;
      for (float& v : z) v = float((v - mean) / sqrt(variance + 1e-5));
      scale = to_bytes(z, q);
    }
    auto value = [](double z, int64_t sides) { return sides == 2 ? fabs(z) : fmax(0, z); };
    for (int64_t k = 0; k < K; k++) {
      auto logit = [&](int64_t row) { return product(&in_rows[row * columns]) * (scale * in_scale[row]) + in_bias[row]; };
      int64_t n = 0;
      for (int64_t level = 0; level < D; level++) {
        double z = logits[(level * T_ + t) * K + k], expected = logit(k * N + n);  // the kernel's own way is followed
        if (fabs(z - expected) > (R ? 0.05 : 1e-4)) failures++, printf("int8 logit %g, expected %g\n", z, expected);
        if (S) term(value(z, S), (k * N + n) * S + (S == 2 && z >= 0));
        n = 2 * n + 1 + (z >= 0);
      }
      if (leaf[t * K + k] != n - N) failures++, printf("int8 leaf differs\n");
      for (int64_t w = 0; w < W; w++) {
        int64_t neuron = (k * L + n - N) * W + w;
        double z = logit(K * N + neuron);
        term(value(z, leaf_S), K * N * S + neuron * leaf_S + (leaf_S == 2 && z >= 0));
      }
      if (bias) term(1, K * (N * S + L * W * leaf_S) + k * L + n - N);
    }
    double factor_scale = to_bytes(values, factor), worst = 0, largest = 0;
    for (int64_t o = 0; o < O; o++) {
      double sum = 0;
      for (size_t i = 0; i < rows.size(); i++)
        sum += factor[i] * (int(rows[i][o / 64 * per_block[i] + o % 64 * strides[i]]) - 128);
      worst = fmax(worst, fabs(y[t * O + o] - sum * factor_scale));
      largest = fmax(largest, fabs(sum * factor_scale));
    }
    // A factor may be rounded to the byte beside, and behind a projection a byte of a token.
    if (!(worst <= (R ? 0.2 : 0.05) * largest)) failures++, printf("int8 y differs: %g of %g\n", worst, largest);
  }
}

// AdamW with gradients in few rows, then in some and zeros for the others, against a step of every row every time.
static void check_rows(int64_t R, int64_t E, int steps) {
  double lr = 1e-2, beta1 = 0.9, beta2 = 0.999, eps = 1e-3, decay = 0.1;
  Doubles p = normal(R * E, 1), m(R * E), v(R * E), pending(9 * R);
  Stored<float> sp(p);
  std::vector<float> sm(R * E), sv(R * E);
  std::vector<char> behind(R);
  for (int64_t r = 0; r < R; r++) pending[r] = 1;
  for (int t = 1; t <= steps; t++) {
    std::vector<int64_t> rows;
    for (int64_t r = 0; r < R; r++)
      if (generator() % 8 == 0) rows.push_back(r);
    int64_t U = rows.size();
    Doubles g = normal(U * E, 1), dense(R * E);
    Stored<float> sg(g);
    for (int64_t i = 0; i < U * E; i++) dense[rows[i / E] * E + i % E] = g[i];
    for (int64_t i = 0; i < R * E; i++) {
      m[i] += (dense[i] - m[i]) * (1 - beta1);
      v[i] += (dense[i] * dense[i] - v[i]) * (1 - beta2);
      p[i] -= lr * (decay * p[i] + m[i] / (1 - pow(beta1, t)) / (sqrt(v[i] / (1 - pow(beta2, t))) + eps));
    }
    AdamWRows a{R, E, U, sp.typed.data(), sm.data(), sv.data(), pending.data(), (bool*)behind.data(), rows.data(), eps,
                0, nullptr, false, lr, beta1, beta2, decay};
    if (t % 2) adamw_rows(a, pool);
    a.step = t, a.grad = sg.typed.data(), a.all = t == steps;
    adamw_rows(a, pool);
  }
  compare("weight", sp.typed, p, 2e-6);
  compare("mean", sm, m, 2e-6);
  compare("square", sv, v, 2e-6);
}

// All pairs, sorted; random scores have no ties.
static void check_keys(int64_t Q, int64_t n, int64_t F, int64_t k) {
  Doubles query = normal(Q * F, 1), keys = normal(n * F, 1), best;
  Stored<float> sq(query), sk(keys);
  std::vector<float> score(Q * k);
  std::vector<int64_t> pair(Q * k), right;
  product_keys({Q, n, F, k, sq.typed.data(), sk.typed.data(), score.data(), pair.data()}, pool);
  for (int64_t q = 0; q < Q; q++) {
    std::vector<std::pair<double, int64_t>> all;
    for (int64_t p = 0; p < n * n; p++)
      all.push_back({-dot(&query[q * F], &keys[p / n * F / 2], F / 2) -
                         dot(&query[q * F + F / 2], &keys[(n + p % n) * F / 2], F / 2), p});
    std::sort(all.begin(), all.end());
    for (int64_t p = 0; p < k; p++) best.push_back(-all[p].first), right.push_back(all[p].second);
  }
  compare("score", score, best, 2e-6);
  compare("pair", std::vector<float>(pair.begin(), pair.end()), Doubles(right.begin(), right.end()), 0);

  Doubles g = normal(Q * k, 1), grad_query(Q * F), grad_keys(n * F);
  Stored<float> sg(g);
  std::vector<float> gq(Q * F), gk(n * F);
  product_keys_backward({Q, n, F, k, sg.typed.data(), sq.typed.data(), sk.typed.data(), pair.data(), gq.data(), gk.data()},
                        pool);
  for (int64_t p = 0; p < Q * k; p++)
    for (int64_t half = 0, f = F / 2; half < 2; half++)
      for (int64_t i = 0; i < f; i++) {
        int64_t q = p / k * F + half * f + i, key = (half ? n + pair[p] % n : pair[p] / n) * f + i;
        grad_query[q] += g[p] * keys[key];
        grad_keys[key] += g[p] * query[q];
      }
  compare("gradient of queries", gq, grad_query, 2e-6);
  compare("gradient of keys", gk, grad_keys, 2e-6);
}

int main() {
#if defined(__AMX_INT8__)
  syscall(SYS_arch_prctl, 0x1023, 18);  // Linux wants to be asked for tiles
#endif
  check_all<float>(2e-6);
  check_all<BFloat16>(2e-2);
  check_all<Float16>(2e-3);
  check_int8(40, 3, 4, 37, 50, 2, 3, 2, true, 0, 0);
  check_int8(70, 1, 6, 64, 130, 1, 0, 0, false, 0, 0);
  check_int8(9, 20, 3, 100, 64, 0, 1, 2, false, 16, 5);
  check_int8(39, 2, 3, 130, 70, 0, 1, 2, false, 70, 74);  // whole tiles, and what is left of them
  check_int8(3, 2, 0, 5, 1, 0, 2, 1, true, 0, 64);
  check_rows(40, 37, 60);
  check_keys(37, 13, 10, 6);
  check_keys(5, 3, 2, 9);
  check_keys(300, 5, 70, 3);
  printf("%d failures\n", failures);
  return failures;
}
