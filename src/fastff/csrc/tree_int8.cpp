// The operator of trees in int8.
#include "arguments.h"

namespace fastff {

constexpr int64_t kLine = 64;
static int64_t whole_lines(int64_t n) { return (n + kLine - 1) / kLine * kLine; }

// `weights` are in_rows, in_scale, in_bias, out_rows, out_scale and, if there is one, the projection and its scale;
// `shape` is trees, depth, sides, leaf_width, leaf_sides, leaf_bias, out_features, features.
static std::tuple<Tensor, Tensor, Tensor> tree_int8(Tensor x, std::vector<Tensor> weights, std::vector<int64_t> shape,
                                                    int64_t activation) {
  STD_TORCH_CHECK(x.is_cpu(), "x must be on the CPU");
  STD_TORCH_CHECK(x.dim() == 2, "x must have 2 dimensions (T, I), got ", x.dim());
  STD_TORCH_CHECK(weights.size() == 5 || weights.size() == 7, "weights must be 5 tensors, or 7 with a projection, got ",
                  weights.size());
  STD_TORCH_CHECK(shape.size() == 8, "shape must be 8 numbers, got ", shape.size());
  constexpr int64_t kMany = int64_t(1) << 31;
  const char* names[] = {"trees", "depth", "sides", "leaf_width", "leaf_sides", "leaf_bias", "out_features", "features"};
  const int64_t least[] = {1, 0, 0, 0, 0, 0, 1, 1}, end[] = {kMany, 31, 3, kMany, 3, 2, kMany, kMany};
  for (int i = 0; i < 8; i++)
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
  a.R = shape[7];
  a.activation = Activation(check_choice("activation", activation, 5));
  STD_TORCH_CHECK(a.T < kMany, "x must have fewer than 2^31 tokens, got ", a.T);
  STD_TORCH_CHECK(a.I > 0, "x must have at least one feature");
  STD_TORCH_CHECK(a.S || (a.W && a.leaf_S) || a.leaf_bias, "nodes or leaves must put something out");
  STD_TORCH_CHECK(!a.W == !a.leaf_S, "leaf_sides must be 0 where leaf_width is, got ", a.leaf_S, " and ", a.W);
  bool projects = weights.size() == 7;
  STD_TORCH_CHECK(projects || a.R == a.I, "x must have ", a.R, " features, got ", a.I);
  int64_t L = int64_t(1) << a.D, N = L - 1;
  STD_TORCH_CHECK(double(a.K) * L * (1 + a.W) * 2 < kMany, "a tree in int8 must have fewer than 2^31 rows");
  int64_t M = a.K * (N + L * a.W), P = a.K * (N * a.S + L * (a.W * a.leaf_S + a.leaf_bias));
  int64_t columns = whole_lines(a.R), blocks = whole_lines(a.O) / kLine;
  check("in_rows", weights[0], ScalarType::Byte, {M, columns});
  check("in_scale", weights[1], ScalarType::Float, {M});
  check("in_bias", weights[2], ScalarType::Float, {M});
  check("out_rows", weights[3], ScalarType::Byte, {blocks, P, kLine});
  check("out_scale", weights[4], ScalarType::Float, {P});
  if (projects) {
    check("projection", weights[5], ScalarType::Byte, {columns, whole_lines(a.I)});
    check("projection_scale", weights[6], ScalarType::Float, {columns});
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
  if (projects) {
    a.projection = bytes(5);
    a.projection_scale = floats(6);
  }
  auto dtype = dtype_of(x);
  Tensor y = empty({a.T, a.O}, x.scalar_type());
  Tensor logits = empty({a.D, a.T, a.K}, ScalarType::Float);
  Tensor leaf = empty({a.T, a.K}, ScalarType::Long);
  a.y = y.mutable_data_ptr();
  a.logits = (float*)logits.mutable_data_ptr();
  a.leaf = (int64_t*)leaf.mutable_data_ptr();
  kernels().tree_int8[int(dtype)](a, pool());
  return {y, logits, leaf};
}

STABLE_TORCH_LIBRARY_IMPL(fastff, CPU, m) { m.impl("tree_int8", TORCH_BOX(&tree_int8)); }

}  // namespace fastff
