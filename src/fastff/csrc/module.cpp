// The Python module: it registers the operators when it is imported, and says what it was made for.
#include <Python.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "arguments.h"

#if defined(__x86_64__)
#define FASTFF_SETS(set) \
  set(avx512amx) set(avx512bf16) set(avx512vnni) set(avx512) set(avx2vnni) set(avx2) set(baseline)
#else
#define FASTFF_SETS(set) set(baseline)
#endif

#define FASTFF_DECLARE(name) \
  namespace name {           \
  extern const fastff::Kernels kernels; \
  }
FASTFF_SETS(FASTFF_DECLARE)

namespace fastff {

#if defined(__x86_64__)
// Which some compilers do not know by name: bit 4 of EAX of leaf 7, 1. The registers are those of AVX2.
static bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

// Tiles and their products of bytes: bits 24 and 25 of EDX of leaf 7. The system must keep the tiles when it changes
// threads, bits 17 and 18 of XCR0, and Linux wants to be asked for them, once a process.
static bool has_amx_int8() {
#if defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0, low = 0, high = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d >> 24 & 3) != 3) return false;
  if (!__get_cpuid_count(1, 0, &a, &b, &c, &d) || !(c >> 27 & 1)) return false;  // no XCR0 to read
  asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr long kAskForPermission = 0x1023, kTileData = 18;
  return (low >> 17 & 3) == 3 && !syscall(SYS_arch_prctl, kAskForPermission, kTileData);
#else
  return false;
#endif
}
#endif

static bool runs(const char* name) {
  (void)name;
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!strcmp(name, "avx2")) return avx2;
  bool avx512vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  if (!strcmp(name, "avx2vnni")) return avx2 && has_avx_vnni();
  if (!strcmp(name, "avx512")) return avx512;
  if (!strcmp(name, "avx512vnni")) return avx512vnni;
  bool avx512bf16 = avx512vnni && __builtin_cpu_supports("avx512bf16");
  if (!strcmp(name, "avx512bf16")) return avx512bf16;
  if (!strcmp(name, "avx512amx")) return avx512bf16 && has_amx_int8();
#endif
  return true;
}

// From the best set down; FASTFF_INSTRUCTION_SET, for tests, names the best one that may be taken.
static const Kernels& choose() {
  const Kernels* sets[] = {
#define FASTFF_ADDRESS(name) &name::kernels,
      FASTFF_SETS(FASTFF_ADDRESS)};
  const char* cap = getenv("FASTFF_INSTRUCTION_SET");
  bool allowed = !cap || !*cap;
  for (const Kernels* set : sets) {
    allowed = allowed || !strcmp(cap, set->name);
    if (allowed && runs(set->name)) return *set;
  }
  return *sets[sizeof(sets) / sizeof(*sets) - 1];
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

Pool pool() {
  return {int(torch::stable::get_num_threads()),
          [](int64_t n, void (*task)(int64_t, int64_t, void*), void* context) {
            torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) { task(begin, end, context); });
          }};
}

}  // namespace fastff

static PyObject* instruction_set(PyObject*, PyObject*) { return PyUnicode_FromString(fastff::kernels().name); }

static PyMethodDef methods[] = {
    {"instruction_set", instruction_set, METH_NOARGS, "Name of the instruction set whose kernels run."},
    {nullptr, nullptr, 0, nullptr},
};
static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_C", "CPU operators of fastff.", 0, methods, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__C(void) { return PyModule_Create(&definition); }
