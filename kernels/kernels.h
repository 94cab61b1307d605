// kernels.h: all kernels of one device behind one interface, generated from op_list.h.
//
//   Kernels& k = kernels(x.device());
//   k.gelu_forward(y, x, Gelu::exact);
//
// A kernel that a device does not implement is a compile error. The object owns its stream; no function takes
// one. Calls may return before the device has finished; results of one device are ordered as they were
// called.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "kernels/formats.h"
#include "kernels/timeline.h"
#include "runtime/view.h"

namespace switchback {

enum class Transpose : bool { no, yes };
enum class Gelu : uint8_t { exact, quick };

struct PixelNormalization {  // by channel, for pixels scaled to [0, 1]
  std::array<float, 3> mean{0.48145466f, 0.4578275f, 0.40821073f};  // OpenAI's CLIP
  std::array<float, 3> std{0.26862954f, 0.26130258f, 0.27577711f};
};

// The tensors of a parameter arena: ranges of one flat buffer. Rows of padding between them belong to none.
struct Segments {
  CView ranges;        // (S, 2) i64: first element, number of elements
  CView weight_decay;  // (S) f64
  CView rate_scale;    // (S) f64: learning-rate factor (layer-wise decay); 0 freezes
  int64_t count() const { return ranges.rows(); }
};

// What changes from step to step: f64 scalars that live on the device.
enum StepScalar : int {
  scalar_learning_rate,   // α_t
  scalar_beta1,           // β̂1 of this step (paper section 6.1, step 2)
  scalar_beta2,           // β̂2 of this step
  scalar_gradient_scale,  // gradients are multiplied by this first (1/loss scale, 1/world size, ...)
  step_scalar_count
};

struct AdamOptions {
  double epsilon = 1e-6;
  bool clip_update = false;         // StableAdamW: divide the rate by max(1, rms/clip_threshold)
  double clip_threshold = 1.0;      // d
  bool decay_clipped_rate =
      false;  // weight decay uses the clipped rate (paper text) instead of α_t (its code)
  double max_gradient_norm = 0;     // global L2 clipping; 0: off
};

class Kernels {
 public:
  virtual ~Kernels() = default;
#define KERNEL(op, arguments) virtual void op arguments = 0;
#include "kernels/op_list.h"
#undef KERNEL

  // Between this device's memory and the host's (`host` is a CPU tensor of the same size and type). The host
  // memory may be used again, or read, when the call returns.
  virtual void upload(View to, CView host) = 0;
  virtual void download(View host, CView from) = 0;
  virtual void synchronize() {}  // waits until everything called so far is done

  // ---- working ahead of the device (the CPU does everything at once) ----
  // The end of everything called so far.
  virtual std::unique_ptr<Moment> mark() = 0;
  // An upload beside the kernels, begun as soon as `after` has passed (null: at once). The host memory must
  // stay as it is until the returned moment, and be page-locked if nobody is to wait here.
  virtual std::unique_ptr<Moment> upload_beside(View to, CView host, const Moment* after) = 0;
  // What is called from here on begins when `moment` has passed; the host does not wait.
  virtual void wait_for(const Moment& moment) = 0;
  // A download that is there when the next mark() has passed; the host memory must be page-locked.
  virtual void download_later(View host, CView from) = 0;
  // Writes down what `work` calls instead of doing it; null on a device that cannot. `work` must have run
  // twice before (so that memory and plans are there), may call kernels only, and must give back all memory
  // it takes. Errors leave nothing behind: the work may then be done directly.
  virtual std::unique_ptr<Recording> record(const std::function<void()>& work) = 0;
};

Kernels& kernels(Device device);

// Whether this program was built with CUDA and finds a GPU that it can use.
bool cuda_available();

}  // namespace switchback
