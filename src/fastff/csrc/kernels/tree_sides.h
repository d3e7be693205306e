// What the sides not taken are worth: for each decision of a token grad_y . what the tree would have put out below it had
// it taken the other side there and followed the decisions from then on.
//
// A walker goes down there, its worth summed from level to level. In the upper levels the walkers of a block of tokens go
// side by side; then all walkers are sorted by the node that they have reached, so that many share the rows below it.
#pragma once

#include "sort.h"
#include "tree_gains.h"

namespace FASTFF_ISA {

template <class T>
class OtherSides {
 public:
  OtherSides(const TreeBackward& a, int64_t tree, const Weights<T>& weights, const BaseProducts<T>& base)
      : a_(a), tree_(tree), weights_(weights), base_(base) {}

  // Adds to worth (count, D) that of tokens sorted by leaf, `code`. If sampled, of each token's drawn level alone. With
  // `gains` they learn where the ways lead, and do the rest.
  void run(const int32_t* token, const int64_t* code, int64_t count, float* worth, Gains<T>* gains,
           const Pool& pool) const {
    int D = int(a_.D), middle = D > kLevelsAtOnce ? kLevelsAtOnce : 0;
    Scratch<int64_t> reached(count * middle);  // the node on level `middle`; -1 where nobody walks
    for_each(pool, divide_up(count, kBlock), [&](int64_t task) {
      Walk walk(*this, token, worth, gains);
      int64_t first = task * kBlock, end = least(first + kBlock, count);
      for (int level = 0; level < D; level++) {
        bool sorted = level < middle;
        for (int64_t place = first; place < end; place++) {
          if (sorted) reached[place * middle + level] = -1;
          if (walks(token[place], level)) walk.enter(place, level, code[place] >> (D - level - 1) ^ 1);
        }
        walk.go(level + 1, sorted ? middle : D);
        for (int i = 0; sorted && i < walk.b.n; i++) reached[walk.place[i] * middle + level] = walk.b.key[i];
        walk.b.n = 0;
      }
    });
    Scratch<int64_t> walker(count * middle), node(count * middle), start(count * middle + 1);
    Scratch<int32_t> order(count * middle);
    int64_t n = 0;
    for (int64_t w = 0; w < count * middle; w++)
      if (reached[w] >= 0) {
        walker[n] = w;
        node[n++] = reached[w];
      }
    if (!n) return;
    sort_by_key(node, 1, n, int64_t(1) << middle, order);
    for_each(pool, split_runs(node, order, n, kBlock, start), [&](int64_t task) {
      Walk walk(*this, token, worth, gains);
      for (int64_t i = start[task]; i < start[task + 1]; i++) {
        int64_t w = walker[order[i]];
        walk.enter(w / middle, int(w % middle), node[order[i]]);
      }
      walk.go(middle, D);
    });
  }

 private:
  bool walks(int64_t token, int level) const {
    return a_.gradient != Gradient::sampled || a_.levels[token * a_.K + tree_] == level;
  }

  // A block of walkers, and what the steps of their way need.
  struct Walk {
    const OtherSides& sides;
    const int32_t* token;
    float* worth;
    Gains<T>* gains;
    Block<T> b;
    int64_t place[kBlock];  // of a walker's token
    float* own[kBlock];     // its worth
    Scratch<float> logits, gain, hidden, active, leaf_gain, bias_gain;

    Walk(const OtherSides& sides, const int32_t* token, float* worth, Gains<T>* gains)
        : sides(sides), token(token), worth(worth), gains(gains), logits(kBlock * sides.a_.D), gain(kBlock * sides.a_.D),
          hidden(kBlock * sides.a_.H()), active(kBlock * sides.a_.W), leaf_gain(kBlock * sides.a_.W), bias_gain(kBlock) {}

    // Who left the way of the token at `from` by the node of `level`, and stands at a node now.
    void enter(int64_t from, int level, int64_t node) {
      const TreeBackward& a = sides.a_;
      int i = b.n++;
      place[i] = from;
      own[i] = worth + from * a.D + level;
      b.x[i] = (const T*)a.x + token[from] * a.I;
      b.logits[i] = logits + i * a.D;
      b.key[i] = node;
      b.order[i] = i;
      b.base[i] = sides.base_.in(token[from], sides.tree_);
    }

    void go(int level, int end) {
      const TreeBackward& a = sides.a_;
      const Weights<T>& weights = sides.weights_;
      int64_t D = a.D, W = a.W;
      bool leaves = W && end == D;
      if (a.I <= kShortRow)
        walk(b, weights, a.I, level, end);
      else
        descend(b, weights, a.I, D, level, end);
      if (leaves) row_dots(b, weights.w1, hidden);
      if (gains) {
        for (int i = 0; i < b.n; i++) {
          int64_t at = own[i] - worth;
          gains->set_logits(at / D, int(at % D), level, end, logits + i * D);
          if (end == D) gains->set(place[i], int(at % D), b.key[i], hidden + i * W);
        }
        return;
      }
      for (int i = 0; i < b.n; i++) {
        b.x[i] = (const T*)a.grad_y + token[place[i]] * a.O;
        b.base[i] = sides.base_.out(token[place[i]], sides.tree_);
      }
      if (a.S) {
        out_dots(b, a, weights, level, end, gain);
        for (int i = 0; i < b.n; i++) {
          float* z = logits + i * D;
          amplitudes(a.activation, a.S, z + level, end - level, z + level, nullptr);
          for (int l = level; l < end; l++) *own[i] += z[l] * gain[i * D + l];
        }
      }
      if (!leaves) return;
      leaf_amplitudes(a, hidden, b.n, active, nullptr);
      w2_dots(b, weights.w2, hidden, leaf_gain);
      for (int i = 0; i < b.n; i++) b.base[i] = sides.base_.bias(token[place[i]], sides.tree_);
      row_dots(b, weights.b2, bias_gain);
      for (int i = 0; i < b.n; i++) {
        if (weights.b2.W) *own[i] += bias_gain[i];
        for (int64_t w = 0; w < W; w++) *own[i] += active[i * W + w] * leaf_gain[i * W + w];
      }
    }
  };

  const TreeBackward& a_;
  int64_t tree_;
  const Weights<T>& weights_;
  const BaseProducts<T>& base_;
};

}  // namespace FASTFF_ISA
