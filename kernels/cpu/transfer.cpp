// transfer: host memory to host memory.
#include <cstring>

#include "kernels/cpu/cpu_kernels.h"

namespace switchback {

void CpuKernels::upload(View to, CView host) {
  CHECK(to.size() == host.size() && to.dtype == host.dtype, "upload of ", host.dtype, " ", host.shape, " to ",
        to.dtype, " ", to.shape);
  if (to.data != host.data) std::memcpy(to.data, host.data, host.bytes());
}

void CpuKernels::download(View host, CView from) { upload(host, from); }

}  // namespace switchback
