#include "arguments.h"

#include <algorithm>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastff {

template <class Sizes>
static std::string text(const Sizes& sizes) {
  std::string result = "(";
  for (int64_t size : sizes) result += (result.size() > 1 ? ", " : "") + std::to_string(size);
  return result + ")";
}

DType dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return DType::float32;
    case ScalarType::BFloat16: return DType::bfloat16;
    case ScalarType::Half: return DType::float16;
    default: STD_TORCH_CHECK(false, "x must be float32, bfloat16 or float16, got ", toString(x.scalar_type()));
  }
}

void check(const char* name, const Tensor& tensor, ScalarType dtype, std::initializer_list<int64_t> shape) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, " must be on the CPU as x is");
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " must be ", toString(dtype), ", got ",
                  toString(tensor.scalar_type()));
  auto sizes = tensor.sizes();
  STD_TORCH_CHECK(std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end()), name, " must be of shape ",
                  text(shape), ", got ", text(sizes));
}

int64_t check_choice(const char* name, int64_t value, int64_t end) {
  STD_TORCH_CHECK(0 <= value && value < end, name, " must be from 0 to ", end - 1, ", got ", value);
  return value;
}

void check_values(const char* name, const Tensor& tensor, int64_t end) {
  const int64_t* value = (const int64_t*)tensor.const_data_ptr();
  int64_t low = 0, high = 0;
  for (int64_t i = 0, n = tensor.numel(); i < n; i++) {
    low = std::min(low, value[i]);
    high = std::max(high, value[i]);
  }
  STD_TORCH_CHECK(low >= 0 && high < end, name, " must hold values from 0 to ", end - 1, ", got values from ", low,
                  " to ", high);
}

Tensor in_order(const Tensor& tensor) { return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor); }

// Through the C interface: the operator `empty` costs a third of a call for one token.
Tensor empty(const Shape& shape, ScalarType dtype) {
  int64_t strides[5] = {}, stride = 1;
  for (size_t i = shape.size(); i-- > 0; stride *= shape[i] > 1 ? shape[i] : 1) strides[i] = stride;
  int32_t code = dtype == ScalarType::Float      ? aoti_torch_dtype_float32()
                 : dtype == ScalarType::BFloat16 ? aoti_torch_dtype_bfloat16()
                 : dtype == ScalarType::Half     ? aoti_torch_dtype_float16()
                 : dtype == ScalarType::Byte     ? aoti_torch_dtype_uint8()
                                                 : aoti_torch_dtype_int64();
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(shape.size(), shape.data(), strides, code,
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  Tensor tensor(handle);
#if defined(__linux__)
  // New memory of this size comes from the system one page fault at a time, which costs more than filling it. Larger
  // pages make them few; memory that is mapped already is left as it is.
  constexpr uintptr_t kPage = 2 << 20;
  uintptr_t bytes = tensor.numel() * tensor.element_size();
  if (bytes < 2 * kPage) return tensor;
  uintptr_t begin = (uintptr_t)tensor.data_ptr(), end = begin + bytes;
  begin = (begin + kPage - 1) / kPage * kPage;
  end = end / kPage * kPage;
  if (begin < end) madvise((void*)begin, end - begin, MADV_HUGEPAGE);
#endif
  return tensor;
}

}  // namespace fastff
