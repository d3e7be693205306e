// The tree family backward. Tokens are sorted by leaf; a first pass over blocks of them gives the gradients of logits,
// hidden neurons and input, a second one those of all weights.
#pragma once

#include "block.h"
#include "outer.h"
#include "tree_sides.h"

namespace FASTFF_ISA {

// Whether the gradient of a decision needs what the other side is worth.
inline bool compares(const TreeBackward& a) {
  return a.gradient == Gradient::exact || a.gradient == Gradient::sampled;
}

template <class T>
class TreeBackwardPass {
 public:
  TreeBackwardPass(const TreeBackward& a, const BaseProducts<T>& base, int64_t tree)
      : a_(a), base_(base), tree_(tree), nodes_((int64_t(1) << a.D) - 1), leaves_(nodes_ + 1), weights_(a, tree) {}

  // grad_x, (T, I), gains what comes through this tree.
  template <class X>
  void run(X* grad_x, const Pool& pool) {
    int64_t n = a_.T, D = a_.D, W = a_.W, H = a_.H();
    Scratch<int32_t> order(n);
    Scratch<int64_t> code(n);
    sort_by_key(a_.leaf + tree_, a_.K, n, leaves_, order);
    for (int64_t i = 0; i < n; i++) code[i] = a_.leaf[order[i] * a_.K + tree_];
    Scratch<float> grad_logit(n * D), amplitude(n * D * (a_.S > 0)), grad_hidden(n * H), active(n * W);
    Scratch<float> active_left(n * W * (a_.leaf_S == 2));
    Factors f{grad_logit, amplitude, grad_hidden, active, active_left};

    int64_t many = compares(a_) ? many_tokens(D) : n;
    OtherSides<T> sides(a_, tree_, weights_, base_);
    for (int64_t begin = 0; begin < n; begin += many) {
      int64_t end = least(begin + many, n), count = compares(a_) ? end - begin : 0;
      Scratch<float> other(count * D);
      memset(other, 0, count * D * sizeof(float));
      bool by_columns = count && Gains<T>::serves(a_);
      Gains<T> gains(a_, tree_, by_columns ? count : 0, weights_, base_);
      if (by_columns)
        for (int64_t i = 0; i < count; i++)
          gains.set(i, -1, code[begin + i], hidden_of(order[begin + i]));
      if (count) sides.run(order + begin, code + begin, count, other, by_columns ? &gains : nullptr, pool);
      if (by_columns) gains.run(order + begin, count, other, pool);
      for_each(pool, divide_up(end - begin, kBlock), [&](int64_t i) {
        int64_t first = begin + i * kBlock;
        Block<T> b;
        for (int64_t place = first; place < least(first + kBlock, end); place++) {
          int j = b.n++;
          int64_t t = order[place];
          b.x[j] = (const T*)a_.grad_y + t * a_.O;
          b.key[j] = code[place];
          b.order[j] = j;
          b.base[j] = base_.out(t, tree_);
        }
        Ahead ahead;
        for (int64_t place = first + kBlock; place < least(first + 2 * kBlock, n); place++)
          ahead.add((const T*)a_.grad_y + order[place] * a_.O, a_.O * sizeof(T));
        for (int j = 0; grad_x && j < b.n; j++)
          ahead.add(row_of(grad_x, order[first + j], a_.I), a_.I * sizeof(X));
        block(b, order + first, other + i * kBlock * D, by_columns ? &gains : nullptr, i * kBlock, f, grad_x, ahead);
      });
    }
    weights(Entries{n, order, code, 1}, f, pool);
  }

 private:
  // By token: gradients before the nodes' and hidden neurons' activations, and what these put out; two-sided hidden
  // neurons that to the right in `active`, that to the left in `active_left`, of which one is 0.
  struct Factors {
    float *grad_logit, *amplitude, *grad_hidden, *active, *active_left;  // (T, D), (T, D), then (T, W)
  };

  // The tokens of a block, in sorted order: b.x are rows of grad_y; other (n, D) is what the sides not taken are worth.
  template <class X>
  void block(Block<T>& b, const int32_t* token, const float* other, const Gains<T>* gains, int64_t place,
             const Factors& f, X* grad_x, const Ahead& ahead) {
    int64_t D = a_.D, W = a_.W, H = a_.H(), n = b.n;
    Scratch<float> logits(n * D), slope(n * D), grad_out(n * D), below(n);
    Scratch<float> hidden(n * H), hidden_slope(n * H), grad_active(n * W);
    for (int i = 0; i < n; i++) {
      copy(logits + i * D, logits_of(token[i]), D);
      copy(hidden + i * H, hidden_of(token[i]), H);
      below[i] = 0.0f;
    }
    bool decides = a_.gradient != Gradient::none;
    Scratch<float> amplitude(n * D), active(n * W);
    if (a_.S) {
      amplitudes(a_.activation, a_.S, logits, n * D, amplitude, slope);
      if (!gains) out_dots(b, a_, weights_, 0, int(D), grad_out, ahead, a_.grad_x);
    }
    if (W) {
      leaf_amplitudes(a_, hidden, n, active, hidden_slope);
      if (!gains) w2_dots(b, weights_.w2, hidden, grad_active);
      for (int i = 0; i < n; i++) b.base[i] = base_.bias(token[i], tree_);
      if (decides && !gains) row_dots(b, weights_.b2, below);
    }
    for (int i = 0; gains && i < n; i++) {
      copy(grad_out + i * D, gains->out.gain + (place + i) * gains->out.each, a_.S ? D : 0);
      copy(grad_active + i * W, gains->leaf.gain + (place + i) * gains->leaf.each, W);
      if (gains->bias.each) below[i] = gains->bias.gain[(place + i) * gains->bias.each];
    }
    for (int i = 0; i < n; i++) {
      const T* mask = a_.mask ? (const T*)a_.mask + (token[i] * a_.K + tree_) * W : nullptr;
      for (int64_t w = 0; w < W; w++) {
        float m = mask ? to_float(mask[w]) : 1.0f, gradient = grad_active[i * W + w];
        below[i] += active[i * W + w] * m * gradient;
        float out = active[i * W + w] * m;
        bool left = a_.leaf_S == 2 && !(hidden[i * W + w] >= 0.0f);  // no gate
        f.active[token[i] * W + w] = left ? 0.0f : out;
        if (a_.leaf_S == 2) f.active_left[token[i] * W + w] = left ? out : 0.0f;
        for (int64_t h = w; h < H; h += W) f.grad_hidden[token[i] * H + h] = gradient * m * hidden_slope[i * H + h];
      }
    }
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
          if (compares(a_) && __builtin_isfinite(other[j])) effect -= other[j];  // a side not taken may overflow
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
        add_rows(columns, weights_.w1, leaf, c, f.grad_hidden + token[i] * H);
        columns.write(target);
      }
    });
  }

  const float* hidden_of(int64_t token) const { return a_.hidden + (token * a_.K + tree_) * a_.H(); }

  const float* logits_of(int64_t token) const { return a_.logits + (token * a_.K + tree_) * a_.D; }

  static float probability(float z) { return (1.0f / (1.0f + exponential(broadcast(-z))))[0]; }

  void weights(const Entries& e, const Factors& f, const Pool& pool) {
    int D = int(a_.D), W = int(a_.W), H = int(a_.H()), S = int(a_.S), leaf_S = int(a_.leaf_S);
    const int64_t* node_map = a_.node_row ? a_.node_row + tree_ * nodes_ : nullptr;
    const int64_t* leaf_map = a_.leaf_row ? a_.leaf_row + tree_ * leaves_ : nullptr;
    auto part = [&](void* grad, bool mapped, int64_t size) -> void* {  // of this tree; mapped rows are those of all
      return grad ? (T*)grad + (mapped ? 0 : tree_ * size) : nullptr;
    };
    auto large = [&](int64_t rows, int64_t n) {  // whether a gradient of this tree's rows and as many of the others is
      return least(rows, e.n) * a_.K * n * int64_t(sizeof(T)) > kLarge;
    };
    bool large_in = large(nodes_, a_.I) || large(leaves_, H * a_.I);
    bool large_out = large(nodes_, S * a_.O) || large(leaves_, W * leaf_S * a_.O);
    void* node_weight = part(a_.grad_node_weight, node_map, nodes_ * a_.I);
    void* node_bias = part(a_.grad_node_bias, node_map, nodes_);
    void* node_out = part(a_.grad_node_out, node_map, nodes_ * S * a_.O);
    void* w1 = part(a_.grad_w1, leaf_map, leaves_ * H * a_.I);
    void* b1 = part(a_.grad_b1, leaf_map, leaves_ * H);
    void* w2 = part(a_.grad_w2, leaf_map, leaves_ * W * leaf_S * a_.O);
    void* b2 = part(a_.grad_b2, leaf_map, leaves_ * a_.O);
    void* base_w1 = part(a_.grad_base_w1, false, H * a_.I);
    void* base_b1 = part(a_.grad_base_b1, false, H);
    void* base_w2 = part(a_.grad_base_w2, false, W * leaf_S * a_.O);
    void* base_b2 = part(a_.grad_base_b2, false, a_.O);
    Scratch<Slot> in(D + 2 * H), out(D + 2 * W * leaf_S + 2), bias(D + 2 * H);
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
    for (int h = 0; h < H; h++) {  // a base is what a tree of no level has for its leaf
      const float* hidden = f.grad_hidden + h;
      if (w1) in[ins++] = {hidden, H, 0, 0, 0, H, h, leaf_map, w1};
      if (b1) bias[biases++] = {hidden, H, 0, 0, 0, H, h, leaf_map, b1};
      if (base_w1) in[ins++] = {hidden, H, D, 0, 0, H, h, nullptr, base_w1};
      if (base_b1) bias[biases++] = {hidden, H, D, 0, 0, H, h, nullptr, base_b1};
    }
    for (int w = 0; w < W; w++)
      for (int side = 0; side < leaf_S; side++) {
        const float* active = (side + 1 < leaf_S ? f.active_left : f.active) + w;
        int rows = leaf_S * W, row = leaf_S * w + side;
        if (w2) out[outs++] = {active, W, 0, 0, 0, rows, row, leaf_map, w2};
        if (base_w2) out[outs++] = {active, W, D, 0, 0, rows, row, nullptr, base_w2};
      }
    if (b2) out[outs++] = {nullptr, 0, 0, 0, 0, 1, 0, leaf_map, b2};
    if (base_b2) out[outs++] = {nullptr, 0, D, 0, 0, 1, 0, nullptr, base_b2};
    const Outer<T> sums[] = {{in, ins, (const T*)a_.x, a_.I, large_in}, {out, outs, (const T*)a_.grad_y, a_.O, large_out}};
    outer(e, sums, 2, pool);
    for_each(pool, biases, [&](int64_t i) { outer_bias<T>(e, bias[i]); });

    if (!e.n) {
      zero_rows<T>(base_w1, 0, 1, H * a_.I);
      zero_rows<T>(base_b1, 0, 1, H);
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
      zero_rows<T>(node_weight, first, rows, a_.I, large_in);
      zero_rows<T>(node_bias, first, rows, 1);
    });
    if (S)  // the row of a side is that of a child
      for_untouched(touched + (S - 1), S * nodes_, pool,
                    [&](int64_t first, int64_t rows) { zero_rows<T>(node_out, first, rows, a_.O, large_out); });
    if (W)
      for_untouched(touched + nodes_, leaves_, pool, [&](int64_t first, int64_t rows) {
        zero_rows<T>(w1, first, rows, H * a_.I, large_in);
        zero_rows<T>(b1, first, rows, H);
        zero_rows<T>(w2, first, rows, W * leaf_S * a_.O, large_out);
        zero_rows<T>(b2, first, rows, a_.O, large_out);
      });
  }

  const TreeBackward& a_;
  const BaseProducts<T>& base_;
  int64_t tree_, nodes_, leaves_;
  Weights<T> weights_;
};

template <class T>
void tree_backward(const TreeBackward& a, const Pool& pool) {
  BaseProducts<T> base(a, (const T*)a.grad_y, compares(a), pool);
  if (a.K == 1) return TreeBackwardPass<T>(a, base, 0).run((T*)a.grad_x, pool);
  Scratch<Sum> sum(a.grad_x ? a.T * padded(a.I) : 0);  // not rounded between trees
  for (int64_t k = 0; k < a.K; k++) TreeBackwardPass<T>(a, base, k).run((Sum*)sum, pool);
  if (a.grad_x) round_rows(sum, (T*)a.grad_x, a.T, a.I);
}

}  // namespace FASTFF_ISA
