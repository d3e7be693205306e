// The operator of trees in int8.
#include <string.h>

#include "arguments.h"

namespace fastff {

constexpr int64_t kLine = 64;
static int64_t whole_lines(int64_t n) { return (n + kLine - 1) / kLine * kLine; }

// `weights` are in_rows, in_scale, in_bias, out_rows, out_scale; if there is a projection or a master leaf the dense rows,
// their scale and bias, and the output rows of the master leaf; if there are heads the rows of queries, their scale, and
// the keys. `shape` is as `names` says; rank 0: no projection; heads 0: decisions find the leaves.
static std::tuple<Tensor, Tensor, Tensor> tree_int8(Tensor x, std::vector<Tensor> weights, std::vector<int64_t> shape,
                                                    int64_t activation) {
  STD_TORCH_CHECK(x.is_cpu(), "x must be on the CPU");
  STD_TORCH_CHECK(x.dim() == 2, "x must have 2 dimensions (T, I), got ", x.dim());
  constexpr size_t kNumbers = 13;
  STD_TORCH_CHECK(shape.size() == kNumbers, "shape must be ", kNumbers, " numbers, got ", shape.size());
  constexpr int64_t kMany = int64_t(1) << 31, kSquare = 1 << 15;  // whose square is not too many
  const char* names[] = {"trees", "depth",  "sides", "leaf_width", "leaf_sides", "leaf_bias",   "out_features",
                         "rank",  "master", "gated", "heads",      "keys",       "key_features"};
  const int64_t least[] = {1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0};
  const int64_t end[] = {kMany, 31, 3, kMany, 3, 2, kMany, kMany, kMany, 2, kMany, kSquare, kMany};
  for (size_t i = 0; i < kNumbers; i++)
    STD_TORCH_CHECK(least[i] <= shape[i] && shape[i] < end[i], names[i], " must be from ", least[i], " to ", end[i] - 1,
                    ", got ", shape[i]);
  TreeInt8 a{};
  a.T = x.size(0);
  a.I = x.size(1);
  a.K = shape[0];
  a.D = shape[1];
  a.S = shape[2];
  a.W = shape[3];
  a.leaf_S = shape[4];
  a.leaf_bias = shape[5];
  a.O = shape[6];
  a.projects = shape[7] > 0;
  a.R = a.projects ? shape[7] : a.I;
  a.master = shape[8];
  a.gated = shape[9];
  a.heads = shape[10];
  a.n = shape[11];
  a.F = shape[12];
  a.leaves = a.heads ? a.n * a.n : int64_t(1) << a.D;
  a.activation = Activation(check_choice("activation", activation, 5));
  STD_TORCH_CHECK(a.T < kMany, "x must have fewer than 2^31 tokens, got ", a.T);
  STD_TORCH_CHECK(a.I > 0, "x must have at least one feature");
  STD_TORCH_CHECK(a.S || (a.W && a.leaf_S) || a.leaf_bias, "nodes or leaves must put something out");
  STD_TORCH_CHECK(!a.W == !a.leaf_S, "leaf_sides must be 0 where leaf_width is, got ", a.leaf_S, " and ", a.W);
  STD_TORCH_CHECK(!a.gated || a.leaf_S == 1, "leaf_sides must be 1 where neurons are gated, got ", a.leaf_S);
  if (a.heads) {
    STD_TORCH_CHECK(a.n && a.F && a.F % 2 == 0, "keys and key_features must be more than 0, the latter even");
    STD_TORCH_CHECK(a.K % a.heads == 0 && a.K / a.heads <= a.leaves, "trees must be heads times at most keys^2");
    STD_TORCH_CHECK(!a.D && !a.S && a.leaf_S == 1 && a.W < 16 && !a.leaf_bias,
                    "with heads there must be no depth, leaves of at most 15 one-sided neurons, and no leaf_bias");
    a.top_k = a.K / a.heads;
  }
  bool dense = a.projects || a.master;
  size_t count = 5 + (dense ? 4 : 0) + (a.heads ? 3 : 0);
  STD_TORCH_CHECK(weights.size() == count, "weights must be ", count, " tensors, got ", weights.size());
  int64_t trees = a.heads ? 1 : a.K, L = a.leaves, N = (int64_t(1) << a.D) - 1;
  STD_TORCH_CHECK(double(trees) * L * (1 + a.H()) * 2 < kMany, "a tree in int8 must have fewer than 2^31 rows");
  int64_t M = trees * (N + L * a.H()), P = trees * (N * a.S + L * (a.W * a.leaf_S + a.leaf_bias));
  int64_t columns = whole_lines(a.R), blocks = whole_lines(a.O) / kLine;
  check("in_rows", weights[0], ScalarType::Byte, {M, columns});
  check("in_scale", weights[1], ScalarType::Float, {M});
  check("in_bias", weights[2], ScalarType::Float, {M});
  check("out_rows", weights[3], ScalarType::Byte, {blocks, P, kLine});
  check("out_scale", weights[4], ScalarType::Float, {P + a.master});
  if (dense) {
    int64_t rows = (a.projects ? columns : 0) + whole_lines(a.master);
    check("dense_rows", weights[5], ScalarType::Byte, {rows / kLine, whole_lines(a.I) / 4, kLine, 4});
    check("dense_scale", weights[6], ScalarType::Float, {rows});
    check("dense_bias", weights[7], ScalarType::Float, {a.master});
    check("master_rows", weights[8], ScalarType::Byte, {blocks, (a.master + 3) / 4, kLine, 4});
  }
  if (a.heads) {
    int64_t rows = whole_lines(a.heads * a.F);
    check("query_rows", weights[count - 3], ScalarType::Byte, {rows / kLine, columns / 4, kLine, 4});
    check("query_scale", weights[count - 2], ScalarType::Float, {rows});
    check("keys", weights[count - 1], ScalarType::Float, {2, a.n, a.F / 2});
  }
  x = in_order(x);
  for (Tensor& weight : weights) weight = in_order(weight);
  auto bytes = [&](size_t i) { return (const uint8_t*)weights[i].const_data_ptr(); };
  auto floats = [&](size_t i) { return (const float*)weights[i].const_data_ptr(); };
  a.x = x.const_data_ptr();
  a.in_rows = bytes(0);
  a.in_scale = floats(1);
  a.in_bias = floats(2);
  a.out_rows = bytes(3);
  a.out_count = P;
  a.out_scale = floats(4);
  if (dense) {
    a.dense_rows = bytes(5);
    a.dense_scale = floats(6);
    a.dense_bias = floats(7);
    a.master_rows = bytes(8);
  }
  if (a.heads) {
    a.query_rows = bytes(count - 3);
    a.query_scale = floats(count - 2);
    a.keys = floats(count - 1);
  }
  auto dtype = dtype_of(x);
  Tensor y = empty({a.T, a.O}, x.scalar_type());
  Tensor logits = empty({a.heads ? 1 : a.D, a.T, a.K}, ScalarType::Float);
  Tensor leaf = empty({a.T, a.K}, ScalarType::Long);
  a.y = y.mutable_data_ptr();
  a.logits = (float*)logits.mutable_data_ptr();
  a.leaf = (int64_t*)leaf.mutable_data_ptr();
  kernels().tree_int8[int(dtype)](a, pool());
  return {y, logits, leaf};
}

// A copy in large pages, if it is large: a token reads rows here and there, each in a page of its own otherwise.
static Tensor in_large_pages(Tensor bytes) {
  STD_TORCH_CHECK(bytes.is_cpu() && bytes.scalar_type() == ScalarType::Byte, "bytes must be uint8 on the CPU");
  bytes = in_order(bytes);
  auto sizes = bytes.sizes();
  Tensor copy = empty(Shape(sizes.begin(), sizes.end()), ScalarType::Byte);
  if (bytes.numel()) memcpy(copy.mutable_data_ptr(), bytes.const_data_ptr(), bytes.numel());  // null is no source
  return copy;
}

STABLE_TORCH_LIBRARY_IMPL(fastff, CPU, m) {
  m.impl("tree_int8", TORCH_BOX(&tree_int8));
  m.impl("in_large_pages", TORCH_BOX(&in_large_pages));
}

}  // namespace fastff
