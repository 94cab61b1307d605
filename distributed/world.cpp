#include "distributed/world.h"

#include <cstring>
#include <exception>

#include "distributed/nccl_communicator.h"
#include "distributed/socket_communicator.h"
#include "runtime/tensor.h"

namespace switchback {

World::World(RankEnvironment environment, const Introduction& introduction, Options options)
    : World(environment, meet(environment, introduction, options.gather_seconds), options) {}

World::World(RankEnvironment environment, Meeting meeting, Options options)
    : environment_(std::move(environment)),
      options_(options),
      members_(meeting.members),
      watch_(environment_.rank, std::move(meeting.members), std::move(meeting.control), options.watch) {
  if (environment_.world_size > 1)
    own_host_ = make_socket_communicator(environment_.rank, environment_.world_size, std::move(meeting.data),
                                         &watch_, options.patience_seconds);
  host_ = own_host_ ? own_host_.get() : &single_rank();
}

World::~World() {
  if (std::uncaught_exceptions() > 0) return;
  try {
    watch_.check();
    host().barrier();
  } catch (const std::exception&) {  // somebody else failed meanwhile; the watch has said so
  }
}

std::string World::agree(const std::string& text) {
  const Tensor length = Tensor::of<int64_t>({1}, {static_cast<int64_t>(text.size())});
  host().broadcast(length, 0);
  const Tensor bytes({length.span<int64_t>()[0]}, DType::u8);
  if (leads()) std::memcpy(bytes.data(), text.data(), text.size());
  host().broadcast(bytes, 0);
  return {static_cast<const char*>(bytes.data()), static_cast<size_t>(bytes.size())};
}

Communicator& World::communicator(Device device) {
  if (size() == 1 || device.kind == Device::cpu) return host();
  CHECK(!own_device_, "World::communicator(", device, ") is called once");
  own_device_ = make_nccl_communicator(device, host(), watch_);
  return *own_device_;
}

}  // namespace switchback
