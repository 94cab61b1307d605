// elementwise.cpp: fill, cast, accumulate, clamp. Bound by memory: one pass, no temporaries.
#include "kernels/cpu/access.h"

namespace switchback {

void CpuKernels::fill(View to, double value) {
  visit_float(to.dtype, "fill", [&](auto tag) {
    using T = decltype(tag);
    T* out = to.as<T>();
    const T rounded = static_cast<T>(value);
    for_elements(to.size(), [=](int64_t i) { out[i] = rounded; });
  });
}

namespace {
// f(To{}, From{}) for two floating-point types.
template <class F>
void visit_pair(DType to, DType from, const char* op, F&& f) {
  visit_float(to, op,
              [&](auto to_tag) { visit_float(from, op, [&](auto from_tag) { f(to_tag, from_tag); }); });
}

// Values between two types travel as f64 when either is f64, else as f32, so that each store rounds once
// (f64 to bf16 goes through f32 and rounds twice; nothing in training takes that road).
template <class A, class B>
using Wider = std::conditional_t<std::is_same_v<A, double> || std::is_same_v<B, double>, double, float>;
}  // namespace

void CpuKernels::cast(View to, CView from) { accumulate({to, false}, from); }

void CpuKernels::accumulate(Sink to, CView from) {
  if (!to) return;
  CHECK(to.to.size() == from.size(), "accumulate: to is ", to.to.shape, ", from is ", from.shape);
  visit_pair(to.to.dtype, from.dtype, "accumulate", [&](auto to_tag, auto from_tag) {
    using To = decltype(to_tag);
    using From = decltype(from_tag);
    using R = Wider<To, From>;
    To* out = to.to.as<To>();
    const From* in = from.as<From>();
    if (to.accumulate) {
      for_elements(from.size(), [=](int64_t i) {
        out[i] = static_cast<To>(static_cast<R>(out[i]) + static_cast<R>(in[i]));
      });
    } else {
      for_elements(from.size(), [=](int64_t i) { out[i] = static_cast<To>(static_cast<R>(in[i])); });
    }
  });
}

void CpuKernels::clamp(View x, double low, double high) {
  visit_float(x.dtype, "clamp", [&](auto tag) {
    using T = decltype(tag);
    using R = Statistics<T>;
    T* values = x.as<T>();
    const R least = static_cast<R>(low), most = static_cast<R>(high);
    for_elements(x.size(), [=](int64_t i) {  // NaN fails both comparisons and stays
      const R value = static_cast<R>(values[i]);
      values[i] = static_cast<T>(value < least ? least : value > most ? most : value);
    });
  });
}

}  // namespace switchback
