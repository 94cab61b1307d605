// Who is this process? As each launcher says it, and every mistake in one line.
#include "distributed/environment.h"

#include "tests/distributed/testing.h"

using namespace switchback;

namespace {

RankEnvironment read(const Environment& e) { return rank_environment(variables(e)); }
std::string trouble(const Environment& e) {
  return error_of([&] { read(e); });
}

}  // namespace

TEST_CASE("started alone: one rank, whatever else is set") {
  CHECK(read({}).world_size == 1);
  CHECK(read({{"SLURM_NTASKS", "8"}, {"MASTER_ADDR", "x"}}).world_size == 1);  // in salloc, without srun
  CHECK(read({{"RANK", "0"}, {"WORLD_SIZE", "1"}}).world_size == 1);
}

TEST_CASE("torchrun") {
  Environment e{{"RANK", "5"},
                {"WORLD_SIZE", "8"},
                {"LOCAL_RANK", "1"},
                {"LOCAL_WORLD_SIZE", "4"},
                {"MASTER_ADDR", "node1"},
                {"MASTER_PORT", "29400"}};
  RankEnvironment r = read(e);
  CHECK(r.launcher == "torchrun");
  CHECK(r.rank == 5);
  CHECK(r.world_size == 8);
  CHECK(r.local_rank == 1);
  CHECK(r.local_world_size == 4);
  CHECK(r.address == "node1");
  CHECK(r.port == 29400);
  CHECK(r.ports == 1);
  e["TORCHELASTIC_USE_AGENT_STORE"] = "True";  // the agent has that port
  e["TORCHELASTIC_RUN_ID"] = "abc";
  r = read(e);
  CHECK(r.port == 29401);
  CHECK(r.ports > 1);
  CHECK(contains(r.session, "abc"));
}

TEST_CASE("srun: the first host of the step and a port of the job") {
  Environment e{{"SLURM_PROCID", "9"},
                {"SLURM_NTASKS", "16"},
                {"SLURM_STEP_NUM_TASKS", "16"},
                {"SLURM_LOCALID", "1"},
                {"SLURM_STEP_TASKS_PER_NODE", "8(x2)"},
                {"SLURM_JOB_ID", "1234567"},
                {"SLURM_STEP_NODELIST", "gpu[003-004]"}};
  RankEnvironment r = read(e);
  CHECK(r.launcher == "srun");
  CHECK(r.rank == 9);
  CHECK(r.world_size == 16);
  CHECK(r.local_rank == 1);
  CHECK(r.local_world_size == 8);
  CHECK(r.address == "gpu003");
  CHECK(r.port == 15000 + 1234567 % 15000);
  e["MASTER_PORT"] = "4000";
  e["MASTER_ADDR"] = "head";
  CHECK(read(e).port == 4000);
  CHECK(read(e).address == "head");
}

TEST_CASE("mpirun and mpiexec; an mpirun in a SLURM job is mpirun's") {
  Environment e{
      {"OMPI_COMM_WORLD_RANK", "1"},       {"OMPI_COMM_WORLD_SIZE", "2"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
      {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}, {"SLURM_PROCID", "0"},         {"SLURM_NTASKS", "1"}};
  RankEnvironment r = read(e);
  CHECK(r.launcher == "mpirun");
  CHECK(r.rank == 1);
  CHECK(r.address == "127.0.0.1");
  e = {{"OMPI_COMM_WORLD_RANK", "1"},
       {"OMPI_COMM_WORLD_SIZE", "2"},
       {"OMPI_COMM_WORLD_LOCAL_RANK", "0"},
       {"OMPI_COMM_WORLD_LOCAL_SIZE", "1"}};  // on two hosts
  CHECK(contains(trouble(e), "mpirun -x MASTER_ADDR"));
  r = read({{"PMI_RANK", "2"}, {"PMI_SIZE", "4"}, {"MPI_LOCALRANKID", "2"}, {"MPI_LOCALNRANKS", "4"}});
  CHECK(r.rank == 2);
  CHECK(r.local_rank == 2);
}

TEST_CASE("mistakes") {
  CHECK(contains(trouble({{"RANK", "0"}}), "WORLD_SIZE is not"));
  CHECK(contains(trouble({{"RANK", "4"}, {"WORLD_SIZE", "4"}}), "ranks are 0 to 3"));
  CHECK(contains(trouble({{"RANK", "one"}, {"WORLD_SIZE", "4"}}), "RANK=one"));
  CHECK(contains(trouble({{"RANK", "0"}, {"WORLD_SIZE", "0"}}), "at least 1"));
  CHECK(contains(trouble({{"RANK", "0"}, {"WORLD_SIZE", "2"}}), "MASTER_ADDR is not set"));
  CHECK(
      contains(trouble({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "a"}, {"MASTER_PORT", "70000"}}),
               "1 to 65535"));
}

TEST_CASE("the first host of SLURM's lists") {
  CHECK(first_host("gpu1") == "gpu1");
  CHECK(first_host("gpu1,gpu2") == "gpu1");
  CHECK(first_host("gpu[003-006,9],login1") == "gpu003");
  CHECK(first_host("gpu[7,9]") == "gpu7");
  CHECK(first_host("a1,gpu[7,9]") == "a1");
  CHECK(first_host("rack[1-2]-gpu") == "rack1-gpu");
  CHECK(first_host("rack[1-2]-gpu,x") == "rack1-gpu");
}

TEST_CASE("the GPU of a rank") {
  RankEnvironment e;
  e.rank = 5, e.world_size = 8, e.local_rank = 1, e.local_world_size = 4;
  CHECK(gpu_of_rank(e, 4) == 1);
  CHECK(gpu_of_rank(e, 1) == 0);  // a GPU of its own is all it sees
  e.local_rank = 3;
  CHECK(contains(error_of([&] { gpu_of_rank(e, 2); }), "has 2 GPUs"));
  CHECK(contains(error_of([&] { gpu_of_rank(e, 0); }), "sees no GPU"));
}
