// The operator of product keys.
#include "arguments.h"

namespace fastff {

static std::tuple<Tensor, Tensor> product_keys(Tensor query, Tensor keys, int64_t count) {
  STD_TORCH_CHECK(query.dim() == 2, "query must have 2 dimensions (Q, F), got ", query.dim());
  STD_TORCH_CHECK(keys.dim() == 3, "keys must have 3 dimensions (2, n, F / 2), got ", keys.dim());
  ProductKeys a{};
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
  Tensor score = empty({a.Q, a.k}, ScalarType::Float), pair = empty({a.Q, a.k}, ScalarType::Long);
  a.query = (const float*)query.const_data_ptr();
  a.keys = (const float*)keys.const_data_ptr();
  a.score = (float*)score.mutable_data_ptr();
  a.pair = (int64_t*)pair.mutable_data_ptr();
  kernels().product_keys(a, pool());
  return {score, pair};
}

STABLE_TORCH_LIBRARY_IMPL(fastff, CPU, m) { m.impl("product_keys", TORCH_BOX(&product_keys)); }

}  // namespace fastff
