// Tensors as the kernels want them: checked before any memory is touched, contiguous, plain pointers.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "abi.h"

namespace fastff {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Shape = std::vector<int64_t>;

// The kernels of the instruction set that this processor has, and the threads of PyTorch's pool.
const Kernels& kernels();
Pool pool();

// The place of a dtype in the tables of kernels; raises for one that they do not have.
DType dtype_of(const Tensor& x);

// Raises unless the tensor is on the CPU, of that dtype and shape.
void check(const char* name, const Tensor& tensor, ScalarType dtype, std::initializer_list<int64_t> shape);

// Raises unless `value`, in words what `name` is, lies in [0, end).
int64_t check_choice(const char* name, int64_t value, int64_t end);

// Raises unless all values of an int64 tensor lie in [0, end).
void check_values(const char* name, const Tensor& tensor, int64_t end);

// The tensor contiguous: a copy only where it is not. It must outlive the pointers taken from it.
Tensor in_order(const Tensor& tensor);
inline OptionalTensor in_order(const OptionalTensor& t) { return t ? OptionalTensor(in_order(*t)) : std::nullopt; }

inline const void* data(const OptionalTensor& t) { return t ? t->const_data_ptr() : nullptr; }

// Uninitialised memory for float32, bfloat16, float16, uint8 or int64.
Tensor empty(const Shape& shape, ScalarType dtype);

}  // namespace fastff
