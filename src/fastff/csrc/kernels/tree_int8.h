// The tree family in int8, inference alone: a block of tokens goes down all trees, then the output rows that their paths
// name are added up, a block of columns at a time, so that the rows' parts that many tokens need stay in the L2 cache.
#pragma once

#include "block.h"
#include "int8.h"
#include "product_keys.h"
#include "shared_rows.h"
#include "sort.h"

namespace FASTFF_ISA {

constexpr int kGroups = 4;               // of kWalkers: while one waits for rows, the others go on
constexpr int kPathTokens = 64;          // tokens whose bytes stay in the L1 cache beside rows
constexpr int64_t kOutputTokens = 2048;  // tokens that share the output rows in the cache
constexpr int64_t kAhead = 64;           // output rows that are asked for before they are needed
constexpr int64_t kNeurons = 16;         // of a leaf, from which on tokens that reach it go through it together,
constexpr int64_t kReaching = 8;         // where there are so many for each

// What tokens put out: terms of factor * row, as many for each token, of rows that each names and of those of the master
// leaf, which all have; both a multiple of 4.
struct Terms {
  int64_t count, all;  // of rows that are named, and with those of the master leaf
  int32_t* row;        // (tokens, count)
  int8_t* factor;      // (tokens, all)
  Quantised* of;       // (tokens,)

  Terms from(int64_t token) const { return {count, all, row + token * count, factor + token * all, of + token}; }
};

// What the neurons of leaves put out, where tokens that reach a leaf go through it together: of each tree the tokens in
// the order of their leaves, and factors of all output rows of the leaf, those of the sides that do not count being 0.
struct LeafTerms {
  int64_t width;     // factors of a token and tree, a multiple of 4
  int32_t* order;    // (trees, tokens)
  int32_t* place;    // (trees, tokens): where a token is in that order
  int8_t* factor;    // (trees, tokens in that order, width)
};

template <class T>
class TreeInt8Pass {
 public:
  // together: whether leaves' neurons are no terms that tokens name, but `LeafTerms`.
  TreeInt8Pass(const TreeInt8& a, bool together)
      : a_(a), nodes_((int64_t(1) << a.D) - 1), I_(whole_lines(a.I)), R_(whole_lines(a.R)),
        own_((a.S ? a.D : 0) + (together ? 0 : a.W) + a.leaf_bias), together_(together) {}

  int64_t leaf_terms() const { return together_ ? divide_up(a_.W * a_.leaf_S, 4) * 4 : 0; }
  int64_t terms() const { return divide_up(a_.K * own_, 4) * 4; }
  int64_t shared_terms() const { return divide_up(a_.master, 4) * 4; }

  // The terms of tokens [first, first + n).
  void paths(int64_t first, int64_t n, const Terms& terms, const LeafTerms& leaf) const {
    int64_t K = a_.K, count = terms.count, all = terms.all, own = K * own_, master = a_.master;
    int64_t total = all + (together_ ? K * a_.W : 0);  // values of a token
    Scratch<int8_t> q(n * I_), z(a_.projects ? n * R_ : 0), factor(whole_lines(total));
    Scratch<Quantised> x(n);
    Scratch<float> hidden(n * master);
    for (int64_t t = 0; t < n; t++) x[t] = quantise((const T*)a_.x + (first + t) * a_.I, a_.I, q + t * I_, I_);
    if (a_.dense_rows) project(n, q, x, z, hidden);
    Walk walk{first * K, n * K, divide_up(n * K, kWalkers) * kWalkers, a_.projects ? z : q, x};
    Scratch<int32_t> row(own_ * walk.stride);
    Scratch<float> value(own_ * walk.stride), every((together_ ? n : 1) * total);
    walk.row = row;
    walk.value = value;
    if (a_.heads) find_leaves(first, n, walk);
    for (int64_t w = 0; w < walk.n; w += kGroups * kWalkers) descend(walk, w);
    if (together_) through_leaves(first, n, walk, leaf, every + all, total);
    const float* master_scale = a_.out_scale + a_.out_count;
    for (int64_t t = 0; t < n; t++) {
      int32_t* rows = terms.row + t * count;
      float* values = every + (together_ ? t * total : 0);
      memset(values, 0, all * sizeof(float));
      for (int64_t slot = 0; slot < own_; slot++) {
        memcpy(rows + slot * K, walk.row + slot * walk.stride + t * K, K * sizeof(int32_t));
        memcpy(values + slot * K, walk.value + slot * walk.stride + t * K, K * sizeof(float));
      }
      for (int64_t i = own; i < count; i++) rows[i] = 0;
      for (int64_t i = 0; i < master; i++) values[count + i] = hidden[t * master + i] * master_scale[i];
      terms.of[t] = quantise((const float*)values, total, factor, whole_lines(total));
      memcpy(terms.factor + t * all, factor, all);
      for (int64_t k = 0; together_ && k < K; k++) {
        int8_t* to = leaf.factor + (k * n + leaf.place[k * n + t]) * leaf.width;
        terms.of[t].total += by_sides(factor + all + k * a_.W, to, leaf.width);
      }
    }
  }

  // y of tokens [first, first + n), whose terms are given, those of leaves too.
  void put_out_together(int64_t first, int64_t n, const Terms& terms, const LeafTerms& leaf) const {
    int64_t K = a_.K, L = a_.leaves, count = terms.count, shared = shared_terms(), rows = a_.W * a_.leaf_S;
    Scratch<ColumnSums> sums(n);
    Scratch<uint8_t> fours(leaf.width * kColumnBlock);
    for (int64_t c = 0; c < divide_up(a_.O, kColumnBlock); c++) {
      const uint8_t* block = a_.out_rows + c * a_.out_count * kColumnBlock;
      for (int64_t t = 0; t < n; t += kSharedTokens) {
        const int8_t* factor = terms.factor + t * terms.all;
        int together = int(least(kSharedTokens, n - t));
        for (int i = 0; i < together; i++)
          sums[t + i] = add_terms(block, terms.row + (t + i) * count, factor + i * terms.all, count, terms.of[t + i].total);
        if (shared)
          add_shared(sums + t, together, a_.master_rows + c * shared * kColumnBlock, factor + count, terms.all, shared);
      }
      for (int64_t k = 0; k < K; k++)
        for_leaves(first, n, k, leaf, [&](int64_t from, int64_t end, int64_t own) {
          const uint8_t* of_leaf = block + (K * nodes_ * a_.S + (k * L + own) * rows) * kColumnBlock;
          for (int64_t r = 0; r < leaf.width; r += 4) {
            const uint8_t* four[4];  // the last again in place of what is missing: its factor is 0
            for (int64_t j = 0; j < 4; j++) four[j] = of_leaf + least(r + j, rows - 1) * kColumnBlock;
            interleave(four, fours + r * kColumnBlock);
          }
          for (int64_t p = from; p < end; p += kSharedTokens) {
            alignas(64) ColumnSums some[kSharedTokens];
            const int32_t* token = leaf.order + k * n + p;
            int together = int(least(kSharedTokens, end - p));
            for (int i = 0; i < together; i++) some[i] = sums[token[i]];
            add_shared(some, together, fours, leaf.factor + (k * n + p) * leaf.width, leaf.width, leaf.width);
            for (int i = 0; i < together; i++) sums[token[i]] = some[i];
          }
        });
      for (int64_t t = 0; t < n; t++)
        write(sums[t], terms.of[t].scale, (T*)a_.y + (first + t) * a_.O + c * kColumnBlock,
              least(kColumnBlock, a_.O - c * kColumnBlock));
    }
  }

  // y of tokens [first, first + n), whose terms are given.
  void put_out(int64_t first, int64_t n, const Terms& terms) const {
    int64_t blocks = divide_up(a_.O, kColumnBlock), count = terms.count, shared = shared_terms();
    int64_t ahead = most(1, kAhead / count);
    auto block = [&](int64_t c) { return a_.out_rows + c * a_.out_count * kColumnBlock; };
    auto ask = [&](int64_t next) {
      if (next >= blocks * n) return;
      const uint8_t* rows = block(next / n);
      const int32_t* row = terms.row + next % n * count;
      for (int64_t i = 0; i < count; i++) __builtin_prefetch(rows + int64_t(row[i]) * kColumnBlock);
      const T* y = (const T*)a_.y + (first + next % n) * a_.O + next / n * kColumnBlock;
      for (size_t i = 0; i < kColumnBlock * sizeof(T); i += 64) __builtin_prefetch((const char*)y + i, 1);
    };
    for (int64_t c = 0; c < blocks; c++)
      for (int64_t t = 0; t < n; t += kSharedTokens) {
        alignas(64) ColumnSums sums[kSharedTokens];
        const int8_t* factor = terms.factor + t * terms.all;
        int together = int(least(kSharedTokens, n - t));
        for (int i = 0; i < together; i++) {
          ask(c * n + t + i + ahead);
          sums[i] = add_terms(block(c), terms.row + (t + i) * count, factor + i * terms.all, count, terms.of[t + i].total);
        }
        if (shared)
          add_shared(sums, together, a_.master_rows + c * shared * kColumnBlock, factor + count, terms.all, shared);
        for (int i = 0; i < together; i++)
          write(sums[i], terms.of[t + i].scale, (T*)a_.y + (first + t + i) * a_.O + c * kColumnBlock,
                least(kColumnBlock, a_.O - c * kColumnBlock));
      }
  }

 private:
  // A block of tokens on its way: walker t K + k is token t in tree k.
  struct Walk {
    int64_t first, n, stride;  // the first among all walkers, how many, and with what makes them whole groups
    const int8_t* bytes;
    const Quantised* x;        // (tokens,)
    int32_t* row = nullptr;    // (terms of a tree, stride): output rows,
    float* value = nullptr;    // and what they are multiplied with
  };
  // Walkers side by side; the places after the last repeat it.
  struct Group {
    int64_t first;
    int n;
    int32_t tree[kWalkers], node[kWalkers], row[kWalkers], total[kWalkers];
    float scale[kWalkers], logit[kWalkers];
    const int8_t* x[kWalkers];
  };

  // The leaves of tokens [first, first + n) by product keys, and the softmax over a head's, which weighs them.
  void find_leaves(int64_t first, int64_t n, const Walk& walk) const {
    int64_t H = a_.heads, F = a_.F, k = a_.top_k, rows = whole_lines(H * F);
    Scratch<float> value(kSharedTokens * rows), query(n * H * F);
    for (int64_t t = 0; t < n; t += kSharedTokens) {
      int count = int(least(kSharedTokens, n - t));
      shared_products(a_.query_rows, a_.query_scale, rows, walk.bytes + t * R_, R_, walk.x + t, count, value);
      for (int i = 0; i < count; i++) copy(query + (t + i) * H * F, value + i * rows, H * F);
    }
    for (int64_t q = 0; q < n * H; q++) normalise(query + q * F, F);
    float* gate = a_.logits + first * a_.K;
    product_keys({n * H, a_.n, F, k, query, a_.keys, gate, a_.leaf + first * a_.K}, Pool{1, nullptr});
    for (int64_t q = 0; q < n * H; q++) {  // scores descend
      float *g = gate + q * k, best = g[0], sum = 0;
      for (int64_t p = 0; p < k; p++) sum += g[p] = __builtin_expf(g[p] - best);
      for (int64_t p = 0; p < k; p++) g[p] /= sum;
    }
  }

  // Products with the rows that every token has: LayerNorm of the projection, in bytes again, and the hidden neurons of
  // the master leaf.
  void project(int64_t n, int8_t* q, Quantised* x, int8_t* z, float* hidden) const {
    int64_t rank = a_.projects ? R_ : 0, rows = rank + whole_lines(a_.master);
    Scratch<float> value(kSharedTokens * rows);
    for (int64_t t = 0; t < n; t += kSharedTokens) {
      int count = int(least(kSharedTokens, n - t));
      shared_products(a_.dense_rows, a_.dense_scale, rows, q + t * I_, I_, x + t, count, value);
      for (int i = 0; i < count; i++) {
        float* v = value + i * rows;
        if (a_.master) {
          for (int64_t h = 0; h < a_.master; h++) v[rank + h] += a_.dense_bias[h];
          activate(a_.activation, v + rank, a_.master, hidden + (t + i) * a_.master, nullptr);
        }
        if (!a_.projects) continue;
        normalise(v, a_.R);
        x[t + i] = quantise(v, a_.R, z + (t + i) * R_, R_);
      }
    }
  }

  // Calls f(from, end, leaf) for the runs of tokens, in the order of tree k, that reach one leaf.
  template <class F>
  void for_leaves(int64_t first, int64_t n, int64_t k, const LeafTerms& leaf, const F& f) const {
    auto of = [&](int64_t p) { return a_.leaf[(first + leaf.order[k * n + p]) * a_.K + k]; };
    for (int64_t from = 0, end; from < n; from = end) {
      for (end = from + 1; end < n && of(end) == of(from);) end++;
      f(from, end, of(from));
    }
  }

  // What the neurons of the leaves that tokens have reached are worth, at value[token * stride + tree * W]; of two sides
  // the sign says which counts.
  void through_leaves(int64_t first, int64_t n, const Walk& walk, const LeafTerms& leaf, float* value,
                      int64_t stride) const {
    int64_t K = a_.K, W = a_.W, H = a_.H(), N = nodes_, sides = a_.leaf_S;
    Scratch<float> scale(sides * W);  // of the output rows of a leaf, side after side
    Scratch<float> logit(4 * H);
    for (int64_t k = 0; k < K; k++) {
      int32_t* order = leaf.order + k * n;
      sort_by_key(a_.leaf + first * K + k, K, n, N + 1, order);
      for (int64_t p = 0; p < n; p++) leaf.place[k * n + order[p]] = int32_t(p);
      for_leaves(first, n, k, leaf, [&](int64_t from, int64_t end, int64_t own) {
        int64_t reached = k * (N + 1) + own, neuron = reached * W;
        for (int64_t w = 0; w < W; w++)
          for (int64_t s = 0; s < sides; s++) scale[s * W + w] = a_.out_scale[K * N * a_.S + (neuron + w) * sides + s];
        for (int64_t p = from; p < end; p += 4) {
          int64_t token[4];
          for (int64_t j = 0; j < 4; j++) token[j] = order[least(p + j, end - 1)];
          logits_together(walk, K * N + reached * H, token, logit);
          for (int64_t j = 0; j < least(4, end - p); j++) {
            float *v = value + token[j] * stride + k * W, *own_logit = logit + j * H;
            if (a_.gated)
              activate_gated(a_.activation, own_logit, 1, W, v, nullptr);
            else if (sides == 1)
              activate(a_.activation, own_logit, W, v, nullptr);
            else
              copy(v, own_logit, W);
            for (int64_t w = 0; w < W; w += kLanes) {  // the last neurons perhaps alone
              int64_t n = least(kLanes, W - w), right = (sides - 1) * W;
              Vec z = {}, low = {}, high = {};
              memcpy(&z, v + w, n * sizeof(float));
              memcpy(&low, scale + w, n * sizeof(float));
              memcpy(&high, scale + right + w, n * sizeof(float));
              z *= select(z >= 0.0f, high, low);
              memcpy(v + w, &z, n * sizeof(float));
            }
          }
        }
      });
    }
  }

  // Of four tokens with the H rows of a leaf, four at a time, of which the last may be looked at twice; `row` is the
  // first: (4, H).
  void logits_together(const Walk& walk, int64_t row, const int64_t (&token)[4], float* found) const {
    int64_t H = a_.H();
    const int8_t* x[4];
    int32_t zero[kWalkers], dot[kWalkers];
    float of_token[kWalkers], scale[kWalkers], bias[kWalkers], logit[kWalkers];
    for (int64_t j = 0; j < 4; j++) {
      const Quantised& of = walk.x[token[j]];
      x[j] = walk.bytes + token[j] * R_;
      for (int64_t i = 4 * j; i < 4 * j + 4; i++) {
        of_token[i] = of.scale;
        zero[i] = kCentred ? 0 : 128 * of.total;
      }
    }
    for (int64_t start = 0; start < H; start += 4) {
      int64_t h = least(start, H - 4), own = row + h;
      const uint8_t* rows[4];
      for (int64_t i = 0; i < 4; i++) rows[i] = a_.in_rows + (own + i) * R_;
      dots_together(rows, x, R_, dot);
      for (int64_t j = 0; j < 4; j++) {
        memcpy(scale + 4 * j, a_.in_scale + own, 4 * sizeof(float));
        memcpy(bias + 4 * j, a_.in_bias + own, 4 * sizeof(float));
      }
      for (int i = 0; i < kWalkers; i += kLanes) {
        Ints sum = load_as<Ints>(dot + i) - load_as<Ints>(zero + i);
        Vec both = load_as<Vec>(of_token + i) * load_as<Vec>(scale + i);
        store_plain(logit + i, rounded(__builtin_convertvector(sum, Vec) * both) + load_as<Vec>(bias + i));
      }
      for (int64_t j = 0; j < 4; j++) memcpy(found + j * H + h, logit + 4 * j, 4 * sizeof(float));
    }
  }

  // The factors of a leaf's rows from those of its neurons; returns what this adds to the sum of factors.
  int32_t by_sides(const int8_t* factor, int8_t* to, int64_t width) const {
    int64_t W = a_.W, rows = W * a_.leaf_S;
    memset(to + rows, 0, width - rows);
    if (a_.leaf_S == 1) {
      memcpy(to, factor, W);
      return 0;
    }
    int32_t negative = 0;
    for (int64_t w = 0; w < W; w++) {
      int8_t f = factor[w];
      to[2 * w] = f < 0 ? int8_t(-f) : int8_t(0);
      to[2 * w + 1] = f > 0 ? f : int8_t(0);
      negative += f < 0 ? f : 0;
    }
    return -2 * negative;
  }

  // Walkers from `begin` on, as many groups as go side by side.
  void descend(const Walk& walk, int64_t begin) const {
    int64_t D = a_.D, K = a_.K;
    Group groups[kGroups];
    int used = 0;
    for (int64_t first = begin; used < kGroups && first < walk.n; first += kWalkers) enter(walk, first, groups[used++]);
    int32_t N = int32_t(nodes_), H = int32_t(a_.H()), S = int32_t(a_.S);
    for (int64_t level = 0; level < D; level++)
      for (int g = 0; g < used; g++) {
        Group& group = groups[g];
        logits(group);
        memcpy(a_.logits + level * a_.T * K + walk.first + group.first, group.logit, group.n * sizeof(float));
        if (S) put(walk, level, group, 0, S, group.row);
        bool last = level + 1 == D;
        int32_t base = last ? int32_t(K) * N : 0, stride = last ? (N + 1) * H : N, width = last ? H : 1;
        int32_t shift = last ? N : 0;
        for (int i = 0; i < kWalkers; i++) {
          group.node[i] = 2 * group.node[i] + 1 + (group.logit[i] >= 0.0f);
          group.row[i] = base + group.tree[i] * stride + (group.node[i] - shift) * width;
        }
        if (R_ > kColumnBlock && (!last || (H && !together_)))
          for (int i = 0; i < group.n; i++) prefetch_row(a_.in_rows + int64_t(group.row[i]) * R_, R_);
      }
    for (int g = 0; g < used; g++) leaves(walk, groups[g]);
  }

  void enter(const Walk& walk, int64_t first, Group& group) const {
    int64_t K = a_.K, token = first / K, tree = first % K;
    group.first = first;
    group.n = int(least(kWalkers, walk.n - first));
    for (int i = 0; i < kWalkers; i++) {
      group.tree[i] = a_.heads ? 0 : int32_t(tree);
      group.node[i] = a_.heads ? int32_t(a_.leaf[walk.first + first + least(i, group.n - 1)]) : 0;
      group.row[i] = int32_t(a_.heads ? group.node[i] * a_.H() : tree * (a_.D ? nodes_ : a_.H()));
      group.x[i] = walk.bytes + token * R_;
      group.scale[i] = walk.x[token].scale;
      group.total[i] = kCentred ? 0 : 128 * walk.x[token].total;
      if (i + 1 < group.n && ++tree == K) tree = 0, token++;
    }
  }

  void leaves(const Walk& walk, Group& group) const {
    int32_t K = int32_t(a_.K), N = int32_t(nodes_), W = int32_t(a_.W), sides = int32_t(a_.leaf_S);
    int64_t slot = a_.S ? a_.D : 0;
    for (int i = 0; i < group.n; i++) a_.leaf[walk.first + group.first + i] = group.node[i] - N;
    int32_t outputs = K * N * int32_t(a_.S);  // rows before those of leaves
    int32_t neuron[kWalkers];
    for (int i = 0; i < kWalkers; i++) neuron[i] = (group.tree[i] * (N + 1) + group.node[i] - N) * W;
    if (W >= kWalkers && !together_)
      for (int i = 0; i < group.n; i++) wide_leaf(walk, slot, group, i, outputs + neuron[i] * sides);
    for (int32_t w = 0; w < W && W < kWalkers; w++) {
      float gate[kWalkers];
      logits_and_gates(group, gate);
      put(walk, slot + w, group, outputs, sides, neuron, gate);
      for (int i = 0; a_.heads && i < group.n; i++)
        walk.value[(slot + w) * walk.stride + group.first + i] *= a_.logits[walk.first + group.first + i];
      for (int i = 0; i < kWalkers; i++) group.row[i]++, neuron[i]++;
    }
    if (!together_) slot += W;
    if (!a_.leaf_bias) return;
    outputs += K * (N + 1) * W * sides;
    for (int i = 0; i < kWalkers; i++) {
      int32_t out = outputs + group.tree[i] * (N + 1) + group.node[i] - N;
      walk.row[slot * walk.stride + group.first + i] = out;
      walk.value[slot * walk.stride + group.first + i] = a_.out_scale[out];
    }
  }

  // The terms of the leaf of walker i, whose output rows begin at `base`: its neurons side by side, in place of walkers,
  // which may be few.
  void wide_leaf(const Walk& walk, int64_t slot, const Group& group, int i, int32_t base) const {
    int32_t W = int32_t(a_.W), sides = int32_t(a_.leaf_S);
    Group own = group;
    for (int j = 0; j < kWalkers; j++) {
      own.x[j] = group.x[i];
      own.scale[j] = group.scale[i];
      own.total[j] = group.total[i];
    }
    for (int32_t first = 0; first < W; first += kWalkers) {
      int count = int(least(kWalkers, W - first));
      float gate[kWalkers], factor[kWalkers];
      for (int j = 0; j < kWalkers; j++) own.row[j] = group.row[i] + first + int32_t(least(j, count - 1));
      logits_and_gates(own, gate);
      factors(own, sides, gate, factor);
      for (int j = 0; j < count; j++) {
        int64_t at = (slot + first + j) * walk.stride + group.first + i;
        walk.row[at] = base + (first + j) * sides + (sides == 2 && own.logit[j] >= 0.0f);
        walk.value[at] = factor[j] * a_.out_scale[walk.row[at]];
      }
    }
  }

  // The logits of leaf neurons and, where they are gated, what gates them.
  void logits_and_gates(Group& group, float* gate) const {
    if (a_.gated) {
      for (int i = 0; i < kWalkers; i++) group.row[i] += int32_t(a_.W);
      logits(group);
      copy(gate, group.logit, kWalkers);
      for (int i = 0; i < kWalkers; i++) group.row[i] -= int32_t(a_.W);
    }
    logits(group);
  }

  // What neurons, whose logits the group has, multiply their output rows with; `gate` may be null.
  void factors(const Group& group, int32_t sides, const float* gate, float* factor) const {
    amplitudes(a_.activation, sides, group.logit, kWalkers, factor, nullptr);
    for (int i = 0; gate && a_.gated && i < kWalkers; i++) factor[i] *= gate[i];
  }

  // The terms of neurons whose logits the group has: of `sides` rows each, from row `base` on.
  void put(const Walk& walk, int64_t slot, const Group& group, int32_t base, int32_t sides, const int32_t* neuron,
           const float* gate = nullptr) const {
    int32_t* row = walk.row + slot * walk.stride + group.first;
    float *value = walk.value + slot * walk.stride + group.first, factor[kWalkers];
    factors(group, sides, gate, factor);
    for (int i = 0; i < kWalkers; i++) row[i] = base + neuron[i] * sides + (sides == 2 && group.logit[i] >= 0.0f);
    for (int i = 0; i < kWalkers; i++) value[i] = factor[i] * a_.out_scale[row[i]];
  }

  void logits(Group& group) const {
    float scale[kWalkers], bias[kWalkers];
    int32_t dot[kWalkers];
    dots(a_.in_rows, group.row, group.x, R_, dot);
    for (int i = 0; i < kWalkers; i++) scale[i] = group.scale[i] * a_.in_scale[group.row[i]];
    for (int i = 0; i < kWalkers; i++) bias[i] = a_.in_bias[group.row[i]];
    for (int i = 0; i < kWalkers; i += kLanes) {
      Ints sum = load_as<Ints>(dot + i) - load_as<Ints>(group.total + i);
      store_plain(group.logit + i, rounded(__builtin_convertvector(sum, Vec) * load_as<Vec>(scale + i)) +
                                       load_as<Vec>(bias + i));
    }
  }

  static void write(const ColumnSums& sum, float scale, T* y, int64_t n) {
    T all[kColumnBlock];
    T* to = n == kColumnBlock ? y : all;
    for (int i = 0; i < kColumnBlock / kLanes; i++)
      store_plain(to + i * kLanes, __builtin_convertvector(sum.part[i], Vec) * scale);
    if (to == all) memcpy(y, all, n * sizeof(T));
  }

  const TreeInt8& a_;
  int64_t nodes_, I_, R_, own_;  // own_: terms of a tree for each token
  bool together_;
};

template <class T>
void tree_int8(const TreeInt8& a, const Pool& pool) {
  int64_t share = most(1, least(kOutputTokens, divide_up(a.T, pool.threads)));
  bool together = a.W >= kNeurons && share >= kReaching << a.D && !a.heads;
  TreeInt8Pass<T> pass(a, together);
  int64_t count = pass.terms(), all = count + pass.shared_terms(), width = pass.leaf_terms();
  for_each(pool, divide_up(a.T, share), [&](int64_t i) {
    int64_t first = i * share, n = least(share, a.T - first);
    Scratch<int32_t> row(n * count);
    Scratch<int8_t> factor(n * all);
    Scratch<Quantised> of(n);
    Terms terms{count, all, row, factor, of};
    Scratch<int32_t> order(together ? a.K * n : 0), place(together ? a.K * n : 0);
    Scratch<int8_t> leaf_factor(a.K * n * width);
    LeafTerms leaf{width, order, place, leaf_factor};
    Tiles tiles;
    if (together) {
      pass.paths(first, n, terms, leaf);
      pass.put_out_together(first, n, terms, leaf);
      return;
    }
    for (int64_t t = 0; t < n; t += kPathTokens)
      pass.paths(first + t, least(kPathTokens, n - t), terms.from(t), leaf);
    pass.put_out(first, n, terms);
  });
}

}  // namespace FASTFF_ISA
