// The operator of the indexed feedforward.
#include "arguments.h"

namespace fastff {

struct IndexedTensors {
  Tensor x, index, w1, b1, w2;
  OptionalTensor b2, gate, mask;
};

static Indexed checked(IndexedTensors& t, int64_t activation) {
  STD_TORCH_CHECK(t.x.is_cpu(), "x must be on the CPU");
  dtype_of(t.x);
  STD_TORCH_CHECK(t.x.dim() == 2, "x must have 2 dimensions (T, I), got ", t.x.dim());
  STD_TORCH_CHECK(t.index.dim() == 2, "index must have 2 dimensions (T, S), got ", t.index.dim());
  STD_TORCH_CHECK(t.w1.dim() == 3 && t.w2.dim() == 3, "w1 and w2 must have 3 dimensions (E, W, I or O)");
  auto dtype = t.x.scalar_type();
  Indexed a{};
  a.T = t.x.size(0);
  a.I = t.x.size(1);
  a.S = t.index.size(1);
  a.E = t.w1.size(0);
  a.W = t.w2.size(1);
  a.gated = a.W && t.w1.size(1) == 2 * a.W;
  a.O = t.w2.size(2);
  STD_TORCH_CHECK(a.I > 0, "x must have at least one feature");
  STD_TORCH_CHECK(a.T * a.S < int64_t(1) << 31, "x must have fewer than 2^31 tokens times experts, got ", a.T * a.S);
  check("index", t.index, ScalarType::Long, {a.T, a.S});
  check("w1", t.w1, dtype, {a.E, a.H(), a.I});
  check("b1", t.b1, dtype, {a.E, a.H()});
  check("w2", t.w2, dtype, {a.E, a.W, a.O});
  if (t.b2) check("b2", *t.b2, dtype, {a.E, a.O});
  if (t.gate) check("gate", *t.gate, dtype, {a.T, a.S});
  if (t.mask) check("mask", *t.mask, dtype, {a.T, a.S, a.W});
  a.activation = Activation(check_choice("activation", activation, 5));

  for (Tensor* tensor : {&t.x, &t.index, &t.w1, &t.b1, &t.w2}) *tensor = in_order(*tensor);
  for (OptionalTensor* optional : {&t.b2, &t.gate, &t.mask}) *optional = in_order(*optional);
  check_values("index", t.index, a.E);
  a.x = t.x.const_data_ptr();
  a.index = (const int64_t*)t.index.const_data_ptr();
  a.w1 = t.w1.const_data_ptr();
  a.b1 = t.b1.const_data_ptr();
  a.w2 = t.w2.const_data_ptr();
  a.b2 = data(t.b2);
  a.gate = data(t.gate);
  a.mask = data(t.mask);
  return a;
}

static std::tuple<Tensor, Tensor> indexed(Tensor x, Tensor index, Tensor w1, Tensor b1, Tensor w2, OptionalTensor b2,
                                          OptionalTensor gate, OptionalTensor mask, int64_t activation,
                                          bool keep_hidden) {
  IndexedTensors t{x, index, w1, b1, w2, b2, gate, mask};
  IndexedForward a{};
  static_cast<Indexed&>(a) = checked(t, activation);
  Tensor y = empty({a.T, a.O}, x.scalar_type());
  Tensor hidden = empty({keep_hidden ? a.T : 0, a.S, a.H()}, ScalarType::Float);
  a.y = y.mutable_data_ptr();
  a.hidden = keep_hidden ? (float*)hidden.mutable_data_ptr() : nullptr;
  kernels().indexed_forward[int(dtype_of(x))](a, pool());
  return {y, hidden};
}

// Gradients in the order of the bits of `needs`: x, w1, b1, w2, b2, gate; without elements where the bit is 0.
static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> indexed_backward(
    Tensor grad_y, Tensor x, Tensor index, Tensor w1, Tensor b1, Tensor w2, OptionalTensor b2, OptionalTensor gate,
    OptionalTensor mask, Tensor hidden, int64_t activation, int64_t needs) {
  IndexedTensors t{x, index, w1, b1, w2, b2, gate, mask};
  IndexedBackward a{};
  static_cast<Indexed&>(a) = checked(t, activation);
  auto dtype = x.scalar_type();
  check("grad_y", grad_y, dtype, {a.T, a.O});
  check("hidden", hidden, ScalarType::Float, {a.T, a.S, a.H()});
  grad_y = in_order(grad_y);
  hidden = in_order(hidden);
  a.grad_y = grad_y.const_data_ptr();
  a.hidden = (const float*)hidden.const_data_ptr();
  auto gradient_of = [&](int bit, void*& pointer, const Shape& shape) {
    bool needed = needs >> bit & 1 && (bit != 4 || t.b2);
    Tensor result = empty(needed ? shape : Shape{0}, dtype);
    if (needed) pointer = result.mutable_data_ptr();
    return result;
  };
  std::tuple result{
      gradient_of(0, a.grad_x, {a.T, a.I}),       gradient_of(1, a.grad_w1, {a.E, a.H(), a.I}),
      gradient_of(2, a.grad_b1, {a.E, a.H()}),      gradient_of(3, a.grad_w2, {a.E, a.W, a.O}),
      gradient_of(4, a.grad_b2, {a.E, a.O}),      gradient_of(5, a.grad_gate, {a.T, a.S}),
  };
  kernels().indexed_backward[int(dtype_of(x))](a, pool());
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(fastff, CPU, m) {
  m.impl("indexed", TORCH_BOX(&indexed));
  m.impl("indexed_backward", TORCH_BOX(&indexed_backward));
}

}  // namespace fastff
