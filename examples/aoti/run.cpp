// Runs a package of `fastff export` without Python: ./run PACKAGE.pt2 OPERATORS.so INPUT.bin OUTPUT.bin SIZE...
//
// PACKAGE is what `fastff export RUN --out PACKAGE.pt2` wrote. OPERATORS is fastff's own library: `python -c "import
// fastff._C; print(fastff._C.__file__)"` says where it lies; it can be copied, and needs no Python at run time.
// INPUT holds float32 numbers, SIZE... is the shape of one sample: the batch is as large as the file says.
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/library.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

// What Python's side of fastff declares when it is imported; the library brings the kernels.
TORCH_LIBRARY_FRAGMENT(fastff, library) {
  library.def("tree_infer(Tensor x, Tensor[] weights, int activation) -> (Tensor y, Tensor logits, Tensor leaf)");
  library.def(
      "tree_int8(Tensor x, Tensor[] weights, int[] shape, int activation) -> "
      "(Tensor y, Tensor logits, Tensor leaf)");
  library.def(
      "indexed(Tensor x, Tensor index, Tensor w1, Tensor b1, Tensor w2, Tensor? b2, Tensor? gate, Tensor? mask, "
      "int activation, bool keep_hidden) -> (Tensor y, Tensor hidden)");
}

int main(int count, char** arguments) try {
  if (count < 6) throw std::invalid_argument("usage: run PACKAGE.pt2 OPERATORS.so INPUT.bin OUTPUT.bin SIZE...");
  // Lazily: the few functions of Python that the library names are for its use as a Python module alone.
  if (!dlopen(arguments[2], RTLD_LAZY | RTLD_LOCAL)) throw std::runtime_error(dlerror());

  std::ifstream file(arguments[3], std::ios::binary);
  if (!file) throw std::runtime_error(std::string("cannot read ") + arguments[3]);
  std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  std::vector<int64_t> shape{-1};
  for (int i = 5; i < count; i++) shape.push_back(std::stoll(arguments[i]));

  c10::InferenceMode inference;
  torch::inductor::AOTIModelPackageLoader model(arguments[1]);
  auto size = static_cast<int64_t>(bytes.size() / sizeof(float));
  at::Tensor input = at::from_blob(bytes.data(), {size}, at::kFloat).reshape(shape);
  at::Tensor output = model.run({input})[0].contiguous();

  std::ofstream(arguments[4], std::ios::binary).write(static_cast<const char*>(output.data_ptr()), output.nbytes());
  std::printf("%lld samples, %lld numbers each\n", (long long)output.size(0), (long long)(output.numel() / output.size(0)));
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
