// The operator of product keys.
#include "arguments.h"

namespace fastff {

// What both operators have.
template <class Arguments>
static Arguments checked(Tensor& query, Tensor& keys, int64_t count) {
  STD_TORCH_CHECK(query.dim() == 2, "query must have 2 dimensions (Q, F), got ", query.dim());
  STD_TORCH_CHECK(keys.dim() == 3, "keys must have 3 dimensions (2, n, F / 2), got ", keys.dim());
  Arguments a{};
  a.Q = query.size(0);
  a.F = query.size(1);
  a.n = keys.size(1);
  a.k = count;
  STD_TORCH_CHECK(a.F % 2 == 0, "query must have an even number of features, got ", a.F);
  STD_TORCH_CHECK(0 < a.n && a.n < 1 << 15, "keys must be from 1 to 32767 a half, got ", a.n);
  STD_TORCH_CHECK(0 < a.k && a.k <= a.n * a.n, "count must be from 1 to ", a.n * a.n, ", got ", count);
  check("query", query, ScalarType::Float, {a.Q, a.F});
  check("keys", keys, ScalarType::Float, {2, a.n, a.F / 2});
  query = in_order(query);
  keys = in_order(keys);
  a.query = (const float*)query.const_data_ptr();
  a.keys = (const float*)keys.const_data_ptr();
  return a;
}

static std::tuple<Tensor, Tensor> product_keys(Tensor query, Tensor keys, int64_t count) {
  auto a = checked<ProductKeys>(query, keys, count);
  Tensor score = empty({a.Q, a.k}, ScalarType::Float), pair = empty({a.Q, a.k}, ScalarType::Long);
  a.score = (float*)score.mutable_data_ptr();
  a.pair = (int64_t*)pair.mutable_data_ptr();
  kernels().product_keys(a, pool());
  return {score, pair};
}

// Gradients in the order of the bits of `needs`: query, keys; without elements where the bit is 0.
static std::tuple<Tensor, Tensor> product_keys_backward(Tensor grad, Tensor query, Tensor keys, Tensor pair,
                                                        int64_t needs) {
  STD_TORCH_CHECK(pair.dim() == 2, "pair must have 2 dimensions (Q, k), got ", pair.dim());
  auto a = checked<ProductKeysBackward>(query, keys, pair.size(1));
  check("grad", grad, ScalarType::Float, {a.Q, a.k});
  check("pair", pair, ScalarType::Long, {a.Q, a.k});
  grad = in_order(grad);
  pair = in_order(pair);
  check_values("pair", pair, a.n * a.n);
  a.grad = (const float*)grad.const_data_ptr();
  a.pair = (const int64_t*)pair.const_data_ptr();
  Tensor grad_query = empty(needs & 1 ? Shape{a.Q, a.F} : Shape{0}, ScalarType::Float);
  Tensor grad_keys = empty(needs & 2 ? Shape{2, a.n, a.F / 2} : Shape{0}, ScalarType::Float);
  a.grad_query = needs & 1 ? (float*)grad_query.mutable_data_ptr() : nullptr;
  a.grad_keys = needs & 2 ? (float*)grad_keys.mutable_data_ptr() : nullptr;
  kernels().product_keys_backward(a, pool());
  return {grad_query, grad_keys};
}

STABLE_TORCH_LIBRARY_IMPL(fastff, CPU, m) {
  m.impl("product_keys", TORCH_BOX(&product_keys));
  m.impl("product_keys_backward", TORCH_BOX(&product_keys_backward));
}

}  // namespace fastff
