// The operator of the tree family.
#include <string.h>

#include "arguments.h"

namespace fastff {

// The tensors behind a `Tree`, kept while it is used.
struct TreeTensors {
  Tensor x, node_weight, node_bias;
  OptionalTensor node_out, w1, b1, w2, b2, base_w1, base_b1, base_w2, base_b2, mask;
};

static void check_w2(const char* name, const Tensor& tensor, ScalarType dtype, const Tree& a, int64_t leaves) {
  if (a.leaf_S == 2)
    check(name, tensor, dtype, {a.K, leaves, a.W, 2, a.O});
  else
    check(name, tensor, dtype, {a.K, leaves, a.W, a.O});
}

static Tree checked(TreeTensors& t, int64_t activation) {
  STD_TORCH_CHECK(t.x.is_cpu(), "x must be on the CPU");
  dtype_of(t.x);
  STD_TORCH_CHECK(t.x.dim() == 2, "x must have 2 dimensions (T, I), got ", t.x.dim());
  STD_TORCH_CHECK(t.node_weight.dim() == 3, "node_weight must have 3 dimensions (K, N, I), got ", t.node_weight.dim());
  auto dtype = t.x.scalar_type();
  Tree a{};
  a.T = t.x.size(0);
  a.I = t.x.size(1);
  a.K = t.node_weight.size(0);
  STD_TORCH_CHECK(a.I > 0, "x must have at least one feature");
  STD_TORCH_CHECK(a.K > 0, "node_weight must have at least one tree");
  int64_t N = t.node_weight.size(1), L = N + 1;
  while ((int64_t(1) << a.D) < L) a.D++;
  STD_TORCH_CHECK(L == int64_t(1) << a.D, "a complete binary tree has 2^depth - 1 nodes, got ", N);
  STD_TORCH_CHECK(a.T < int64_t(1) << 31, "x must have fewer than 2^31 tokens, got ", a.T);
  STD_TORCH_CHECK(t.node_out || t.w1, "node_out or leaves must be given: a tree without both has no output");
  check("node_weight", t.node_weight, dtype, {a.K, N, a.I});
  check("node_bias", t.node_bias, dtype, {a.K, N});
  if (t.node_out) {
    int64_t dim = t.node_out->dim();
    STD_TORCH_CHECK(dim == 3 || dim == 4, "node_out must have dimensions (K, N, O) or (K, N, S, O), got ", dim);
    a.S = dim == 4 ? t.node_out->size(2) : 1;
    a.O = t.node_out->size(dim - 1);
    STD_TORCH_CHECK(a.S == 1 || a.S == 2, "node_out must have 1 or 2 rows a node, got ", a.S);
    if (dim == 4)
      check("node_out", *t.node_out, dtype, {a.K, N, a.S, a.O});
    else
      check("node_out", *t.node_out, dtype, {a.K, N, a.O});
  }
  bool all = t.b1 && t.w2;
  STD_TORCH_CHECK(t.w1 ? all : !(t.b1 || t.w2 || t.b2), "w1, b1 and w2 must be given together, and b2 with them alone");
  if (t.w1) {
    int64_t dim = t.w2->dim();
    STD_TORCH_CHECK(t.w1->dim() == 4, "w1 must have 4 dimensions (K, L, W, I), got ", t.w1->dim());
    STD_TORCH_CHECK(dim == 4 || dim == 5, "w2 must have dimensions (K, L, W, O) or (K, L, W, 2, O), got ", dim);
    a.W = t.w2->size(2);
    a.leaf_S = dim - 3;
    a.gated = a.leaf_S == 1 && t.w1->size(2) == 2 * a.W;
    STD_TORCH_CHECK(a.W > 0, "a leaf must have neurons, got w2 with none");
    if (!t.node_out) a.O = t.w2->size(dim - 1);
    check("w1", *t.w1, dtype, {a.K, L, a.H(), a.I});
    check("b1", *t.b1, dtype, {a.K, L, a.H()});
    check_w2("w2", *t.w2, dtype, a, L);
    if (t.b2) check("b2", *t.b2, dtype, {a.K, L, a.O});
  }
  if (t.base_w1 || t.base_b1 || t.base_w2 || t.base_b2) {
    STD_TORCH_CHECK(t.w1, "a base needs leaves");
    STD_TORCH_CHECK(t.base_w1 && t.base_b1 && t.base_w2 && !t.base_b2 == !t.b2,
                    "all of a base must be given together, base_b2 where there is a b2");
    check("base_w1", *t.base_w1, dtype, {a.K, 1, a.H(), a.I});
    check("base_b1", *t.base_b1, dtype, {a.K, 1, a.H()});
    check_w2("base_w2", *t.base_w2, dtype, a, 1);
    if (t.base_b2) check("base_b2", *t.base_b2, dtype, {a.K, 1, a.O});
  }
  if (t.mask) check("mask", *t.mask, dtype, {a.T, a.K, a.W});
  a.activation = Activation(check_choice("activation", activation, 5));

  t.x = in_order(t.x);
  t.node_weight = in_order(t.node_weight);
  t.node_bias = in_order(t.node_bias);
  for (OptionalTensor* optional : {&t.node_out, &t.w1, &t.b1, &t.w2, &t.b2, &t.base_w1, &t.base_b1, &t.base_w2, &t.base_b2,
                                   &t.mask})
    *optional = in_order(*optional);
  a.x = t.x.const_data_ptr();
  a.node_weight = t.node_weight.const_data_ptr();
  a.node_bias = t.node_bias.const_data_ptr();
  a.node_out = data(t.node_out);
  a.w1 = data(t.w1);
  a.b1 = data(t.b1);
  a.w2 = data(t.w2);
  a.b2 = data(t.b2);
  a.base_w1 = data(t.base_w1);
  a.base_b1 = data(t.base_b1);
  a.base_w2 = data(t.base_w2);
  a.base_b2 = data(t.base_b2);
  a.mask = data(t.mask);
  return a;
}

static std::tuple<Tensor, Tensor, Tensor, Tensor> run(TreeTensors& t, int64_t activation, bool keep_hidden) {
  TreeForward a{};
  static_cast<Tree&>(a) = checked(t, activation);
  auto dtype = t.x.scalar_type();
  Tensor y = empty({a.T, a.O}, dtype);
  Tensor logits = empty({a.T, a.K, a.D}, ScalarType::Float);
  Tensor leaf = empty({a.T, a.K}, ScalarType::Long);
  Tensor hidden = keep_hidden ? empty({a.T, a.K, a.H()}, ScalarType::Float) : leaf;
  a.y = y.mutable_data_ptr();
  a.logits = (float*)logits.mutable_data_ptr();
  a.leaf = (int64_t*)leaf.mutable_data_ptr();
  a.hidden = keep_hidden ? (float*)hidden.mutable_data_ptr() : nullptr;
  kernels().tree_forward[int(dtype_of(t.x))](a, pool());
  return {y, logits, leaf, hidden};
}

static std::tuple<Tensor, Tensor, Tensor, Tensor> tree(
    Tensor x, Tensor node_weight, Tensor node_bias, OptionalTensor node_out, OptionalTensor w1, OptionalTensor b1,
    OptionalTensor w2, OptionalTensor b2, OptionalTensor base_w1, OptionalTensor base_b1, OptionalTensor base_w2,
    OptionalTensor base_b2, OptionalTensor mask, OptionalTensor levels, int64_t activation, int64_t gradient,
    bool sparse) {
  (void)levels, (void)gradient, (void)sparse;  // of the backward
  TreeTensors t{x, node_weight, node_bias, node_out, w1, b1, w2, b2, base_w1, base_b1, base_w2, base_b2, mask};
  return run(t, activation, true);
}

// The forward where nothing learns: fewer arguments and results, which for one token cost more than the kernel.
// `weights` are node_weight and node_bias, then node_out, the leaves' w1, b1, w2 and b2, and the base's, if there: which
// are, their dimensions and number tell.
static std::tuple<Tensor, Tensor, Tensor> tree_infer(Tensor x, std::vector<Tensor> weights, int64_t activation) {
  size_t count = weights.size(), next = 2;
  bool contributes = count == 3 || (count > 3 && weights[3].dim() == 4);
  size_t leaves = count - 2 - contributes;
  STD_TORCH_CHECK(count > 2 && (leaves == 0 || leaves == 3 || leaves == 4 || leaves == 6 || leaves == 8),
                  "weights must be 2 of the decisions, 0 or 1 node_out, 0, 3 or 4 of leaves, and as many of a base, got ",
                  count);
  TreeTensors t{x, weights[0], weights[1], {}, {}, {}, {}, {}, {}, {}, {}, {}, {}};
  if (contributes) t.node_out = weights[next++];
  bool biases = leaves % 4 == 0;
  for (OptionalTensor* part : {&t.w1, &t.b1, &t.w2, &t.b2, &t.base_w1, &t.base_b1, &t.base_w2, &t.base_b2})
    if (next < count && (biases || (part != &t.b2 && part != &t.base_b2))) *part = weights[next++];
  auto [y, logits, leaf, hidden] = run(t, activation, false);
  return {y, logits, leaf};
}

// Rows of the nodes (all trees', breadth first) and leaves that tokens pass, ascending, and for each node and leaf its
// place among them.
struct Touched {
  Tensor nodes, leaves;
  std::vector<int64_t> node_row, leaf_row;
};

static Tensor listed(std::vector<int64_t>& row) {  // turns flags into places
  int64_t count = 0;
  for (int64_t& r : row) count += r;
  Tensor index = empty({count}, ScalarType::Long);
  int64_t* out = (int64_t*)index.mutable_data_ptr();
  int64_t place = 0;
  for (size_t i = 0; i < row.size(); i++)
    if (row[i]) {
      out[place] = int64_t(i);
      row[i] = place++;
    }
  return index;
}

static Touched touched_rows(const TreeBackward& a) {
  Touched t;
  int64_t L = int64_t(1) << a.D, N = L - 1;
  t.node_row.resize(a.K * N);
  t.leaf_row.resize(a.K * L);
  for (int64_t i = 0; i < a.T * a.K; i++) {
    int64_t k = i % a.K, leaf = a.leaf[i];
    t.leaf_row[k * L + leaf] = 1;
    for (int64_t node = (leaf + N - 1) / 2, level = a.D; level > 0; level--, node = (node - 1) / 2)
      t.node_row[k * N + node] = 1;
  }
  t.nodes = listed(t.node_row);
  t.leaves = listed(t.leaf_row);
  return t;
}

// Gradients in the order of the bits of `needs`: x, node_weight, node_bias, node_out, w1, b1, w2, b2, base_w1, base_b1,
// base_w2, base_b2; without elements where the bit is 0. With `rows` the gradients of weights hold only the rows of the nodes and leaves that tokens pass,
// which the last two tensors list.
static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                  Tensor>
tree_backward(
    Tensor grad_y, OptionalTensor grad_logits, Tensor x, Tensor node_weight, Tensor node_bias, OptionalTensor node_out,
    OptionalTensor w1, OptionalTensor b1, OptionalTensor w2, OptionalTensor b2, OptionalTensor base_w1, OptionalTensor base_b1, OptionalTensor base_w2,
    OptionalTensor base_b2, OptionalTensor mask, Tensor logits,
    Tensor leaf, Tensor hidden, OptionalTensor levels, int64_t activation, int64_t gradient, int64_t needs, bool rows) {
  TreeTensors t{x, node_weight, node_bias, node_out, w1, b1, w2, b2, base_w1, base_b1, base_w2, base_b2, mask};
  TreeBackward a{};
  static_cast<Tree&>(a) = checked(t, activation);
  a.gradient = Gradient(check_choice("gradient", gradient, 4));
  auto dtype = x.scalar_type();
  int64_t N = (int64_t(1) << a.D) - 1, L = N + 1;
  check("grad_y", grad_y, dtype, {a.T, a.O});
  check("logits", logits, ScalarType::Float, {a.T, a.K, a.D});
  check("leaf", leaf, ScalarType::Long, {a.T, a.K});
  check("hidden", hidden, ScalarType::Float, {a.T, a.K, a.H()});
  if (grad_logits) check("grad_logits", *grad_logits, ScalarType::Float, {a.T, a.K, a.D});
  STD_TORCH_CHECK(a.gradient != Gradient::sampled || levels, "levels must be given with sampled gradients");
  if (levels) check("levels", *levels, ScalarType::Long, {a.T, a.K});
  grad_y = in_order(grad_y);
  logits = in_order(logits);
  leaf = in_order(leaf);
  hidden = in_order(hidden);
  grad_logits = in_order(grad_logits);
  levels = in_order(levels);
  check_values("leaf", leaf, L);
  if (levels && a.D) check_values("levels", *levels, a.D);

  a.grad_y = grad_y.const_data_ptr();
  a.grad_logits = (const float*)data(grad_logits);
  a.logits = (const float*)logits.const_data_ptr();
  a.leaf = (const int64_t*)leaf.const_data_ptr();
  a.hidden = (const float*)hidden.const_data_ptr();
  a.levels = (const int64_t*)data(levels);

  Touched touched{empty({0}, ScalarType::Long), empty({0}, ScalarType::Long), {}, {}};
  if (rows) {
    touched = touched_rows(a);
    a.node_row = touched.node_row.data();
    a.leaf_row = touched.leaf_row.data();
  }
  auto gradient_of = [&](int bit, void*& pointer, bool exists, const Tensor* index, const Shape& blocks, Shape shape) {
    bool needed = exists && (needs >> bit & 1);
    if (!needed) return empty({0}, dtype);
    if (index && rows)
      shape.insert(shape.begin(), index->size(0));
    else
      shape.insert(shape.begin(), blocks.begin(), blocks.end());
    Tensor result = empty(shape, dtype);
    pointer = result.mutable_data_ptr();
    return result;
  };
  Shape nodes{a.K, N}, leaves{a.K, L}, w2_shape{a.W, a.O};
  if (a.leaf_S == 2) w2_shape.insert(w2_shape.begin() + 1, 2);
  std::tuple result{
      gradient_of(0, a.grad_x, true, nullptr, {a.T}, {a.I}),
      gradient_of(1, a.grad_node_weight, true, &touched.nodes, nodes, {a.I}),
      gradient_of(2, a.grad_node_bias, true, &touched.nodes, nodes, {}),
      gradient_of(3, a.grad_node_out, a.S > 0, &touched.nodes, nodes,
                  node_out && node_out->dim() == 3 ? Shape{a.O} : Shape{a.S, a.O}),
      gradient_of(4, a.grad_w1, a.W > 0, &touched.leaves, leaves, {a.H(), a.I}),
      gradient_of(5, a.grad_b1, a.W > 0, &touched.leaves, leaves, {a.H()}),
      gradient_of(6, a.grad_w2, a.W > 0, &touched.leaves, leaves, w2_shape),
      gradient_of(7, a.grad_b2, b2.has_value(), &touched.leaves, leaves, {a.O}),
      gradient_of(8, a.grad_base_w1, a.base_w1, nullptr, {a.K, 1}, {a.H(), a.I}),
      gradient_of(9, a.grad_base_b1, a.base_w1, nullptr, {a.K, 1}, {a.H()}),
      gradient_of(10, a.grad_base_w2, a.base_w1, nullptr, {a.K, 1}, w2_shape),
      gradient_of(11, a.grad_base_b2, base_b2.has_value(), nullptr, {a.K, 1}, {a.O}),
      touched.nodes,
      touched.leaves,
  };
  // A node that tokens pass on one side only has no token for the other side's row.
  if (rows && a.grad_node_out) memset(a.grad_node_out, 0, std::get<3>(result).numel() * x.element_size());
  kernels().tree_backward[int(dtype_of(x))](a, pool());
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(fastff, CPU, m) {
  m.impl("tree", TORCH_BOX(&tree));
  m.impl("tree_infer", TORCH_BOX(&tree_infer));
  m.impl("tree_backward", TORCH_BOX(&tree_backward));
}

}  // namespace fastff
