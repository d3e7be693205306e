// What crosses from the operators to the kernels that are compiled for each instruction set: plain memory and sizes.
//
// Shapes: T tokens, K trees, D levels, N = 2^D - 1 nodes, L = 2^D leaves, W leaf width, S output rows a node (0: nodes
// do not contribute), leaf_S of a leaf's neuron, I and O features, E experts. W is 0 where a tree has no leaves. All
// tensors are contiguous. A leaf or expert has H rows of w1: W, or 2 W where its neurons are gated, and neuron w is
// activation(z_w) z_(W + w).
#pragma once

#include <stdint.h>

namespace fastff {

enum class Activation : int64_t { relu, gelu, silu, tanh, identity };  // order of fastff.ops.ACTIVATIONS
enum class Gradient : int64_t { none, chosen, sampled, exact };
enum class DType { float32, bfloat16, float16 };
constexpr int kDTypes = 3;

// PyTorch's pool: calls task(begin, end) on parts of [0, n).
struct Pool {
  int threads;
  void (*run)(int64_t n, void (*task)(int64_t begin, int64_t end, void* context), void* context);
};

struct Tree {
  int64_t T, K, D, I, O, S, W, leaf_S;
  bool gated;  // with leaf_S = 1
  Activation activation;
  const void* x;            // (T, I)
  const void* node_weight;  // (K, N, I)
  const void* node_bias;    // (K, N)
  const void* node_out;     // (K, N, S, O) or null
  const void* w1;           // (K, L, H, I) or null
  const void* b1;           // (K, L, H)
  const void* w2;           // (K, L, W, leaf_S, O)
  const void* b2;           // (K, L, O) or null
  const void* base_w1;      // (K, H, I), added to every leaf of a tree, or null
  const void* base_b1;      // (K, H)
  const void* base_w2;      // (K, W, leaf_S, O)
  const void* base_b2;      // (K, O), there as b2 is
  const void* mask;         // (T, K, W), a factor of each hidden neuron, or null
  int64_t H() const { return gated ? 2 * W : W; }
};

struct TreeForward : Tree {
  void* y;        // (T, O)
  float* logits;  // (T, K, D)
  int64_t* leaf;  // (T, K)
  float* hidden;  // (T, K, H), before the activation, or null
};

struct TreeBackward : Tree {
  Gradient gradient;
  const void* grad_y;         // (T, O)
  const float* grad_logits;   // (T, K, D) or null
  const float* logits;        // as of the forward
  const int64_t* leaf;
  const float* hidden;
  const int64_t* levels;      // (T, K), the level drawn of each token, if sampled
  // Row of each node and leaf (K, N), (K, L) in the gradients of weights; null: a gradient has all rows, in place, and
  // rows without a token are zeroed.
  const int64_t* node_row;
  const int64_t* leaf_row;
  // Gradients, of the shapes of the parameters or, with rows, (rows, ...); null where none is asked for.
  void *grad_x, *grad_node_weight, *grad_node_bias, *grad_node_out, *grad_w1, *grad_b1, *grad_w2, *grad_b2;
  void *grad_base_w1, *grad_base_b1, *grad_base_w2, *grad_base_b2;
};

struct Indexed {
  int64_t T, S, E, I, O, W;
  bool gated;
  Activation activation;
  const void* x;         // (T, I)
  const int64_t* index;  // (T, S)
  const void* w1;        // (E, H, I)
  const void* b1;        // (E, H)
  const void* w2;        // (E, W, O)
  const void* b2;        // (E, O) or null
  const void* gate;      // (T, S) or null
  const void* mask;      // (T, S, W) or null
  int64_t H() const { return gated ? 2 * W : W; }
};

struct IndexedForward : Indexed {
  void* y;        // (T, O)
  float* hidden;  // (T, S, H), before the activation, or null
};

struct IndexedBackward : Indexed {
  const void* grad_y;   // (T, O)
  const float* hidden;  // (T, S, H)
  void *grad_x, *grad_w1, *grad_b1, *grad_w2, *grad_b2, *grad_gate;  // null where none is asked for
};

// Trees in int8, or experts that product keys find, without gradients. Bytes of weights are unsigned with a zero point of
// 128, each row has a scale; M rows of decisions and leaf neurons, P of outputs; columns are padded with zeros to
// multiples of 64. As fastff/ops/tree_int8/reference.py, which is the definition, has it.
struct TreeInt8 {
  int64_t T, K, D, I, O, S, W, leaf_S;
  bool gated;         // with leaf_S = 1
  int64_t R;          // features that decisions and leaves see: I, or those of the projection
  bool leaf_bias;     // whether a leaf has an output row of its own
  Activation activation;
  const void* x;                  // (T, I)
  const uint8_t* in_rows;         // (M, R): nodes of all trees, then the H rows of each leaf
  const float *in_scale, *in_bias;  // (M,)
  const uint8_t* out_rows;        // (O / 64, P, 64): of nodes, leaf neurons, leaves
  int64_t out_count;              // P
  const float* out_scale;         // (P + master,)
  bool projects;      // whether decisions and leaves see LayerNorm(P x)
  int64_t master;     // hidden neurons of the master leaf, which every token runs
  const uint8_t* dense_rows;  // (rows / 64, I / 4, 64, 4), R of P, if it projects, then the master leaf's; or null
  const float* dense_scale;   // as many
  const float* dense_bias;    // (master,)
  const uint8_t* master_rows;  // (O / 64, master / 4, 64, 4), its output rows, four interleaved
  int64_t heads;      // that find leaves by product keys, all among the same `leaves`; 0: decisions do, D of them
  int64_t leaves;     // of a tree, or of all heads
  int64_t top_k, n, F;  // leaves that a head finds, K = heads * top_k; keys of a half; features of a query, a head's
  const uint8_t* query_rows;  // (heads * F / 64, R / 4, 64, 4), padded
  const float *query_scale, *keys;  // as many, and (2, n, F / 2)
  void* y;        // (T, O)
  float* logits;  // (D, T, K): a level of many walkers lies together; with heads (1, T, K), how leaves are weighed
  int64_t* leaf;  // (T, K)
  int64_t H() const { return gated ? 2 * W : W; }
};

// Queries, each compared with n keys of either half; the k best pairs of a key of the first and one of the second half.
struct ProductKeys {
  int64_t Q, n, F, k;
  const float* query;  // (Q, F)
  const float* keys;   // (2, n, F / 2)
  float* score;        // (Q, k), descending
  int64_t* pair;       // (Q, k): n times the first half's key, plus the second's
};

struct ProductKeysBackward {
  int64_t Q, n, F, k;
  const float *grad, *query, *keys;  // grad (Q, k), of the scores
  const int64_t* pair;
  float *grad_query, *grad_keys;  // null where none is asked for
};

// Rows (R, E) of a parameter under AdamW; some are stepped, or brought up to date; see fastff/optim/rows.py.
struct AdamWRows {
  int64_t R, E, U;
  float *weight, *mean, *square;  // (R, E), the latter AdamW's moments
  double* pending;                // (9, R), what each row missed
  bool* behind;                   // (R,), whether its weights missed anything
  const int64_t* rows;            // (U,), ascending, each once
  double eps;
  double step;                    // its number, from 1; 0 if there is none, and what follows is not there
  const float* grad;              // (U, E)
  bool all;                       // whether the other rows step too, with a gradient of zeros, or miss it
  double lr, beta1, beta2, weight_decay;
};

// One table for each instruction set; entries by DType.
struct Kernels {
  const char* name;
  void (*tree_forward[kDTypes])(const TreeForward&, const Pool&);
  void (*tree_backward[kDTypes])(const TreeBackward&, const Pool&);
  void (*tree_int8[kDTypes])(const TreeInt8&, const Pool&);
  void (*indexed_forward[kDTypes])(const IndexedForward&, const Pool&);
  void (*indexed_backward[kDTypes])(const IndexedBackward&, const Pool&);
  void (*product_keys)(const ProductKeys&, const Pool&);  // float32
  void (*product_keys_backward)(const ProductKeysBackward&, const Pool&);
  void (*adamw_rows)(const AdamWRows&, const Pool&);  // float32
};

}  // namespace fastff
