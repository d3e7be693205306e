// The indexed feedforward: each token through the experts that it names (a mixture of experts).
#pragma once

#include "block.h"
#include "outer.h"
#include "sort.h"
#include "sparse.h"

namespace FASTFF_ISA {

constexpr int64_t kNarrowExpert = 8;  // neurons

// Whether a token goes through all of its experts at once, so that its output is written once, rather than the tokens
// of an expert together, so that its rows are read once: the better the more neurons an expert has.
inline bool token_by_token(const Indexed& a) { return a.S > 1 && a.W <= kNarrowExpert; }
// Whether sums over experts are made in one go, so that they are rounded once anyway.
inline bool sums_at_once(const Indexed& a) { return a.S <= 1 || (token_by_token(a) && a.S <= kBlock); }

// The rows of all entries, `each` of an expert.
inline void expert_rows(const Indexed& a, int64_t each, int32_t* row) {
  for (int64_t i = 0; i < a.T * a.S; i++)
    for (int64_t w = 0; w < each; w++) row[i * each + w] = int32_t(a.index[i] * each + w);
}

// Whether it is worth it to go through the experts' rows by blocks of columns: all of them lie beyond the L2 cache, a block
// does not. It does not depend on the tokens, so that bits of products do not.
template <class T>
inline bool by_columns(const Indexed& a, const Rows<T>& rows) {
  int64_t bytes = a.E * rows.W * int64_t(sizeof(T));
  return token_by_token(a) && bytes * rows.n > kRowsInCache && bytes * kGroup <= 2 * kRowsInCache;
}
// The same for sums, of which few are taken row by row, in the same order.
template <class T>
inline bool sums_by_columns(const Indexed& a, const Rows<T>& rows) {
  return by_columns(a, rows) && worth_packing(a.T * a.S, a.E);
}

// By blocks of columns, out[entry * W + w] = x[token] . row w of the entry's expert.
template <class T>
inline void entry_products(const Indexed& a, const T* x, const Rows<T>& rows, float* out, const Pool& pool) {
  Scratch<const T*> token(a.T);
  Scratch<int32_t> row(a.T * a.S * rows.W);
  for (int64_t t = 0; t < a.T; t++) token[t] = x + t * rows.n;
  expert_rows(a, rows.W, row);
  SparseProducts<T>(token, a.T, rows.weight, a.E * rows.W, rows.n).run(row, a.S * rows.W, out, pool);
}

// By blocks of columns, y[token] = sum over its entries of factor[entry * W + w] times row w of the entry's expert.
template <class T, class Y>
inline void sum_entries(const Indexed& a, const Rows<T>& rows, const float* factor, Y* y, const Pool& pool) {
  Scratch<int32_t> row(a.T * a.S * rows.W);
  expert_rows(a, rows.W, row);
  sparse_sums(rows.weight, a.E * rows.W, rows.n, (const int32_t*)row, factor, a.T, a.S * rows.W, y, pool);
}

// All entries (token t and choice s, t * S + s) in blocks, calling f(block, entry). Those of a token come in the order of
// its choices, one after the other in a block, or in blocks that no two threads work on at once.
template <class T, class F>
inline void for_expert_blocks(const Indexed& a, const T* x, int64_t columns, const Pool& pool, const F& f) {
  auto place = [&](Block<T>& b, int64_t* entries, int64_t entry) {
    b.x[b.n] = x + entry / a.S * columns;
    b.key[b.n] = a.index[entry];
    b.order[b.n] = b.n;
    entries[b.n++] = entry;
  };
  if (token_by_token(a)) {
    int64_t tokens = most(1, kBlock / a.S);
    return for_each(pool, divide_up(a.T, tokens), [&](int64_t i) {
      int64_t end = least((i + 1) * tokens, a.T) * a.S, entries[kBlock];
      for (int64_t entry = i * tokens * a.S; entry < end;) {
        Block<T> b;
        while (b.n < kBlock && entry < end) place(b, entries, entry++);
        f(b, entries);
      }
    });
  }
  Scratch<int32_t> order(a.T);
  int64_t size = most(1, least(kBlock, divide_up(a.T, pool.threads)));
  for (int64_t choice = 0; choice < a.S; choice++) {
    sort_by_key(a.index + choice, a.S, a.T, a.E, order);
    for_each(pool, divide_up(a.T, size), [&](int64_t i) {
      Block<T> b;
      int64_t entries[kBlock];
      for (int64_t t = i * size; t < least((i + 1) * size, a.T); t++) place(b, entries, order[t] * a.S + choice);
      f(b, entries);
    });
  }
}

// Adds to rows y (T, n) what add(columns, i, first) adds for entry i of a block.
template <class T, class Y, class F>
inline void add_entries(const Indexed& a, const Block<T>& b, const int64_t* entries, Y* y, int64_t n, const F& add) {
  for_columns(0, n, [&](auto columns, int64_t c) {
    for (int i = 0; i < b.n;) {
      int64_t token = entries[i] / a.S;
      Y* target = row_of(y, token, n) + c;
      if (entries[i] % a.S)
        columns.read(target);
      else
        columns.zero();
      for (; i < b.n && entries[i] / a.S == token; i++) add(columns, i, c);
      columns.write(target);
    }
  });
}

template <class T>
inline float gate_of(const Indexed& a, int64_t entry) {
  return a.gate ? to_float(((const T*)a.gate)[entry]) : 1.0f;
}
template <class T>
inline float mask_of(const Indexed& a, int64_t at) {
  return a.mask ? to_float(((const T*)a.mask)[at]) : 1.0f;
}

inline void expert_amplitudes(const Indexed& a, const float* z, int64_t tokens, float* value, float* slope) {
  if (a.gated) return activate_gated(a.activation, z, tokens, a.W, value, slope);
  activate(a.activation, z, tokens * a.W, value, slope);
}

template <class T, class Y>
void indexed_forward(const IndexedForward& a, Y* y, const Pool& pool) {
  int64_t W = a.W, H = a.H(), O = a.O;
  const Rows<T> w1{(const T*)a.w1, (const T*)a.b1, nullptr, nullptr, H, a.I};
  const Rows<T> w2{(const T*)a.w2, nullptr, nullptr, nullptr, W, O}, b2{(const T*)a.b2, nullptr, nullptr, nullptr, 1, O};
  bool later = !a.b2 && sums_by_columns(a, w2);  // whether outputs are summed when all that they are made of is known
  Scratch<float> active(later ? a.T * a.S * W : 0);
  for_expert_blocks(a, (const T*)a.x, a.I, pool, [&](const Block<T>& b, const int64_t* entries) {
    Scratch<float> z(b.n * H), hidden(b.n * W), gate(b.n);
    row_dots(b, w1, z, token_by_token(a) && !later ? w2 : Rows<T>{});
    for (int i = 0; a.hidden && i < b.n; i++) copy(a.hidden + entries[i] * H, z + i * H, H);
    expert_amplitudes(a, z, b.n, hidden, nullptr);
    for (int i = 0; i < b.n; i++) {
      gate[i] = gate_of<T>(a, entries[i]);
      for (int64_t w = 0; w < W; w++) hidden[i * W + w] *= gate[i] * mask_of<T>(a, entries[i] * W + w);
      if (later) copy(active + entries[i] * W, hidden + i * W, W);
    }
    if (later) return;
    add_entries(a, b, entries, y, O, [&](auto& columns, int i, int64_t c) {
      add_rows(columns, w2, b.key[i], c, hidden + i * W);
      if (a.b2) add_rows(columns, b2, b.key[i], c, gate + i);
    });
  });
  if (later) sum_entries(a, w2, (const float*)active, y, pool);
}

template <class T>
void indexed_forward(const IndexedForward& a, const Pool& pool) {
  if (!a.S) memset(a.y, 0, a.T * a.O * sizeof(T));
  if (sums_at_once(a) || sizeof(T) == sizeof(float)) return indexed_forward<T>(a, (T*)a.y, pool);
  Scratch<Sum> sum(a.T * padded(a.O));
  indexed_forward<T>(a, (Sum*)sum, pool);
  round_rows(sum, (T*)a.y, a.T, a.O);
}

template <class T, class X>
void indexed_backward(const IndexedBackward& a, X* grad_x, const Pool& pool) {
  int64_t W = a.W, H = a.H(), I = a.I, entries = a.T * a.S;
  const Rows<T> w1{(const T*)a.w1, nullptr, nullptr, nullptr, H, I};
  const Rows<T> w2{(const T*)a.w2, nullptr, nullptr, nullptr, W, a.O}, b2{(const T*)a.b2, nullptr, nullptr, nullptr, 1, a.O};
  Scratch<float> grad_hidden(entries * H), active(entries * W), gate(entries);
  bool before = by_columns(a, w2), later = grad_x && sums_by_columns(a, w1);
  Scratch<float> products(before ? entries * W : 0);  // of grad_y with output rows, if they are taken before all else
  if (before) entry_products(a, (const T*)a.grad_y, w2, products, pool);
  for_expert_blocks(a, (const T*)a.grad_y, a.O, pool, [&](const Block<T>& b, const int64_t* entry) {
    Scratch<float> hidden(b.n * H), value(b.n * W), slope(b.n * H), grad_active(b.n * W), out(b.n);
    for (int i = 0; i < b.n; i++) copy(hidden + i * H, a.hidden + entry[i] * H, H);
    expert_amplitudes(a, hidden, b.n, value, slope);
    if (before)
      for (int i = 0; i < b.n; i++) copy(grad_active + i * W, products + entry[i] * W, W);
    else
      row_dots(b, w2, grad_active, grad_x && !later && token_by_token(a) ? w1 : Rows<T>{});
    if (a.b2)
      row_dots(b, b2, out);
    else
      memset(out, 0, b.n * sizeof(float));
    for (int i = 0; i < b.n; i++) {
      int64_t e = entry[i];
      gate[e] = gate_of<T>(a, e);
      for (int64_t w = 0; w < W; w++) {
        float mask = mask_of<T>(a, e * W + w), gradient = grad_active[i * W + w] * mask;
        out[i] += value[i * W + w] * gradient;
        active[e * W + w] = value[i * W + w] * mask * gate[e];
        for (int64_t h = w; h < H; h += W) grad_hidden[e * H + h] = gradient * gate[e] * slope[i * H + h];
      }
      if (a.grad_gate) ((T*)a.grad_gate)[e] = from_float<T>(out[i]);
    }
    if (!grad_x || later) return;
    add_entries(a, b, entry, grad_x, I, [&](auto& columns, int i, int64_t c) {
      add_rows(columns, w1, b.key[i], c, grad_hidden + entry[i] * H);
    });
  });

  if (later) sum_entries(a, w1, (const float*)grad_hidden, grad_x, pool);
  if (!a.grad_w1 && !a.grad_b1 && !a.grad_w2 && !a.grad_b2) return;

  Scratch<int32_t> order(entries);
  Scratch<int64_t> code(entries);
  sort_by_key(a.index, 1, entries, a.E, order);
  for (int64_t i = 0; i < entries; i++) code[i] = a.index[order[i]];
  Entries e{entries, order, code, a.S};
  Scratch<Slot> in(H), out(W + 1), bias(H);
  int ins = 0, outs = 0, biases = 0;
  for (int64_t h = 0; h < H; h++) {
    Slot slot{grad_hidden + h, H, 0, 0, 0, H, h, nullptr, a.grad_w1};
    if (a.grad_w1) in[ins++] = slot;
    slot.grad = a.grad_b1;
    if (a.grad_b1) bias[biases++] = slot;
  }
  for (int64_t w = 0; a.grad_w2 && w < W; w++) out[outs++] = {active + w, W, 0, 0, 0, W, w, nullptr, a.grad_w2};
  if (a.grad_b2) out[outs++] = {gate, 1, 0, 0, 0, 1, 0, nullptr, a.grad_b2};
  const Outer<T> sums[] = {{in, ins, (const T*)a.x, I}, {out, outs, (const T*)a.grad_y, a.O}};
  outer(e, sums, 2, pool);
  for_each(pool, biases, [&](int64_t i) { outer_bias<T>(e, bias[i]); });

  Scratch<bool> touched(a.E);
  memset(touched, 0, a.E);
  for (int64_t i = 0; i < entries; i++) touched[code[i]] = true;
  for_untouched(touched, a.E, pool, [&](int64_t first, int64_t rows) {
    zero_rows<T>(a.grad_w1, first, rows, H * I);
    zero_rows<T>(a.grad_b1, first, rows, H);
    zero_rows<T>(a.grad_w2, first, rows, W * a.O);
    zero_rows<T>(a.grad_b2, first, rows, a.O);
  });
}

template <class T>
void indexed_backward(const IndexedBackward& a, const Pool& pool) {
  if (a.grad_x && !a.S) memset(a.grad_x, 0, a.T * a.I * sizeof(T));
  if (sums_at_once(a) || sizeof(T) == sizeof(float) || !a.grad_x) return indexed_backward<T>(a, (T*)a.grad_x, pool);
  Scratch<Sum> sum(a.T * padded(a.I));
  indexed_backward<T>(a, (Sum*)sum, pool);
  round_rows(sum, (T*)a.grad_x, a.T, a.I);
}

}  // namespace FASTFF_ISA
