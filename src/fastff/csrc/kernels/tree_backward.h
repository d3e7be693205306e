// The tree family backward. Tokens are sorted by leaf; a first pass over blocks of them gives the gradients of logits,
// hidden neurons and input, a second one those of all weights.
#pragma once

#include "block.h"
#include "outer.h"
#include "sort.h"

namespace FASTFF_ISA {

template <class T>
class TreeBackwardPass {
 public:
  TreeBackwardPass(const TreeBackward& a, int64_t tree)
      : a_(a), tree_(tree), nodes_((int64_t(1) << a.D) - 1), leaves_(nodes_ + 1), weights_(a, tree) {}

  // grad_x, (T, I), gains what comes through this tree.
  template <class X>
  void run(X* grad_x, const Pool& pool) {
    int64_t n = a_.T, D = a_.D, W = a_.W;
    Scratch<int32_t> order(n);
    Scratch<int64_t> code(n);
    sort_by_key(a_.leaf + tree_, a_.K, n, leaves_, order);
    for (int64_t i = 0; i < n; i++) code[i] = a_.leaf[order[i] * a_.K + tree_];
    Scratch<float> grad_logit(n * D), amplitude(n * D * (a_.S > 0)), grad_hidden(n * W), active(n * W);
    Scratch<float> active_left(n * W * (a_.leaf_S == 2));
    Factors f{grad_logit, amplitude, grad_hidden, active, active_left};

    for_each(pool, divide_up(n, kBlock), [&](int64_t i) {
      int64_t first = i * kBlock;
      Block<T> b;
      for (int64_t place = first; place < least(first + kBlock, n); place++) {
        int j = b.n++;
        int64_t t = order[place];
        b.x[j] = (const T*)a_.grad_y + t * a_.O;
        b.key[j] = code[place];
        b.order[j] = j;
      }
      Ahead ahead;
      for (int64_t place = first + kBlock; place < least(first + 2 * kBlock, n); place++)
        ahead.add((const T*)a_.grad_y + order[place] * a_.O, a_.O * sizeof(T));
      for (int j = 0; grad_x && j < b.n; j++)
        ahead.add(row_of(grad_x, order[first + j], a_.I), a_.I * sizeof(X));
      block(b, order + first, f, grad_x, ahead);
    });
    weights(Entries{n, order, code, 1}, f, pool);
  }

 private:
  // By token: gradients before the nodes' and hidden neurons' activations, and what these put out; two-sided hidden
  // neurons that to the right in `active`, that to the left in `active_left`, of which one is 0.
  struct Factors {
    float *grad_logit, *amplitude, *grad_hidden, *active, *active_left;  // (T, D), (T, D), then (T, W)
  };

  const T* x(int64_t token) const { return (const T*)a_.x + token * a_.I; }

  // value[i * D + level] = out[row of the node or its side] . x for the levels of the paths from `level` on.
  void out_dots(const Block<T>& b, int level, float* value, const Ahead& ahead) const {
    int64_t D = a_.D, S = a_.S;
    const T* x[kBlock];
    float z[kBlock];
    // Calls f(first, last, key) for the runs of tokens that share their output row on a level.
    auto for_rows = [&](int level, const auto& f) {
      int shift = int(D) - level - (S == 2);
      for (int i = 0, j; i < b.n; i = j) {
        int64_t key = b.key[b.order[i]];
        for (j = i + 1; j < b.n && b.key[b.order[j]] >> shift == key >> shift; j++) {
        }
        f(i, j, key);
      }
    };
    for (int i = 0; i < b.n; i++) x[i] = b.x[b.order[i]];
    for (; level < D; level++) {
      ahead.ask(level, D);
      if (level + 1 < D)
        for_rows(level + 1, [&](int, int, int64_t key) {
          prefetch_row(weights_.out + output_row(key, level + 1, D, S) * a_.O, a_.O * sizeof(T));
          if (a_.grad_x && ahead.count) prefetch_row(weights_.node + output_row(key, level + 1, D, 1) * a_.I, a_.I * sizeof(T));
        });
      for_rows(level, [&](int first, int last, int64_t key) {
        dots(x + first, last - first, weights_.out + output_row(key, level, D, S) * a_.O, a_.O, z + first);
      });
      for (int i = 0; i < b.n; i++) value[b.order[i] * D + level] = z[i];
    }
  }

  // The tokens of a block, in sorted order: b.x are rows of grad_y.
  template <class X>
  void block(const Block<T>& b, const int32_t* token, const Factors& f, X* grad_x, const Ahead& ahead) {
    int64_t D = a_.D, W = a_.W, n = b.n;
    Scratch<float> logits(n * D), slope(n * D), grad_out(n * D), below(n);
    Scratch<float> hidden(n * W), hidden_slope(n * W), grad_active(n * W);
    for (int i = 0; i < n; i++) {
      copy(logits + i * D, logits_of(token[i]), D);
      copy(hidden + i * W, a_.hidden + (token[i] * a_.K + tree_) * W, W);
      below[i] = 0.0f;
    }
    bool decides = a_.gradient != Gradient::none;
    Scratch<float> amplitude(n * D), active(n * W);
    if (a_.S) {
      amplitudes(a_.activation, a_.S, logits, n * D, amplitude, slope);
      out_dots(b, 0, grad_out, ahead);
    }
    if (W) {
      amplitudes(a_.activation, a_.leaf_S, hidden, n * W, active, hidden_slope);
      w2_dots(b, hidden, grad_active);
      if (decides) row_dots(b, weights_.b2, below);
    }
    for (int i = 0; i < n; i++) {
      const T* mask = a_.mask ? (const T*)a_.mask + (token[i] * a_.K + tree_) * W : nullptr;
      for (int64_t w = 0; w < W; w++) {
        float m = mask ? to_float(mask[w]) : 1.0f, gradient = grad_active[i * W + w];
        below[i] += active[i * W + w] * m * gradient;
        float out = active[i * W + w] * m;
        bool left = a_.leaf_S == 2 && !(hidden[i * W + w] >= 0.0f);
        f.active[token[i] * W + w] = left ? 0.0f : out;
        if (a_.leaf_S == 2) f.active_left[token[i] * W + w] = left ? out : 0.0f;
        f.grad_hidden[token[i] * W + w] = gradient * m * hidden_slope[i * W + w];
      }
    }
    Scratch<float> other(n * D);
    if (a_.gradient == Gradient::exact || a_.gradient == Gradient::sampled) other_sides(b, token, other);
    for (int i = 0; i < n; i++) {
      int64_t at = (token[i] * a_.K + tree_) * D;
      int64_t drawn = a_.gradient == Gradient::sampled && D ? a_.levels[token[i] * a_.K + tree_] : -1;
      for (int64_t level = D - 1; level >= 0; level--) {
        int64_t j = i * D + level, out = token[i] * D + level;
        float z = logits[j], gradient = a_.grad_logits ? a_.grad_logits[at + level] : 0.0f;
        if (a_.S) gradient += grad_out[j] * slope[j];
        if (decides && (drawn < 0 || drawn == level)) {
          bool right = z >= 0.0f;
          float p = probability(right ? z : -z), weight = p * (1.0f - p) * (right ? 1.0f : -1.0f);
          float effect = below[i];
          bool compares = a_.gradient == Gradient::exact || drawn >= 0;
          if (compares && __builtin_isfinite(other[j])) effect -= other[j];  // a side not taken may overflow
          gradient += weight * effect * (drawn >= 0 ? float(D) : 1.0f);
        }
        if (a_.S) {
          below[i] += amplitude[j] * grad_out[j];
          f.amplitude[out] = amplitude[j];
        }
        f.grad_logit[out] = gradient;
      }
    }
    if (!a_.grad_x) return;
    for_columns(0, a_.I, [&](auto columns, int64_t c) {
      for (int i = 0; i < n; i++) {
        X* target = row_of(grad_x, token[i], a_.I) + c;
        int64_t leaf = b.key[i];
        if (tree_)
          columns.read(target);
        else
          columns.zero();
        for (int level = 0; level < D; level++)
          columns.add(weights_.node + output_row(leaf, level, D, 1) * a_.I + c, f.grad_logit[token[i] * D + level]);
        add_rows(columns, weights_.w1, leaf, c, f.grad_hidden + token[i] * W);
        columns.write(target);
      }
    });
  }

  const float* logits_of(int64_t token) const { return a_.logits + (token * a_.K + tree_) * a_.D; }

  // value[i * W + w] = (output row of hidden neuron w, or that of its side) . x
  void w2_dots(const Block<T>& b, const float* hidden, float* value) const {
    if (a_.leaf_S == 2)
      side_dots(b, weights_.w2, hidden, value);
    else
      row_dots(b, weights_.w2, value);
  }

  static float probability(float z) { return (1.0f / (1.0f + exponential(broadcast(-z))))[0]; }

  // other[i * D + level] = grad_y . what the tree would have put out below `level` had it taken the other side there
  // and followed the decisions from then on. If sampled, of the level drawn alone.
  void other_sides(const Block<T>& b, const int32_t* token, float* other) {
    int64_t D = a_.D;
    for (int level = 0; level < D; level++) {
      int shift = int(D) - level - 1;  // what is left of a leaf is the child of the node on this level
      for (int i = 0, j; i < b.n; i = j) {
        Block<T> side;
        int from[kBlock];
        for (j = i; j < b.n && b.key[j] >> shift == b.key[i] >> shift; j++) {
          if (a_.gradient == Gradient::sampled && a_.levels[token[j] * a_.K + tree_] != level) continue;
          int m = side.n++;
          from[m] = j;
          side.x[m] = x(token[j]);
          side.key[m] = b.key[i] >> shift ^ 1;
          side.order[m] = m;
        }
        if (side.n) follow(side, b, from, level, other);
      }
    }
  }

  void follow(Block<T>& side, const Block<T>& b, const int* from, int level, float* other) {
    int64_t D = a_.D, W = a_.W;
    int n = side.n;
    Scratch<float> logits(n * D), grad_out(n * D), hidden(n * W), active(n * W), grad_active(n * W), sum(n);
    for (int i = 0; i < n; i++) side.logits[i] = logits + i * D;
    descend(side, weights_, a_.I, D, level + 1, int(D));
    for (int i = 0; i < n; i++) sum[i] = 0.0f;
    if (W) {
      row_dots(side, weights_.w1, hidden);
      amplitudes(a_.activation, a_.leaf_S, hidden, n * W, active, nullptr);
    }
    for (int i = 0; i < n; i++) side.x[i] = b.x[from[i]];  // from here on rows of grad_y
    if (W) {
      w2_dots(side, hidden, grad_active);
      row_dots(side, weights_.b2, sum);
      for (int i = 0; i < n; i++)
        for (int64_t w = 0; w < W; w++) sum[i] += active[i * W + w] * grad_active[i * W + w];
    }
    if (a_.S) {
      out_dots(side, level + 1, grad_out, Ahead{});
      for (int i = 0; i < n; i++) {
        float* z = logits + i * D;
        amplitudes(a_.activation, a_.S, z + level + 1, D - level - 1, z + level + 1, nullptr);
        for (int64_t l = level + 1; l < D; l++) sum[i] += z[l] * grad_out[i * D + l];
      }
    }
    for (int i = 0; i < n; i++) other[from[i] * D + level] = sum[i];
  }

  void weights(const Entries& e, const Factors& f, const Pool& pool) {
    int D = int(a_.D), W = int(a_.W), S = int(a_.S), leaf_S = int(a_.leaf_S);
    const int64_t* node_map = a_.node_row ? a_.node_row + tree_ * nodes_ : nullptr;
    const int64_t* leaf_map = a_.leaf_row ? a_.leaf_row + tree_ * leaves_ : nullptr;
    auto part = [&](void* grad, bool mapped, int64_t size) -> void* {  // of this tree; mapped rows are those of all
      return grad ? (T*)grad + (mapped ? 0 : tree_ * size) : nullptr;
    };
    void* node_weight = part(a_.grad_node_weight, node_map, nodes_ * a_.I);
    void* node_bias = part(a_.grad_node_bias, node_map, nodes_);
    void* node_out = part(a_.grad_node_out, node_map, nodes_ * S * a_.O);
    void* w1 = part(a_.grad_w1, leaf_map, leaves_ * W * a_.I);
    void* b1 = part(a_.grad_b1, leaf_map, leaves_ * W);
    void* w2 = part(a_.grad_w2, leaf_map, leaves_ * W * leaf_S * a_.O);
    void* b2 = part(a_.grad_b2, leaf_map, leaves_ * a_.O);
    void* base_w1 = part(a_.grad_base_w1, false, W * a_.I);
    void* base_b1 = part(a_.grad_base_b1, false, W);
    void* base_w2 = part(a_.grad_base_w2, false, W * leaf_S * a_.O);
    void* base_b2 = part(a_.grad_base_b2, false, a_.O);
    Scratch<Slot> in(D + 2 * W), out(D + 2 * W * leaf_S + 2), bias(D + 2 * W);
    int ins = 0, outs = 0, biases = 0;
    for (int level = 0; level < D; level++) {
      int64_t first = (int64_t(1) << level) - 1;
      Slot slot{f.grad_logit + level, D, D - level, first, 0, 1, 0, node_map, node_weight};
      if (node_weight) in[ins++] = slot;
      slot.grad = node_bias;
      if (node_bias) bias[biases++] = slot;
      int side = S == 2;
      if (node_out) out[outs++] = {f.amplitude + level, D, D - level - side, first, side, S, 0, node_map, node_out};
    }
    for (int w = 0; w < W; w++) {  // a base is what a tree of no level has for its leaf
      const float* hidden = f.grad_hidden + w;
      if (w1) in[ins++] = {hidden, W, 0, 0, 0, W, w, leaf_map, w1};
      if (b1) bias[biases++] = {hidden, W, 0, 0, 0, W, w, leaf_map, b1};
      if (base_w1) in[ins++] = {hidden, W, D, 0, 0, W, w, nullptr, base_w1};
      if (base_b1) bias[biases++] = {hidden, W, D, 0, 0, W, w, nullptr, base_b1};
      for (int side = 0; side < leaf_S; side++) {
        const float* active = (side + 1 < leaf_S ? f.active_left : f.active) + w;
        int rows = leaf_S * W, row = leaf_S * w + side;
        if (w2) out[outs++] = {active, W, 0, 0, 0, rows, row, leaf_map, w2};
        if (base_w2) out[outs++] = {active, W, D, 0, 0, rows, row, nullptr, base_w2};
      }
    }
    if (b2) out[outs++] = {nullptr, 0, 0, 0, 0, 1, 0, leaf_map, b2};
    if (base_b2) out[outs++] = {nullptr, 0, D, 0, 0, 1, 0, nullptr, base_b2};
    const Outer<T> sums[] = {{in, ins, (const T*)a_.x, a_.I}, {out, outs, (const T*)a_.grad_y, a_.O}};
    outer(e, sums, 2, pool);
    for_each(pool, biases, [&](int64_t i) { outer_bias<T>(e, bias[i]); });

    if (!e.n) {
      zero_rows<T>(base_w1, 0, 1, W * a_.I);
      zero_rows<T>(base_b1, 0, 1, W);
      zero_rows<T>(base_w2, 0, 1, W * leaf_S * a_.O);
      zero_rows<T>(base_b2, 0, 1, a_.O);
    }
    if (leaf_map) return;  // the gradients hold rows with tokens alone
    Scratch<bool> touched(nodes_ + leaves_);  // numbered breadth first
    memset(touched, 0, nodes_ + leaves_);
    for (int level = 0; level <= D; level++)
      for (int64_t place = 0; place < e.n; place++)
        touched[(int64_t(1) << level) - 1 + (e.code[place] >> (D - level))] = true;
    for_untouched(touched, nodes_, pool, [&](int64_t first, int64_t rows) {
      zero_rows<T>(node_weight, first, rows, a_.I);
      zero_rows<T>(node_bias, first, rows, 1);
    });
    if (S)  // the row of a side is that of a child
      for_untouched(touched + (S - 1), S * nodes_, pool,
                    [&](int64_t first, int64_t rows) { zero_rows<T>(node_out, first, rows, a_.O); });
    if (W)
      for_untouched(touched + nodes_, leaves_, pool, [&](int64_t first, int64_t rows) {
        zero_rows<T>(w1, first, rows, W * a_.I);
        zero_rows<T>(b1, first, rows, W);
        zero_rows<T>(w2, first, rows, W * leaf_S * a_.O);
        zero_rows<T>(b2, first, rows, a_.O);
      });
  }

  const TreeBackward& a_;
  int64_t tree_, nodes_, leaves_;
  Weights<T> weights_;
};

template <class T>
void tree_backward(const TreeBackward& a, const Pool& pool) {
  if (a.K == 1) return TreeBackwardPass<T>(a, 0).run((T*)a.grad_x, pool);
  Scratch<Sum> sum(a.grad_x ? a.T * padded(a.I) : 0);  // not rounded between trees
  for (int64_t k = 0; k < a.K; k++) TreeBackwardPass<T>(a, k).run((Sum*)sum, pool);
  if (a.grad_x) round_rows(sum, (T*)a.grad_x, a.T, a.I);
}

}  // namespace FASTFF_ISA
