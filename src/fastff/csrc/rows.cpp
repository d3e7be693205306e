// The operators of RowwiseAdamW, in place.
#include "arguments.h"

namespace fastff {

static AdamWRows checked(Tensor& weight, Tensor& mean, Tensor& square, Tensor& pending, Tensor& behind, Tensor& rows,
                         double eps) {
  STD_TORCH_CHECK(weight.dim() == 2, "weight must have 2 dimensions (R, E), got ", weight.dim());
  STD_TORCH_CHECK(rows.dim() == 1, "rows must have 1 dimension (U,), got ", rows.dim());
  AdamWRows a{};
  a.R = weight.size(0);
  a.E = weight.size(1);
  a.U = rows.size(0);
  check("weight", weight, ScalarType::Float, {a.R, a.E});
  check("mean", mean, ScalarType::Float, {a.R, a.E});
  check("square", square, ScalarType::Float, {a.R, a.E});
  check("pending", pending, ScalarType::Double, {9, a.R});
  check("behind", behind, ScalarType::Bool, {a.R});
  check("rows", rows, ScalarType::Long, {a.U});
  for (Tensor* t : {&weight, &mean, &square, &pending, &behind})
    STD_TORCH_CHECK(t->is_contiguous(), "weight, mean, square, pending and behind must be contiguous");
  rows = in_order(rows);
  a.rows = (const int64_t*)rows.const_data_ptr();
  check_values("rows", rows, a.R);
  for (int64_t u = 1; u < a.U; u++) STD_TORCH_CHECK(a.rows[u - 1] < a.rows[u], "rows must ascend");
  a.weight = (float*)weight.mutable_data_ptr();
  a.mean = (float*)mean.mutable_data_ptr();
  a.square = (float*)square.mutable_data_ptr();
  a.pending = (double*)pending.mutable_data_ptr();
  a.behind = (bool*)behind.mutable_data_ptr();
  a.eps = eps;
  return a;
}

static void bring_rows(Tensor weight, Tensor mean, Tensor square, Tensor pending, Tensor behind, Tensor rows,
                       double eps) {
  kernels().adamw_rows(checked(weight, mean, square, pending, behind, rows, eps), pool());
}

static void step_rows(Tensor weight, Tensor mean, Tensor square, Tensor pending, Tensor behind, Tensor rows, double eps,
                      Tensor grad, bool all, double lr, double beta1, double beta2, double weight_decay, double step) {
  AdamWRows a = checked(weight, mean, square, pending, behind, rows, eps);
  check("grad", grad, ScalarType::Float, {a.U, a.E});
  grad = in_order(grad);
  a.grad = (const float*)grad.const_data_ptr();
  a.all = all;
  a.lr = lr;
  a.beta1 = beta1;
  a.beta2 = beta2;
  a.weight_decay = weight_decay;
  a.step = step;
  kernels().adamw_rows(a, pool());
}

STABLE_TORCH_LIBRARY_IMPL(fastff, CPU, m) {
  m.impl("bring_rows", TORCH_BOX(&bring_rows));
  m.impl("step_rows", TORCH_BOX(&step_rows));
}

}  // namespace fastff
