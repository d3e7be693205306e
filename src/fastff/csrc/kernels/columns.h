// Conditional matrix multiplication, out: sums of rows, each times a factor, over columns that stay in registers.
#pragma once

#include "vec.h"

namespace FASTFF_ISA {

// G groups of neighbouring columns. A column's sum depends on the order of the rows alone, not on G.
template <int G>
struct Columns {
  static constexpr int kColumns = G * kGroup;
  Group sum[G];
  static constexpr int width() { return kColumns; }
  void zero() {
    for (auto& s : sum) s = Group{};
  }
  template <class T>
  void read(const T* p) {
    for (int g = 0; g < G; g++) sum[g] = load(p + g * kGroup);
  }
  template <class T>
  void write(T* p) const {
    for (int g = 0; g < G; g++) store(p + g * kGroup, sum[g]);
  }
  template <class T>
  void write_past_caches(T* p) const {
    if ((uintptr_t)p % 64) return write(p);
    for (int g = 0; g < G; g++) stream(p + g * kGroup, sum[g]);
  }
  template <class T>
  void add(const T* row, float factor) {
    Vec f = broadcast(factor);
    for (int g = 0; g < G; g++) {
      Group r = load(row + g * kGroup);
      sum[g].a += f * r.a;
      sum[g].b += f * r.b;
    }
  }
};

// The last columns of a row, fewer than a group.
struct LastColumns {
  static constexpr int kColumns = kGroup;
  Group sum;
  int count;
  int width() const { return count; }
  void zero() { sum = Group{}; }
  template <class T>
  void read(const T* p) {
    sum = load_part(p, count);
  }
  template <class T>
  void write(T* p) const {
    store_part(p, sum, count);
  }
  template <class T>
  void write_past_caches(T* p) const {
    write(p);
  }
  template <class T>
  void add(const T* row, float factor) {
    Vec f = broadcast(factor);
    Group r = load_part(row, count);
    sum.a += f * r.a;
    sum.b += f * r.b;
  }
};

// As many groups as fit the registers beside an operand or two.
constexpr int kWide = kRegisters >= 32 ? 12 : 6;

// Calls f(columns, first) for all columns in [begin, end), at most G groups at a time.
template <int G = kWide, class F>
inline void for_columns(int64_t begin, int64_t end, const F& f) {
  int64_t c = begin;
  for (; c + G * kGroup <= end; c += G * kGroup) f(Columns<G>{}, c);
  if constexpr (G > 4)
    for (; c + 4 * kGroup <= end; c += 4 * kGroup) f(Columns<4>{}, c);
  for (; c + kGroup <= end; c += kGroup) f(Columns<1>{}, c);
  if (c < end) f(LastColumns{{}, int(end - c)}, c);
}

// Sums of several parts are rounded once.
template <class T>
inline void round_rows(const Sum* from, T* to, int64_t rows, int64_t n) {
  for (int64_t row = 0; row < rows; row++)
    for_columns(0, n, [&](auto columns, int64_t c) {
      columns.read(from + row * padded(n) + c);
      columns.write(to + row * n + c);
    });
}

// A row of sums, or of the result itself.
inline Sum* row_of(Sum* sums, int64_t row, int64_t n) { return sums + row * padded(n); }
template <class T>
inline T* row_of(T* result, int64_t row, int64_t n) {
  return result + row * n;
}

}  // namespace FASTFF_ISA
