// device.h: where a tensor's bytes live and its kernels run.
#pragma once

#include <ostream>

namespace switchback {

struct Device {
  enum Kind : unsigned char { cpu, cuda } kind = cpu;
  int index = 0;
  friend bool operator==(const Device&, const Device&) = default;
};
inline std::ostream& operator<<(std::ostream& out, Device device) {
  return device.kind == Device::cpu ? out << "cpu" : out << "cuda:" << device.index;
}
inline constexpr Device cpu_device{};

}  // namespace switchback
