// Compares the kernels of one instruction set with the formulas written out in double, without PyTorch: for sets that
// this machine runs only in an emulator, or not in Python. Prints what differs; its exit code is the number of it.
#include <math.h>
#include <stdio.h>

#include <random>
#include <vector>

#include "indexed.h"
#include "rows.h"
#include "tree_backward.h"
#include "tree_forward.h"

using namespace fastff;
using namespace FASTFF_ISA;
using Doubles = std::vector<double>;

static std::mt19937 generator(1);

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
  Pool pool{1, nullptr};
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

template <class T>
static void check_all(double tolerance) {
  check_tree<T>(40, 4, 37, 50, 1, 0, 0, tolerance);
  check_tree<T>(300, 8, 64, 9, 2, 3, 2, tolerance);
  check_tree<T>(9, 3, 100, 131, 0, 2, 1, tolerance);
  check_tree<T>(5, 0, 3, 1, 0, 1, 1, tolerance);
  check_tree<T>(70, 2, 33, 40, 2, 5, 1, tolerance);
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
    if (t % 2) adamw_rows(a, Pool{1, nullptr});
    a.step = t, a.grad = sg.typed.data(), a.all = t == steps;
    adamw_rows(a, Pool{1, nullptr});
  }
  compare("weight", sp.typed, p, 2e-6);
  compare("mean", sm, m, 2e-6);
  compare("square", sv, v, 2e-6);
}

int main() {
  check_all<float>(2e-6);
  check_all<BFloat16>(2e-2);
  check_all<Float16>(2e-3);
  check_rows(40, 37, 60);
  printf("%d failures\n", failures);
  return failures;
}
