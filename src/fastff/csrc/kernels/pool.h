// Work over threads, memory for a call. No template of the standard library here: what is compiled for a newer
// instruction set must not be the copy that the linker keeps for all.
#pragma once

#include <stdlib.h>
#include <string.h>

#include <new>

#include "../abi.h"

namespace FASTFF_ISA {
using namespace fastff;


// Calls f(i) for i in [0, n) from all threads, each taking the next i that is free. Results must not depend on who
// takes which.
template <class F>
inline void for_each(const Pool& pool, int64_t n, const F& f) {
  int64_t workers = n < pool.threads ? n : pool.threads;
  if (workers <= 1) {
    for (int64_t i = 0; i < n; i++) f(i);
    return;
  }
  struct Work {
    const F& f;
    int64_t n, next;
  } work{f, n, 0};
  pool.run(
      workers,
      [](int64_t begin, int64_t end, void* context) {
        Work& w = *static_cast<Work*>(context);
        for (int64_t worker = begin; worker < end; worker++)
          for (int64_t i; (i = __atomic_fetch_add(&w.next, 1, __ATOMIC_RELAXED)) < w.n;) w.f(i);
      },
      &work);
}

// Uninitialised memory, freed with its scope; aligned to cache lines.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t n) {
    if (posix_memalign(&memory_, 64, (n > 0 ? n : 1) * sizeof(T))) throw std::bad_alloc();
  }
  ~Scratch() { free(memory_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  operator T*() const { return static_cast<T*>(memory_); }

 private:
  void* memory_ = nullptr;
};

// Asks for memory that is read or written soon. GCC takes what only prefetches for pure, and leaves out the calls: hence
// the empty assembly.
inline void prefetch_row(const void* row, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char*)row + i, 0, 2);
  asm volatile("");
}

// n values; memory for none may be null.
inline void copy(float* to, const float* from, int64_t n) {
  if (n) memcpy(to, from, n * sizeof(float));
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace FASTFF_ISA
