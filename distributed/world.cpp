#include "distributed/world.h"

#include <exception>

#include "distributed/nccl_communicator.h"
#include "distributed/socket_communicator.h"

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

Communicator& World::communicator(Device device) {
  if (size() == 1 || device.kind == Device::cpu) return host();
  CHECK(!own_device_, "World::communicator(", device, ") is called once");
  own_device_ = make_nccl_communicator(device, host(), watch_);
  return *own_device_;
}

}  // namespace switchback
