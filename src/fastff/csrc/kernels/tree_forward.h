// The tree family forward: descend and contribute in one pass over blocks of tokens.
#pragma once

#include "block.h"
#include "sort.h"
#include "tree_outputs.h"

namespace FASTFF_ISA {

constexpr int64_t kCache = 7 << 17;  // bytes, most of an L2 cache of 1 MB

// Levels above the end that a block may go down at once: their nodes and leaves are to fit the cache, so that sorted
// tokens read a leaf, which may be wide, about once.
template <class T>
inline int last_levels(const Tree& a) {
  int64_t bytes = ((1 + a.H()) * a.I + (1 + a.W) * a.O) * int64_t(sizeof(T));
  int levels = 1;
  while (levels < kLevelsAtOnce && levels < a.D && bytes << (levels + 1) <= kCache) levels++;
  return levels;
}
constexpr int64_t kSortFrom = 4 * kBlock;  // so many tokens, or fewer, share too few rows to be worth sorting

constexpr int64_t kWideLeaf = 8;  // neurons
constexpr int kTokensOfLeaf = 8;  // of so many on average the output rows of wide leaves are worth sharing

template <class T>
class TreeForwardPass {
 public:
  TreeForwardPass(const TreeForward& a, int64_t tree) : a_(a), tree_(tree), weights_(a, tree) {}

  // Logits, leaves and hidden neurons of all tokens, which put out nothing yet.
  void find_paths(const Pool& pool) { run(0, a_.T, (T*)nullptr, false, pool); }

  // Tokens [first, first + n); y, of which the first row is the first token's, gains the tree's output.
  template <class Y>
  void run(int64_t first, int64_t n, Y* y, bool accumulate, const Pool& pool) {
    int64_t block = most(1, least(kBlock, divide_up(n, pool.threads)));
    int last = last_levels<T>(a_);
    if (n <= kSortFrom || a_.D <= last) {
      for_each(pool, divide_up(n, block), [&](int64_t i) {
        int64_t begin = i * block;
        Block<T> b;
        for (int64_t t = begin; t < least(begin + block, n); t++) enter(b, first + t, 0);
        descend(b, weights_, a_.I, a_.D, 0, int(a_.D));
        put_out(b, first, y, accumulate);
      });
      return;
    }
    Scratch<int32_t> order(n);
    Scratch<int64_t> key(n), start(n + 1);
    for (int64_t i = 0; i < n; i++) {
      order[i] = int32_t(i);
      key[i] = 0;
    }
    for (int level = 0; level < a_.D;) {
      int end = int(a_.D - level <= last ? a_.D : least(level + kLevelsAtOnce, a_.D - 1));
      int64_t tasks = split_runs(key, order, n, block, start);
      for_each(pool, tasks, [&](int64_t task) {
        Block<T> b;
        for (int64_t i = start[task]; i < start[task + 1]; i++) enter(b, first + order[i], key[order[i]]);
        Ahead ahead;
        if (task + 1 < tasks)
          for (int64_t i = start[task + 1]; i < start[task + 2]; i++)
            ahead.add((const T*)a_.x + (first + order[i]) * a_.I, a_.I * sizeof(T));
        descend(b, weights_, a_.I, a_.D, level, end, ahead);
        if (end == a_.D) return put_out(b, first, y, accumulate);
        for (int i = 0; i < b.n; i++) key[order[start[task] + i]] = b.key[i];
      });
      level = end;
      if (level < a_.D) sort_by_key(key, 1, n, int64_t(1) << level, order);
    }
  }

 private:
  void enter(Block<T>& b, int64_t token, int64_t key) {
    int i = b.n++;
    b.x[i] = (const T*)a_.x + token * a_.I;
    b.logits[i] = a_.logits + (token * a_.K + tree_) * a_.D;
    b.key[i] = key;
    b.order[i] = i;
  }

  int64_t token(const Block<T>& b, int i) const { return (b.x[i] - (const T*)a_.x) / a_.I; }

  template <class Y>
  void put_out(const Block<T>& b, int64_t first, Y* y, bool accumulate) {
    int64_t D = a_.D, W = a_.W, H = a_.H(), O = a_.O;
    int64_t row[kBlock];  // of y
    for (int i = 0; i < b.n; i++) {
      int64_t t = token(b, i);
      row[i] = t - first;
      a_.leaf[t * a_.K + tree_] = b.key[i];
    }
    bool shares = y && W >= kWideLeaf && b.n >= kTokensOfLeaf * b.runs();
    Scratch<float> hidden(b.n * H);
    if (W) row_dots(b, weights_.w1, hidden, shares ? weights_.w2 : Rows<T>{});
    for (int i = 0; a_.hidden && i < b.n; i++)
      copy(a_.hidden + ((row[i] + first) * a_.K + tree_) * H, hidden + i * H, H);
    if (!y) return;

    Scratch<float> factor(b.n * D * (a_.S > 0)), active(b.n * W);
    for (int i = 0; a_.S && i < b.n; i++) copy(factor + i * D, b.logits[i], D);
    if (a_.S) amplitudes(a_.activation, a_.S, factor, b.n * D, factor, nullptr);
    if (W) leaf_amplitudes(a_, hidden, b.n, active, nullptr);
    for (int i = 0; a_.mask && i < b.n; i++)
      for (int64_t w = 0; w < W; w++)
        active[i * W + w] *= to_float(((const T*)a_.mask)[((row[i] + first) * a_.K + tree_) * W + w]);
    // Columns from c on of M tokens of one leaf, which share all rows.
    auto sum_up = [&]<int M>(auto columns, int64_t c, const int* tokens) {
      decltype(columns) sum[M];
      const float *own[M], *z[M], *one[M], unit = 1.0f;
      for (int m = 0; m < M; m++) {
        own[m] = active + tokens[m] * W;
        z[m] = hidden + tokens[m] * H;
        one[m] = &unit;
        sum[m] = columns;
        if (accumulate)
          sum[m].read(row_of(y, row[tokens[m]], O) + c);
        else
          sum[m].zero();
      }
      int64_t key = b.key[tokens[0]];
      for (int level = 0; a_.S && level < D; level++)
        for (int m = 0; m < M; m++)
          sum[m].add(weights_.out + output_row(key, level, D, a_.S) * O + c, factor[tokens[m] * D + level]);
      add_rows<M>(sum, weights_.w2, key, c, own, z);
      add_rows<M>(sum, weights_.b2, key, c, one, z);
      for (int m = 0; m < M; m++) sum[m].write(row_of(y, row[tokens[m]], O) + c);
    };
    if (shares)
      return for_columns<kWide / kDotTokens>(0, O, [&](auto columns, int64_t c) {
        b.for_runs([&](int begin, int end, int64_t) {
          for (int place = begin; place < end; place += kDotTokens) {
            int tokens[kDotTokens];  // the last one again where there are no more
            for (int m = 0; m < kDotTokens; m++) tokens[m] = b.order[place + m < end ? place + m : end - 1];
            sum_up.template operator()<kDotTokens>(columns, c, tokens);
          }
        });
      });
    for_columns(0, O, [&](auto columns, int64_t c) {
      for (int place = 0; place < b.n; place++) {
        if (place + 1 < b.n) {
          int next = b.order[place + 1];
          prefetch_row(row_of(y, row[next], O) + c, columns.kColumns * sizeof(Y));
          ask_path(b.key[next], b.key[b.order[place]], hidden + next * H, c, columns.kColumns * sizeof(T));
        }
        sum_up.template operator()<1>(columns, c, b.order + place);
      }
    });
  }

  // Asks for columns from c on of the output rows of a path that another one, just read, does not share.
  void ask_path(int64_t key, int64_t read, const float* z, int64_t c, int64_t bytes) const {
    if (key == read) return;
    int64_t D = a_.D, S = a_.S, shared = D - 64 + __builtin_clzll(key ^ read);  // decisions
    for (int64_t level = most(0, shared - (S == 2) + 1); S && level < D; level++)
      prefetch_row(weights_.out + output_row(key, int(level), D, S) * a_.O + c, bytes);
    for (int64_t w = 0; w < a_.W; w++) {
      prefetch_row(weights_.w2.weight + weights_.w2.row(key, w, z) * a_.O + c, bytes);
    }
  }

  const TreeForward& a_;
  int64_t tree_;
  Weights<T> weights_;
};

// Several trees are summed in float32 before they are rounded: in the output itself, if it is float32.
inline void add_trees(const TreeForward& a, int64_t first, int64_t n, float* y, const Pool& pool) {
  for (int64_t k = 0; k < a.K; k++) TreeForwardPass<float>(a, k).run(first, n, y, k > 0, pool);
}
template <class T>
inline void add_trees(const TreeForward& a, int64_t first, int64_t n, T* y, const Pool& pool) {
  Scratch<Sum> sum(n * padded(a.O));
  for (int64_t k = 0; k < a.K; k++) TreeForwardPass<T>(a, k).run(first, n, (Sum*)sum, k > 0, pool);
  round_rows(sum, y, n, a.O);
}

// Tokens that go through all trees before the next ones: few, so that their input and output stay in the cache, or many,
// so that they share the rows of deep trees.
constexpr int64_t kFewTokens = 256;

// Bytes that each of n tokens reads of a tree's rows, if those that pass a node or leaf read its rows once together.
template <class T>
inline double shared_bytes(const Tree& a, int64_t n) {
  double rows = 0;
  for (int level = 0; level <= a.D; level++) {
    double share = double(int64_t(1) << level) / double(n);
    rows += (share < 1 ? share : 1) * double(level < a.D ? a.I + (a.S > 0) * a.O : a.H() * a.I + a.W * a.O);
  }
  return rows * sizeof(T);
}

// What the leaves of all trees put out, one token after the other: its sums stay in registers.
template <class T>
inline void put_out_leaves(const TreeForward& a, int64_t begin, int64_t end) {
  int64_t K = a.K, W = a.W, H = a.H(), O = a.O, neurons = K * W;
  Scratch<Weights<T>> trees(K);
  for (int64_t k = 0; k < K; k++) new (&trees[k]) Weights<T>(a, k);
  Scratch<float> active((end - begin) * neurons);
  for (int64_t t = begin; t < end; t++) {
    float* own = active + (t - begin) * neurons;
    leaf_amplitudes(a, a.hidden + t * K * H, K, own, nullptr);
    for (int64_t i = 0; a.mask && i < neurons; i++) own[i] *= to_float(((const T*)a.mask)[t * neurons + i]);
  }
  const float one = 1.0f;
  for_columns(0, O, [&](auto columns, int64_t c) {
    for (int64_t t = begin; t < end; t++) {
      const int64_t* leaf = a.leaf + t * K;
      const float *z = a.hidden + t * K * H, *factor = active + (t - begin) * neurons;
      if (t + 1 < end)
        for (int64_t i = 0; i < neurons; i++) {
          int64_t k = i / W, row = trees[k].w2.row(leaf[K + k], i % W, z + (K + k) * H);
          prefetch_row(trees[k].w2.weight + row * O + c, columns.kColumns * sizeof(T));
        }
      columns.zero();
      for (int64_t k = 0; k < K; k++) {
        add_rows(columns, trees[k].w2, leaf[k], c, factor + k * W, z + k * H);
        add_rows(columns, trees[k].b2, leaf[k], c, &one);
      }
      columns.write((T*)a.y + t * O + c);
    }
  });
}

// In float32, twice as many bytes, copying outputs takes as long as it saves.
template <class T>
constexpr bool kCopiesOutputs = sizeof(T) == 2;

// Several trees, all paths first, so that sums need not be kept from tree to tree.
template <class T>
inline void forest_forward(const TreeForward& a, int64_t many, const Pool& pool) {
  Scratch<float> hidden(a.hidden ? 0 : many * a.K * a.H());
  for (int64_t first = 0; first < a.T; first += many) {
    TreeForward part = a;
    part.T = least(many, a.T - first);
    part.x = (const T*)a.x + first * a.I;
    part.y = (T*)a.y + first * a.O;
    part.logits = a.logits + first * a.K * a.D;
    part.leaf = a.leaf + first * a.K;
    part.hidden = a.hidden ? a.hidden + first * a.K * a.H() : hidden;
    if (a.mask) part.mask = (const T*)a.mask + first * a.K * a.W;
    for (int64_t k = 0; k < a.K; k++) TreeForwardPass<T>(part, k).find_paths(pool);
    if constexpr (kCopiesOutputs<T>)
      if (a.S) {
        TreeOutputs<T>(part).run(pool);
        continue;
      }
    for_each(pool, divide_up(part.T, kBlock), [&](int64_t i) {
      put_out_leaves<T>(part, i * kBlock, least((i + 1) * kBlock, part.T));
    });
  }
}

template <class T>
void tree_forward(const TreeForward& a, const Pool& pool) {
  T* y = (T*)a.y;
  if (a.K == 1) return TreeForwardPass<T>(a, 0).run(0, a.T, y, false, pool);
  int64_t many = least(a.T, many_tokens(a.D));
  if (!a.S || (kCopiesOutputs<T> && TreeOutputs<T>::pays(a))) return forest_forward<T>(a, many, pool);
  // A token's own bytes cost less than rows, as they come in order.
  double passing = 0.7 * double(a.I * sizeof(T) + a.O * sizeof(float));
  if (shared_bytes<T>(a, kFewTokens) - shared_bytes<T>(a, many) > passing) {
    for (int64_t first = 0; first < a.T; first += many)
      add_trees(a, first, least(many, a.T - first), y + first * a.O, pool);
    return;
  }
  int64_t n = most(1, least(kFewTokens, divide_up(a.T, pool.threads)));
  const Pool alone{1, nullptr};
  for_each(pool, divide_up(a.T, n), [&](int64_t i) {
    add_trees(a, i * n, least(n, a.T - i * n), y + i * n * a.O, alone);
  });
}

}  // namespace FASTFF_ISA
