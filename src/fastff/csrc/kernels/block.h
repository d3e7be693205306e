// A block of tokens going down one tree, and what each of its steps does to it.
#pragma once

#include "activation.h"
#include "columns.h"
#include "dot.h"
#include "pool.h"

namespace FASTFF_ISA {

constexpr int kBlock = 64;  // tokens whose input stays in the L2 cache while they go down

// Levels that a block goes down before the tokens are sorted: their nodes' rows fit the L2 cache together.
constexpr int kLevelsAtOnce = 6;

// Tokens of which several pass each leaf of a tree, but not so many that they leave the L3 cache or need much memory.
inline int64_t many_tokens(int64_t depth) { return most(4096, int64_t(4) << least(depth, 14)); }

// `order` lists the tokens so that those of one node lie together; all else is by the token's own place.
template <class T>
struct Block {
  int n = 0;
  const T* x[kBlock];    // (I,)
  float* logits[kBlock];  // (D,)
  int64_t key[kBlock];   // node among those of its level
  int order[kBlock];
  const float* base[kBlock] = {};  // products of x with a base's rows, where they are known

  // Calls f(first, last, key) for the runs of `order` below one node `shift` levels above; the key is the first token's.
  template <class F>
  void for_runs(int shift, const F& f) const {
    for (int i = 0, j; i < n; i = j) {
      int64_t k = key[order[i]];
      for (j = i + 1; j < n && key[order[j]] >> shift == k >> shift; j++) {
      }
      f(i, j, k);
    }
  }
  // The same for the runs in one node.
  template <class F>
  void for_runs(const F& f) const {
    for_runs(0, f);
  }
  int runs() const {
    int count = 0;
    for_runs([&](int, int, int64_t) { count++; });
    return count;
  }
};

// Rows of leaves or experts: W of n columns each, or of each of W neurons a row for either side, a bias for each row,
// and rows that stand in every leaf besides its own. What is null is not there.
template <class T>
struct Rows {
  const T *weight = nullptr, *bias = nullptr, *base = nullptr, *base_bias = nullptr;
  int64_t W = 0, n = 0;
  bool sides = false;  // row 2 w of a leaf is the left one of neuron w, row 2 w + 1 the right one

  // Which row of the weights of all leaves (leaf 0 of a base) neuron w of one uses; z are the leaf's neurons.
  int64_t row(int64_t leaf, int64_t w, const float* z) const {
    int64_t neuron = leaf * W + w;
    return sides ? 2 * neuron + (z[w] >= 0.0f) : neuron;
  }

  Rows of_tree(int64_t tree, int64_t leaves) const {
    auto part = [&](const T* p, int64_t size) { return p ? p + tree * size : nullptr; };
    int64_t size = W * (1 + sides) * n;
    return {part(weight, leaves * size), part(bias, leaves * W), part(base, size), part(base_bias, W), W, n, sides};
  }
};

// One tree's weights.
template <class T>
struct Weights {
  const T *node, *node_bias, *out;
  Rows<T> w1, w2, b2;  // of the leaves; b2 as a row that every leaf has once, or not at all

  Weights(const Tree& a, int64_t tree) {
    int64_t nodes = (int64_t(1) << a.D) - 1, leaves = nodes + 1;
    auto p = [](const void* data) { return (const T*)data; };
    node = p(a.node_weight) + tree * nodes * a.I;
    node_bias = p(a.node_bias) + tree * nodes;
    out = a.S ? p(a.node_out) + tree * nodes * a.S * a.O : nullptr;
    w1 = Rows<T>{p(a.w1), p(a.b1), p(a.base_w1), p(a.base_b1), a.H(), a.I}.of_tree(tree, leaves);
    w2 = Rows<T>{p(a.w2), nullptr, p(a.base_w2), nullptr, a.W, a.O, a.leaf_S == 2}.of_tree(tree, leaves);
    b2 = Rows<T>{p(a.b2), nullptr, p(a.base_b2), nullptr, a.W > 0 && a.b2, a.O}.of_tree(tree, leaves);
  }
};

// Memory that is asked for while a block of many tokens is worked on, a part at a time so that no queue fills.
struct Ahead {
  const char* row[2 * kBlock];
  int64_t bytes[2 * kBlock];
  int count = 0;

  void add(const void* p, int64_t size) {
    row[count] = (const char*)p;
    bytes[count++] = size;
  }
  void ask(int64_t part, int64_t parts) const {
    for (int i = 0; i < count; i++) {
      int64_t size = divide_up(bytes[i], parts);
      prefetch_row(row[i] + part * size, size);
    }
  }
};

// From `level` down to `end`, of D: right where the logit is >= 0, else left (NaN goes left). What is ahead is asked for
// meanwhile, a part at each level.
template <class T>
inline void descend(Block<T>& b, const Weights<T>& weights, int64_t I, int64_t D, int level, int end,
                    const Ahead& ahead = {}) {
  for (int part = 0, parts = end - level; level < end; level++, part++) {
    int64_t first = (int64_t(1) << level) - 1;
    ahead.ask(part, parts);
    // Rows that a child needs next are asked for one pass before they are read.
    const T* below = level + 1 < D ? weights.node + (2 * first + 1) * I : weights.w1.weight;
    int64_t size = level + 1 == D ? weights.w1.W * I : level + 1 < end ? I : 0;
    b.for_runs([&](int begin, int stop, int64_t key) {
      const T* x[kBlock];
      float z[kBlock];
      int left[kBlock], right[kBlock], lefts = 0, rights = 0, count = stop - begin;
      for (int i = 0; i < count; i++) x[i] = b.x[b.order[begin + i]];
      dots(x, count, weights.node + (first + key) * I, I, z);
      float offset = to_float(weights.node_bias[first + key]);
      for (int i = 0; i < count; i++) {
        int token = b.order[begin + i];
        float logit = z[i] + offset;
        b.logits[token][level] = logit;
        bool goes_right = logit >= 0.0f;
        b.key[token] = 2 * key + goes_right;
        left[lefts] = right[rights] = token;
        rights += goes_right;
        lefts += !goes_right;
      }
      memcpy(b.order + begin, left, lefts * sizeof(int));
      memcpy(b.order + begin + lefts, right, rights * sizeof(int));
      if (lefts) prefetch_row(below + 2 * key * size, size * sizeof(T));
      if (rights) prefetch_row(below + (2 * key + 1) * size, size * sizeof(T));
    });
  }
}

constexpr int64_t kShortRow = 128;  // elements

// The same where a row is short, so that sharing one gains less than it costs to find who does: as many tokens as there
// are lanes go side by side, and while their sums are taken the next ones begin. `order` stays as it is.
template <class T>
inline void walk(Block<T>& b, const Weights<T>& weights, int64_t I, int level, int end) {
  for (; level < end; level++) {
    int64_t first = (int64_t(1) << level) - 1;
    for (int begin = 0; begin < b.n; begin += kLanes) {
      int count = b.n - begin < kLanes ? b.n - begin : kLanes;
      const T* row[kLanes];
      float offset[kLanes];
      for (int i = 0; i < count; i++) {
        int64_t node = first + b.key[begin + i];
        row[i] = weights.node + node * I;
        offset[i] = to_float(weights.node_bias[node]);
      }
      Vec z = pair_dots(b.x + begin, row, count, I);
      for (int i = 0; i < count; i++) {
        float logit = z[i] + offset[i];
        b.logits[begin + i][level] = logit;
        b.key[begin + i] = 2 * b.key[begin + i] + (logit >= 0.0f);
      }
    }
  }
}

// Row of what a node puts out: that of the node, or of the side taken. `leaf` is the end of the path, of D levels.
inline int64_t output_row(int64_t leaf, int level, int64_t D, int64_t S) {
  int64_t node = (int64_t(1) << level) - 1 + (leaf >> (D - level));
  return S == 2 ? 2 * node + ((leaf >> (D - level - 1)) & 1) : node;
}

// What a neuron of logit z multiplies its row with, and the derivative: the activation, or |z| if it has S = 2 rows, one
// a side.
inline void amplitudes(Activation activation, int64_t S, const float* z, int64_t n, float* value, float* slope) {
  if (S != 2) return activate(activation, z, n, value, slope);
  for (int64_t i = 0; i < n; i++) {
    float v = z[i];
    value[i] = __builtin_fabsf(v);
    if (slope) slope[i] = float(v > 0.0f) - float(v < 0.0f);
  }
}

// The same of the leaf neurons of some tokens, from their (H,) values each: (W,) values and (H,) slopes.
inline void leaf_amplitudes(const Tree& a, const float* z, int64_t tokens, float* value, float* slope) {
  if (a.gated) return activate_gated(a.activation, z, tokens, a.W, value, slope);
  amplitudes(a.activation, a.leaf_S, z, tokens * a.W, value, slope);
}

// Products of some tokens of a block with row w of a base, which all leaves have.
template <class T>
inline void base_dots(const Block<T>& b, const Rows<T>& rows, const int* token, int count, int64_t w, const T* const* x,
                      float* out) {
  if (!count) return;
  if (!b.base[token[0]]) return dots(x, count, rows.base + w * rows.n, rows.n, out);
  for (int i = 0; i < count; i++) out[i] = b.base[token[i]][w];
}

// out[token * W + w] = (weight[key, w] + base[w]) . x + bias[key, w] + base_bias[w]. Rows of the same leaves that are read
// next, as many, are asked for meanwhile.
template <class T>
inline void row_dots(const Block<T>& b, const Rows<T>& rows, float* out, const Rows<T>& next = {}) {
  int64_t W = rows.W, n = rows.n, size = (1 + next.sides) * next.n;
  auto value = [](const T* p, int64_t i) { return p ? to_float(p[i]) : 0.0f; };
  b.for_runs([&](int begin, int end, int64_t key) {
    for (int i = begin; i < end; i += kDotTokens) {
      int count = end - i < kDotTokens ? end - i : kDotTokens;
      const T* x[kDotTokens];
      float z[kDotTokens], shared[kDotTokens] = {};
      for (int j = 0; j < count; j++) x[j] = b.x[b.order[i + j]];
      for (int64_t w = 0; w < W; w++) {
        int64_t row = key * W + w;
        if (next.weight && i == begin) prefetch_row(next.weight + row * size, size * sizeof(T));
        dots(x, count, rows.weight + row * n, n, z);
        if (rows.base) base_dots(b, rows, b.order + i, count, w, x, shared);
        float offset = value(rows.bias, row) + value(rows.base_bias, w);
        for (int j = 0; j < count; j++) out[b.order[i + j] * W + w] = z[j] + shared[j] + offset;
      }
    }
  });
}

// out[token * W + w] = (weight[key, w, side] + base[w, side]) . x, where z[token * W + w] names the side.
template <class T>
inline void side_dots(const Block<T>& b, const Rows<T>& rows, const float* z, float* out) {
  int64_t W = rows.W, n = rows.n;
  b.for_runs([&](int begin, int end, int64_t key) {
    for (int64_t w = 0; w < W; w++)
      for (int side = 0; side < 2; side++) {
        const T* x[kBlock];
        float product[kBlock], shared[kBlock] = {};
        int token[kBlock], count = 0;
        for (int i = begin; i < end; i++) {
          if ((z[b.order[i] * W + w] >= 0.0f) != side) continue;
          x[count] = b.x[b.order[i]];
          token[count++] = b.order[i];
        }
        int64_t row = 2 * w + side;
        dots(x, count, rows.weight + (key * 2 * W + row) * n, n, product);
        if (rows.base) base_dots(b, rows, token, count, row, x, shared);
        for (int i = 0; i < count; i++) out[token[i] * W + w] = product[i] + shared[i];
      }
  });
}

// out[token * W + w] = (output row of hidden neuron w, or that of the side that z[token * W + w] names) . x
template <class T>
inline void w2_dots(const Block<T>& b, const Rows<T>& rows, const float* z, float* out) {
  if (rows.sides)
    side_dots(b, rows, z, out);
  else
    row_dots(b, rows, out);
}

// out[token * D + level] = (output row of the node, or of its side) . x, for the levels of the ways from `level` down to
// `end`, the level of the keys. The rows of the next level are asked for meanwhile, with `nodes` those of decisions too.
template <class T>
inline void out_dots(const Block<T>& b, const Tree& a, const Weights<T>& weights, int level, int end, float* out,
                     const Ahead& ahead = {}, bool nodes = false) {
  int64_t D = a.D, S = a.S;
  const T* x[kBlock];
  float z[kBlock];
  // Tokens below one node so many levels above their keys share their output row of a level.
  auto above = [&](int level) { return end - level - (S == 2); };
  for (int i = 0; i < b.n; i++) x[i] = b.x[b.order[i]];
  for (; level < end; level++) {
    ahead.ask(level, end);
    if (level + 1 < end)
      b.for_runs(above(level + 1), [&](int, int, int64_t key) {
        prefetch_row(weights.out + output_row(key, level + 1, end, S) * a.O, a.O * sizeof(T));
        if (nodes) prefetch_row(weights.node + output_row(key, level + 1, end, 1) * a.I, a.I * sizeof(T));
      });
    b.for_runs(above(level), [&](int first, int last, int64_t key) {
      dots(x + first, last - first, weights.out + output_row(key, level, end, S) * a.O, a.O, z + first);
    });
    for (int i = 0; i < b.n; i++) out[b.order[i] * D + level] = z[i];
  }
}

// Products of every token with the rows of all trees' bases, where the backward needs them for each side of each decision.
template <class T>
class BaseProducts {
 public:
  BaseProducts(const Tree& a, const T* grad_y, bool needed, const Pool& pool)
      : K_(a.K), ins_(a.H()), outs_(a.W * a.leaf_S),
        size_(needed && a.base_w1 ? ins_ + outs_ + (a.b2 != nullptr) : 0), value_(a.T * a.K * size_) {
    if (!size_) return;
    for_each(pool, divide_up(a.T, kBlock), [&](int64_t task) {
      int64_t first = task * kBlock;
      int count = int(least(kBlock, a.T - first));
      const T *x[kBlock], *g[kBlock];
      for (int i = 0; i < count; i++) {
        x[i] = (const T*)a.x + (first + i) * a.I;
        g[i] = grad_y + (first + i) * a.O;
      }
      for (int64_t k = 0; k < a.K; k++) {
        auto products = [&](const T* const* tokens, const void* rows, int64_t number, int64_t n, int64_t at) {
          for (int64_t row = 0; row < number; row++) {
            float z[kBlock];
            dots(tokens, count, (const T*)rows + (k * number + row) * n, n, z);
            for (int i = 0; i < count; i++) value_[((first + i) * K_ + k) * size_ + at + row] = z[i];
          }
        };
        products(x, a.base_w1, ins_, a.I, 0);
        products(g, a.base_w2, outs_, a.O, ins_);
        if (a.b2) products(g, a.base_b2, 1, a.O, ins_ + outs_);
      }
    });
  }

  // Of a token's own x with base_w1, and grad_y with base_w2 and base_b2; null where they are not known.
  const float* in(int64_t token, int64_t tree) const { return part(token, tree, 0); }
  const float* out(int64_t token, int64_t tree) const { return part(token, tree, ins_); }
  const float* bias(int64_t token, int64_t tree) const { return part(token, tree, ins_ + outs_); }

 private:
  const float* part(int64_t token, int64_t tree, int64_t at) const {
    return size_ ? value_ + (token * K_ + tree) * size_ + at : nullptr;
  }

  int64_t K_, ins_, outs_, size_;
  Scratch<float> value_;
};

// Adds to the columns from c on of M tokens the rows of their leaf, row w times factor[m][w]; of rows for either side
// that which z[m][w] names.
template <int M, class T, class Columns>
__attribute__((always_inline)) inline void add_rows(Columns* sum, const Rows<T>& rows, int64_t key, int64_t c,
                                                    const float* const* factor, const float* const* z) {
  auto add = [&](const T* weight, int64_t leaf) __attribute__((always_inline)) {
    for (int64_t w = 0; w < rows.W; w++)
#pragma GCC unroll 4
      for (int m = 0; m < M; m++) sum[m].add(weight + rows.row(leaf, w, z[m]) * rows.n + c, factor[m][w]);
  };
  add(rows.weight, key);
  if (rows.base) add(rows.base, 0);
}

// The same for one token.
template <class T, class Columns>
inline void add_rows(Columns& columns, const Rows<T>& rows, int64_t key, int64_t c, const float* factor,
                     const float* z = nullptr) {
  add_rows<1>(&columns, rows, key, c, &factor, &z);
}

}  // namespace FASTFF_ISA
