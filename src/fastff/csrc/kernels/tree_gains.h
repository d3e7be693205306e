// Products of grad_y with output rows of one tree: of a token's own way and of all the ways that it did not take.
#pragma once

#include "block.h"
#include "sparse.h"

namespace FASTFF_ISA {

// What `gains` of tokens are made from: of each its pairs, `each` in number, with a row and the factor that the row has
// in what is put out.
struct Pairs {
  int64_t each;
  Scratch<int32_t> row;
  Scratch<float> factor, gain;

  Pairs(int64_t tokens, int64_t each) : each(each), row(tokens * each), factor(tokens * each), gain(tokens * each) {}
};

// Of all tokens at once, by blocks of columns. A token's own pairs come first, then those of the sides not taken, from
// the root down.
template <class T>
class Gains {
 public:
  Gains(const TreeBackward& a, int64_t tree, int64_t count, const Weights<T>& weights, const BaseProducts<T>& base)
      : a_(a), tree_(tree), weights_(weights), base_(base), leaf(count, (a.D + 1) * a.W),
        bias(count, (a.D + 1) * weights.b2.W), out(count, a.S ? a.D * (a.D + 1) / 2 : 0) {}

  // Whether they are taken so: where rows are few enough. It does not depend on the tokens, so that bits do not.
  static bool serves(const TreeBackward& a) {
    int64_t L = int64_t(1) << a.D;
    return a.gradient == Gradient::exact && a.D && a.W && !a.gated && fits_blocks<T>(L * a.W * a.leaf_S) &&
           fits_blocks<T>((L - 1) * a.S);
  }

  // Of the token at `place`, the way that ends in leaf `key`, whose neurons are hidden (W,): its own (level -1), or that
  // on the other side at `level`.
  void set(int64_t place, int level, int64_t key, const float* hidden) {
    int64_t D = a_.D, W = a_.W, sides = 1 + weights_.w2.sides, at = place * leaf.each + (1 + level) * W;
    for (int64_t w = 0; w < W; w++)
      leaf.row[at + w] = int32_t((key * W + w) * sides + (weights_.w2.sides && hidden[w] >= 0.0f));
    amplitudes(a_.activation, a_.leaf_S, hidden, W, leaf.factor + at, nullptr);
    if (bias.each) bias.row[place * bias.each + 1 + level] = int32_t(key);
    if (!out.each) return;
    int64_t first = nodes_of(place, level) - level - 1;
    for (int l = level + 1; l < D; l++) out.row[first + l] = int32_t(output_row(key, l, D, a_.S));
  }

  // Of the other side at `level`, the logits of its nodes on levels [from, end), by level.
  void set_logits(int64_t place, int level, int from, int end, const float* logits) {
    if (!out.each) return;
    float* factor = out.factor + nodes_of(place, level) - level - 1;
    amplitudes(a_.activation, a_.S, logits + from, end - from, factor + from, nullptr);
  }

  // Of tokens whose places are [0, count). Adds to worth (count, D) that of the sides not taken.
  void run(const int32_t* token, int64_t count, float* worth, const Pool& pool) {
    int64_t D = a_.D, W = a_.W, L = int64_t(1) << D;
    Scratch<const T*> x(count);
    for (int64_t i = 0; i < count; i++) x[i] = (const T*)a_.grad_y + token[i] * a_.O;
    auto products = [&](Pairs& p, const T* rows, int64_t number) {
      if (p.each) SparseProducts<T>(x, count, rows, number, a_.O).run(p.row, p.each, p.gain, pool);
    };
    products(leaf, weights_.w2.weight, L * W * (1 + weights_.w2.sides));
    products(bias, weights_.b2.weight, L);
    products(out, weights_.out, (L - 1) * a_.S);
    for (int64_t i = 0; i < count; i++) {
      const float *of_leaf = base_.out(token[i], tree_), *of_bias = base_.bias(token[i], tree_);
      for (int64_t j = 0; of_leaf && j < leaf.each; j++) {
        int64_t at = i * leaf.each + j, side = weights_.w2.sides ? 2 * (j % W) + leaf.row[at] % 2 : j % W;
        leaf.gain[at] += of_leaf[side];
      }
      for (int64_t j = 0; of_bias && j < bias.each; j++) bias.gain[i * bias.each + j] += *of_bias;
      for (int64_t level = 0; level < D; level++) {
        float sum = 0.0f;
        for (int64_t j = (1 + level) * W; j < (2 + level) * W; j++)
          sum += leaf.factor[i * leaf.each + j] * leaf.gain[i * leaf.each + j];
        if (bias.each) sum += bias.gain[i * bias.each + 1 + level];
        if (out.each)
          for (int64_t j = nodes_of(i, level), stop = j + D - level - 1; j < stop; j++) sum += out.factor[j] * out.gain[j];
        worth[i * D + level] += sum;
      }
    }
  }

 private:
  // The first of those of nodes below the other side at `level`, or of the own way.
  int64_t nodes_of(int64_t place, int64_t level) const {
    return place * out.each + (level < 0 ? 0 : a_.D + level * (2 * a_.D - level - 1) / 2);
  }

  const TreeBackward& a_;
  int64_t tree_;
  const Weights<T>& weights_;
  const BaseProducts<T>& base_;

 public:
  Pairs leaf, bias, out;
};

}  // namespace FASTFF_ISA
