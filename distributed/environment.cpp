#include "distributed/environment.h"

#include <cstdlib>

#include "distributed/socket.h"
#include "runtime/check.h"

namespace switchback {
namespace {

struct Family {
  const char* launcher;
  const char *rank, *world_size, *other_world_size, *local_rank, *local_world_size;
};

constexpr Family families[] = {
    {"torchrun", "RANK", "WORLD_SIZE", nullptr, "LOCAL_RANK", "LOCAL_WORLD_SIZE"},
    {"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", nullptr, "OMPI_COMM_WORLD_LOCAL_RANK",
     "OMPI_COMM_WORLD_LOCAL_SIZE"},
    {"mpiexec", "PMI_RANK", "PMI_SIZE", nullptr, "MPI_LOCALRANKID", "MPI_LOCALNRANKS"},
    {"srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_LOCALID",
     "SLURM_STEP_TASKS_PER_NODE"},
};

bool set(const char* text) { return text && *text; }

int number_of(const char* name, const char* text) {
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  if (end == text || *end || value < 0 || value > 1'000'000)
    fail(name, "=", text, ": it must be a whole number, 0 or more");
  return static_cast<int>(value);
}

// SLURM's "8(x2),3": the number for the first kind of node; the others differ at most in their last nodes.
int leading_number(const char* text, int otherwise) {
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  return end != text && value > 0 && value < 1'000'000 ? static_cast<int>(value) : otherwise;
}

void find_meeting_place(RankEnvironment& e, const Variables& variable) {
  const char* address = variable("MASTER_ADDR");
  const char* port = variable("MASTER_PORT");
  const bool slurm = e.launcher == "srun";
  if (set(port)) {
    e.port = number_of("MASTER_PORT", port);
    if (e.port < 1 || e.port > 65535) fail("MASTER_PORT=", port, ": a port is from 1 to 65535");
  } else if (slurm && set(variable("SLURM_JOB_ID"))) {
    e.port = 15000 + static_cast<int>(std::strtoul(variable("SLURM_JOB_ID"), nullptr, 10) % 15000);
  }
  if (set(address)) {
    e.address = address;
  } else if (e.local_world_size == e.world_size) {
    e.address = "127.0.0.1";
  } else if (slurm) {
    const char* hosts = variable("SLURM_STEP_NODELIST");
    if (!set(hosts)) hosts = variable("SLURM_JOB_NODELIST");
    if (!set(hosts))
      fail("MASTER_ADDR is not set, nor SLURM_STEP_NODELIST: export MASTER_ADDR=<host of rank 0>");
    e.address = first_host(hosts);
  } else {
    const std::string cure = e.launcher == "mpirun"
                                 ? "mpirun -x MASTER_ADDR=$(hostname) -x MASTER_PORT=29500 ..."
                                 : "export MASTER_ADDR=<host of rank 0> MASTER_PORT=29500";
    fail("rank ", e.rank, " of ", e.world_size, " does not know where rank 0 is: MASTER_ADDR is not set (",
         cure, ")");
  }
  if (const char* agent = variable("TORCHELASTIC_USE_AGENT_STORE"); agent && std::string(agent) == "True") {
    e.port += 1;
    e.ports = 16;
  }
}

}  // namespace

RankEnvironment rank_environment(const Variables& variable) {
  RankEnvironment e;
  for (const Family& f : families) {
    const char* rank = variable(f.rank);
    if (!set(rank)) continue;
    const char* size_name = f.world_size;
    if (!set(variable(size_name)) && f.other_world_size) size_name = f.other_world_size;
    const char* size = variable(size_name);
    if (!set(size)) fail(f.rank, "=", rank, " is set, but ", size_name, " is not: how many ranks are there?");
    e.launcher = f.launcher;
    e.rank = number_of(f.rank, rank);
    e.world_size = number_of(size_name, size);
    if (e.world_size < 1) fail(size_name, "=", size, ": a run has at least 1 rank");
    if (e.rank >= e.world_size)
      fail(f.rank, "=", rank, " of ", size_name, "=", size, ": ranks are 0 to ", e.world_size - 1);
    const char* local = variable(f.local_rank);
    const char* local_size = variable(f.local_world_size);
    e.local_rank = set(local) ? number_of(f.local_rank, local) : 0;
    // Unknown: on one rank it is one; else one process a host is the safe guess (it asks for an address).
    e.local_world_size = !set(local_size) ? e.local_rank + 1 : leading_number(local_size, e.local_rank + 1);
    break;
  }
  if (e.world_size > 1) {
    if (const char* file = variable("SWITCHBACK_LISTENING_FILE"); set(file) && e.rank == 0)
      e.listening_file = number_of("SWITCHBACK_LISTENING_FILE", file);
    for (const char* name : {"SWITCHBACK_SESSION", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID"})
      if (set(variable(name))) e.session += concat(name, "=", variable(name), " ");
    find_meeting_place(e, variable);
  }
  return e;
}

RankEnvironment rank_environment() {
  return rank_environment([](const char* name) -> const char* { return std::getenv(name); });
}

std::string first_host(const std::string& list) {
  const size_t bracket = list.find('['), comma = list.find(',');
  if (bracket == std::string::npos || comma < bracket) return list.substr(0, comma);
  const size_t end = list.find_first_of(",-]", bracket);
  const size_t closing = list.find(']', bracket), next = list.find(',', closing);
  if (end == std::string::npos || closing == std::string::npos) return list;
  // What follows the bracket belongs to every host's name: "rack[1-2]-gpu".
  const size_t tail = next == std::string::npos ? std::string::npos : next - closing - 1;
  return list.substr(0, bracket) + list.substr(bracket + 1, end - bracket - 1) +
         list.substr(closing + 1, tail);
}

int gpu_of_rank(const RankEnvironment& e, int visible) {
  if (e.local_rank < visible) return e.local_rank;
  if (visible == 1) return 0;
  const char* mask = std::getenv("CUDA_VISIBLE_DEVICES");
  const std::string note = mask ? concat(" (CUDA_VISIBLE_DEVICES=", mask, ")") : std::string();
  if (visible == 0)
    fail("rank ", e.rank, " sees no GPU on ", this_host(), note,
         ": ask the scheduler for GPUs (srun --gpus-per-node), see that nvidia-smi lists them, or use --device cpu");
  fail("rank ", e.rank, " is number ", e.local_rank, " on ", this_host(), ", which has ", visible, " GPUs", note,
       ": start at most ", visible, " ranks a host, one for each GPU");
}

}  // namespace switchback
