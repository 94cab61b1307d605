// environment.h: which rank is this process? Read from the variables of whoever started it.
//
//   clip_train --nproc,  RANK, WORLD_SIZE, and on this host LOCAL_RANK, LOCAL_WORLD_SIZE
//   torchrun
//   Open MPI (mpirun)    OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK, _LOCAL_SIZE
//   PMI (mpiexec)        PMI_RANK, PMI_SIZE, MPI_LOCALRANKID, MPI_LOCALNRANKS
//   SLURM (srun)         SLURM_PROCID, SLURM_STEP_NUM_TASKS or SLURM_NTASKS, SLURM_LOCALID,
//                        SLURM_STEP_TASKS_PER_NODE
//
// The first family that names a rank counts; families are not mixed, since an mpirun inside a SLURM job sees
// both. Ranks meet at MASTER_ADDR:MASTER_PORT. Where those are not set: under SLURM the first host of the
// step and a port made from the job's number; with all ranks on one host 127.0.0.1; else an error.
#pragma once

#include <functional>
#include <optional>
#include <string>

namespace switchback {

struct RankEnvironment {
  std::string launcher;  // for messages: "torchrun", "srun", ...; empty: started alone
  int rank = 0, world_size = 1;
  int local_rank = 0, local_world_size = 1;
  std::string address = "127.0.0.1";  // of rank 0
  int port = 29500;
  // torchrun itself listens on MASTER_PORT: the first free one of `ports` ports from `port` on is used.
  int ports = 1;
  std::string session;  // of this run: a process of another one at the same port is no rank of ours
  std::optional<int> listening_file;  // rank 0 under clip_train --nproc: the launcher listens already
};

using Variables = std::function<const char*(const char* name)>;

// Errors: a variable that is no number, a rank outside of the world, a missing address, in one line.
RankEnvironment rank_environment(const Variables& variables);
RankEnvironment rank_environment();  // of this process

// "gpu[003-006,9],login1" -> "gpu003": the first host of SLURM's short form.
std::string first_host(const std::string& list);

// The GPU of a rank among `visible` ones. A process that sees one GPU only has its own (srun
// --gpus-per-task=1). Errors: fewer GPUs than ranks on this host.
int gpu_of_rank(const RankEnvironment& environment, int visible);

}  // namespace switchback
