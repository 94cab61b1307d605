// access.h: what every CPU kernel needs: loops over elements and rows, results into sinks, precondition
// checks.
//
// A kernel reads values of T as R = Statistics<T> (static_cast), computes in R, and stores through a Writer:
//
//   write_to<T>(dx, "gelu_backward", [&](auto out) {        // out: Writer<T or R, overwrite or add>
//     for_elements(x.size(), [&](int64_t i) { out.put(i, R(dy[i]) * derivative(R(x[i]))); });
//   });
//
// so that the type of the sink and the choice between = and += are settled outside the loop, which
// vectorises.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/preconditions.h"
#include "runtime/parallel.h"
#include "runtime/tensor.h"

namespace switchback {

// Elements that are worth a thread's while in a loop that is bound by memory.
inline constexpr int64_t elements_per_thread = 16384;

// ---- stores -----------------------------------------------------------------------------------------------
template <class To, bool accumulate>
struct Writer {
  To* to;
  // The sum is taken in the type of `value` and rounded once.
  template <class R>
  void put(int64_t i, R value) const {
    if constexpr (accumulate) value += static_cast<R>(to[i]);
    to[i] = static_cast<To>(value);
  }
  Writer operator+(int64_t offset) const { return {to + offset}; }
};

// Calls f(Writer) for a sink of T or of Statistics<T>; an empty sink is not visited.
template <class T, class F>
void write_to(const Sink& sink, const char* op, F&& f) {
  if (!sink) return;
  auto visit = [&]<class To>(To* to) {
    if (sink.accumulate)
      f(Writer<To, true>{to});
    else
      f(Writer<To, false>{to});
  };
  using R = Statistics<T>;
  if (sink.to.dtype == dtype_of<T>) return visit(sink.to.as<T>());
  if constexpr (!std::is_same_v<T, R>) {
    if (sink.to.dtype == dtype_of<R>) return visit(sink.to.as<R>());
  }
  fail(op, ": the sink is ", sink.to.dtype, ", the tensors are ", dtype_of<T>);
}

// A short result held in R into a sink of T or R.
template <class T>
void write_all(const Sink& sink, const char* op, const Statistics<T>* values) {
  write_to<T>(sink, op, [&](auto out) {
    for (int64_t i = 0; i < sink.to.size(); ++i) out.put(i, values[i]);
  });
}

// ---- loops ------------------------------------------------------------------------------------------------
// f(i) for all i: independent elements, so the compiler may vectorise.
template <class F>
void for_elements(int64_t count, F&& f) {
  parallel_for(count, elements_per_thread, [&](int64_t from, int64_t to) {
#pragma omp simd
    for (int64_t i = from; i < to; ++i) f(i);
  });
}

// f(row) for all rows of about `width` elements each.
template <class F>
void for_rows(int64_t rows, int64_t width, F&& f) {
  parallel_for(rows, std::max<int64_t>(1, elements_per_thread / std::max<int64_t>(1, width)),
               [&](int64_t from, int64_t to) {
                 for (int64_t row = from; row < to; ++row) f(row);
               });
}

// Sums over rows, with the same bits for any number of threads: rows are cut into chunks whose length depends
// on `rows` only; f(from, to, partial) adds the rows of one chunk in order to its own partial (width,
// zeroed); the partials are then added in order. Returns the sums (width) in R.
template <class R, class F>
Tensor sum_rows(int64_t rows, int64_t width, F&& f) {
  const int64_t chunk = std::max<int64_t>(32, (rows + 31) / 32);  // at most 32 partials
  const int64_t chunks = (rows + chunk - 1) / chunk;
  Tensor partials({chunks + 1, width}, dtype_of<R>);  // the last row holds the sums
  R* partial = static_cast<R*>(partials.data());
  parallel_for(chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      std::fill_n(partial + c * width, width, R(0));
      f(c * chunk, std::min(rows, (c + 1) * chunk), partial + c * width);
    }
  });
  R* sums = partial + chunks * width;
  std::fill_n(sums, width, R(0));
  for (int64_t c = 0; c < chunks; ++c)
    for (int64_t i = 0; i < width; ++i) sums[i] += partial[c * width + i];
  return partials.slice(chunks, 1);
}

// ---- preconditions (kernels/checks.h, kernels/preconditions.h) --------------------------------------------
using Require = Preconditions<Device::cpu>;
inline constexpr auto check_place = Checks<Device::cpu>::place;
inline constexpr auto check_matrix = Checks<Device::cpu>::matrix;
inline constexpr auto check_vector = Checks<Device::cpu>::vector;
inline constexpr auto check_sink = Checks<Device::cpu>::sink;

}  // namespace switchback
