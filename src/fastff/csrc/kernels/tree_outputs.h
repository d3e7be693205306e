// What several trees put out for many tokens whose paths are known, by blocks of columns.
//
// Tree after tree, a token's sums would be read and written again for each of them, from the L3 cache. Token after token,
// its rows would be, each from the L3 cache. So two cache lines of all rows are copied to lie together, of as many trees
// as fit the L2 cache, and all tokens' sums of these columns are taken from there. The order of additions is that of
// one tree after the other.
#pragma once

#include "block.h"
#include "sparse.h"

namespace FASTFF_ISA {

template <class T>
class TreeOutputs {
 public:
  explicit TreeOutputs(const TreeForward& a)
      : a_(a), rows_(rows(a)), each_(each(a)), trees_(a.K), row_(a.T * a.K * each_), factor_(a.T * a.K * each_) {
    for (int64_t k = 0; k < a.K; k++) new (&trees_[k]) Weights<T>(a, k);
  }

  // Whether tokens share the rows of a tree often enough to pay for the copy.
  static bool pays(const Tree& a) {
    return !a.gated && each(a) > 0 && rows(a) < int64_t(1) << 31 && a.T * each(a) >= 8 * rows(a);
  }

  void run(const Pool& pool) {
    for_tokens(pool, [&](int64_t t) {
      for (int64_t k = 0; k < a_.K; k++) list(t, k);
    });
    constexpr int kLines = 128 / (kGroup * sizeof(T)), kGroups = kLines < 4 ? kLines : 4;
    constexpr int64_t kMost = kGroups * kGroup;
    int64_t together = least(a_.K, most(1, kRowsInCache / (rows_ * kMost * int64_t(sizeof(T)))));
    Scratch<T> packed(together * rows_ * kMost);
    Scratch<Sum> sums(a_.T * kMost);
    for_columns<kGroups>(0, a_.O, [&](auto columns, int64_t c) {
      for (int64_t k = 0; k < a_.K; k += together) {
        int64_t stop = least(k + together, a_.K);
        for_each(pool, stop - k, [&](int64_t i) { pack(trees_[k + i], columns, c, packed + i * rows_ * columns.kColumns); });
        for_tokens(pool, [&](int64_t t) {
          auto sum = columns;
          if (k)
            sum.read(sums + t * columns.kColumns);
          else
            sum.zero();
          for (int64_t tree = k; tree < stop; tree++) {
            const T* own = packed + (tree - k) * rows_ * columns.kColumns;
            int64_t first = (t * a_.K + tree) * each_;
            for (int64_t i = first; i < first + each_; i++) sum.add(own + row_[i] * columns.kColumns, factor_[i]);
          }
          if (stop < a_.K)
            sum.write(sums + t * columns.kColumns);
          else
            sum.write((T*)a_.y + t * a_.O + c);
        });
      }
    });
  }

 private:
  static constexpr int64_t kTask = 256, kAhead = 24;  // tokens, rows

  // Output rows of a tree, and of those the ones that a token adds up.
  static int64_t rows(const Tree& a) {
    int64_t leaves = int64_t(1) << a.D, own = a.W * a.leaf_S + (a.b2 != nullptr);
    return (leaves - 1) * a.S + (leaves + (a.base_w2 != nullptr)) * own;
  }
  static int64_t each(const Tree& a) {
    int64_t nodes = a.S ? a.D : 0, base = a.base_w2 != nullptr;
    return nodes + (1 + base) * (a.W + (a.b2 != nullptr));
  }

  template <class F>
  void for_tokens(const Pool& pool, const F& f) const {
    for_each(pool, divide_up(a_.T, kTask), [&](int64_t task) {
      for (int64_t t = task * kTask; t < least((task + 1) * kTask, a_.T); t++) f(t);
    });
  }

  // Which of a tree's rows token t adds up, as `pack` numbers them, and the factors.
  void list(int64_t t, int64_t k) {
    int64_t D = a_.D, W = a_.W, leaf = a_.leaf[t * a_.K + k], leaves = int64_t(1) << D, at = 0;
    int32_t* row = row_ + (t * a_.K + k) * each_;
    float* factor = factor_ + (t * a_.K + k) * each_;
    if (a_.S) {
      amplitudes(a_.activation, a_.S, a_.logits + (t * a_.K + k) * D, D, factor, nullptr);
      for (int level = 0; level < D; level++) row[level] = int32_t(output_row(leaf, level, D, a_.S));
      row += D, factor += D, at += (leaves - 1) * a_.S;
    }
    if (!W) return;
    const float *z = a_.hidden + (t * a_.K + k) * W, *own = factor;
    auto add = [&](int64_t leaf, int64_t leaves) {
      for (int64_t w = 0; w < W; w++) row[w] = int32_t(at + trees_[k].w2.row(leaf, w, z));
      if (factor != own) copy(factor, own, W);
      row += W, factor += W, at += leaves * W * a_.leaf_S;
    };
    auto add_bias = [&](int64_t leaf, int64_t leaves) {
      if (!a_.b2) return;
      *row++ = int32_t(at + leaf);
      *factor++ = 1.0f;
      at += leaves;
    };
    amplitudes(a_.activation, a_.leaf_S, z, W, factor, nullptr);
    for (int64_t w = 0; a_.mask && w < W; w++) factor[w] *= to_float(((const T*)a_.mask)[(t * a_.K + k) * W + w]);
    add(leaf, leaves);
    if (a_.base_w2) add(0, 1);
    add_bias(leaf, leaves);
    if (a_.base_w2) add_bias(0, 1);
  }

  template <class Columns>
  void pack(const Weights<T>& tree, const Columns& columns, int64_t c, T* to) const {
    int64_t leaves = int64_t(1) << a_.D, neurons = a_.W * a_.leaf_S;
    auto copy = [&](const T* rows, int64_t count) {
      for (int64_t r = 0; rows && r < count; r++, to += columns.kColumns) {
        prefetch_row(rows + least(r + kAhead, count - 1) * a_.O + c, columns.kColumns * sizeof(T));
        memcpy(to, rows + r * a_.O + c, columns.width() * sizeof(T));
      }
    };
    if (a_.S) copy(tree.out, (leaves - 1) * a_.S);
    copy(tree.w2.weight, leaves * neurons);
    copy(tree.w2.base, neurons);
    copy(tree.b2.weight, tree.b2.W * leaves);
    copy(tree.b2.base, tree.b2.W);
  }

  const TreeForward& a_;
  int64_t rows_, each_;
  Scratch<Weights<T>> trees_;
  Scratch<int32_t> row_;
  Scratch<float> factor_;
};

}  // namespace FASTFF_ISA
