// Collectives mean the same on threads and on sockets: small ones by arithmetic, all types and odd sizes.
#include <sys/socket.h>

#include <cmath>
#include <thread>

#include "distributed/rank_order.h"
#include "distributed/socket_communicator.h"
#include "distributed/thread_communicator.h"
#include "runtime/tensor.h"
#include "tests/distributed/testing.h"

using namespace switchback;

namespace {

// The same on sockets between threads.
void run_sockets(int world, const std::function<void(Communicator&)>& f, double patience = 20) {
  std::vector<Socket> leader(1), others(1);
  for (int r = 1; r < world; ++r) {
    int pair[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0);
    leader.push_back(Socket(pair[0]));
    others.push_back(Socket(pair[1]));
  }
  std::vector<std::thread> threads;
  std::vector<std::string> errors(static_cast<size_t>(world));
  for (int r = 0; r < world; ++r) {
    std::vector<Socket> mine;
    if (r == 0)
      mine = std::move(leader);
    else
      mine.push_back(std::move(others[static_cast<size_t>(r)]));
    threads.emplace_back([&, r, mine = std::move(mine)]() mutable {
      errors[static_cast<size_t>(r)] =
          error_of([&] { f(*make_socket_communicator(r, world, std::move(mine), nullptr, patience)); });
    });
  }
  for (std::thread& t : threads) t.join();
  for (const std::string& e : errors)
    if (!e.empty()) fail(e);
}

void run_threads(int world, const std::function<void(Communicator&)>& f) { ThreadGroup(world, 20).run(f); }

// Element i of rank r; small whole numbers, exact in every type.
template <class T>
Tensor data_of(int rank, int64_t n) {
  Tensor t({n}, dtype_of<T>);
  for (int64_t i = 0; i < n; ++i)
    t.span<T>()[i] = static_cast<T>(static_cast<float>((i * 7 + rank * 3) % 11));
  return t;
}
template <class T>
double at(const Tensor& t, int64_t i) {
  return static_cast<double>(t.span<T>()[static_cast<size_t>(i)]);
}

template <class T>
void check_collectives(Communicator& c, int64_t n) {
  const int world = c.world_size(), rank = c.rank();
  bool right = true;
  const auto expected = [&](int64_t i, Reduction reduction) {
    double sum = 0, largest = 0;
    for (int r = 0; r < world; ++r) {
      const double v = static_cast<double>((i * 7 + r * 3) % 11);
      sum += v;
      largest = std::max(largest, v);
    }
    return reduction == Reduction::sum ? sum : largest;
  };
  for (Reduction reduction : {Reduction::sum, Reduction::max}) {
    Tensor t = data_of<T>(rank, n);
    c.all_reduce(t, reduction);
    for (int64_t i = 0; i < n; ++i) right &= at<T>(t, i) == expected(i, reduction);
    for (int root = 0; root < world; ++root) {
      t = data_of<T>(rank, n);
      c.reduce(t, root, reduction);
      for (int64_t i = 0; i < n && rank == root; ++i) right &= at<T>(t, i) == expected(i, reduction);
    }
    const Tensor all = data_of<T>(rank, n * world), own({n}, dtype_of<T>);
    c.reduce_scatter(own, all, reduction);
    for (int64_t i = 0; i < n; ++i) right &= at<T>(own, i) == expected(rank * n + i, reduction);
    c.reduce_scatter(all.slice(rank * n, n), all, reduction);  // in place
    for (int64_t i = 0; i < n; ++i) right &= at<T>(all, rank * n + i) == expected(rank * n + i, reduction);
  }
  const Tensor all({n * world}, dtype_of<T>);
  c.all_gather(all, data_of<T>(rank, n));
  for (int r = 0; r < world; ++r)
    for (int64_t i = 0; i < n; ++i) right &= at<T>(all, r * n + i) == at<T>(data_of<T>(r, n), i);
  const Tensor again({n * world}, dtype_of<T>);
  std::memcpy(again.slice(rank * n, n).data(), data_of<T>(rank, n).data(),
              static_cast<size_t>(n) * sizeof(T));
  c.all_gather(again, again.slice(rank * n, n));
  right &= std::memcmp(all.data(), again.data(), static_cast<size_t>(n * world) * sizeof(T)) == 0;
  for (int root = 0; root < world; ++root) {
    Tensor t = data_of<T>(rank, n);
    c.broadcast(t, root);
    for (int64_t i = 0; i < n; ++i) right &= at<T>(t, i) == at<T>(data_of<T>(root, n), i);
  }
  std::vector<Tensor> own;
  std::vector<Communicator::FromRoot> many;
  for (int root = 0; root < world; ++root) {
    own.push_back(data_of<T>(rank, n + root));
    many.push_back({own.back(), root});
  }
  c.broadcast(many);
  for (int root = 0; root < world; ++root)
    for (int64_t i = 0; i < n + root; ++i) right &= at<T>(own[root], i) == at<T>(data_of<T>(root, n + root), i);
  for (int64_t times = 1; times <= world; ++times) {  // once around the ring
    Tensor from = data_of<T>(rank, n), to({n}, dtype_of<T>);
    for (int64_t i = 0; i < times; ++i) {
      c.shift(to, from);
      std::swap(to, from);
    }
    const int owner = static_cast<int>((rank - times + world) % world);
    for (int64_t i = 0; i < n; ++i) right &= at<T>(from, i) == at<T>(data_of<T>(owner, n), i);
  }
  c.barrier();
  if (!right) fail("wrong results on rank ", rank, " of ", world, " in ", dtype_of<T>, ", ", n, " elements");
}

void check_all(Communicator& c) {
  for (int64_t n : {1, 3, 1000}) {
    check_collectives<double>(c, n);
    check_collectives<float>(c, n);
    check_collectives<bfloat16>(c, n);
    check_collectives<int64_t>(c, n);
    check_collectives<int32_t>(c, n);
  }
  Tensor nothing({0}, DType::f32);
  c.all_reduce(nothing);
  c.all_gather(nothing, nothing);
}

}  // namespace

TEST_CASE("one rank") { check_all(single_rank()); }

TEST_CASE("threads") {
  for (int world : {2, 3, 4}) CHECK(error_of([&] { run_threads(world, check_all); }) == "");
}

TEST_CASE("sockets") {
  for (int world : {2, 3, 4}) CHECK(error_of([&] { run_sockets(world, check_all); }) == "");
}

TEST_CASE("large messages do not block each other") {
  const auto large = [](Communicator& c) {
    Tensor t({3'000'001}, DType::f32);
    for (float& v : t.span<float>()) v = 1;
    c.all_reduce(t);
    const Tensor all({t.size() * c.world_size()}, DType::f32);
    c.all_gather(all, t);
    for (float v : all.span<float>())
      if (v != static_cast<float>(c.world_size())) fail("wrong sum ", v);
  };
  CHECK(error_of([&] { run_sockets(3, large); }) == "");
}

TEST_CASE("sums are taken in order of ranks, in f32 for bf16") {
  // 1 + 2^-8 + 2^-8 is 1 when each sum is rounded to bf16, and 1 + 2^-7 when only the last is.
  std::vector<Tensor> parts;
  for (float v : {1.0f, 0.00390625f, 0.00390625f}) parts.push_back(Tensor::of<bfloat16>({1}, {bfloat16(v)}));
  Tensor to({1}, DType::bf16);
  combine_in_rank_order(to.data(), {parts[0].data(), parts[1].data(), parts[2].data()}, 0, 1, DType::bf16,
                        Reduction::sum);
  CHECK(static_cast<float>(to.span<bfloat16>()[0]) == 1.0078125f);
  // f32: (1e8 + -1e8) + 1 = 1, any other order gives 0 or 1 by luck
  std::vector<Tensor> wide;
  for (float v : {1e8f, -1e8f, 1.0f}) wide.push_back(Tensor::of<float>({1}, {v}));
  Tensor sum({1}, DType::f32);
  combine_in_rank_order(sum.data(), {wide[0].data(), wide[1].data(), wide[2].data()}, 0, 1, DType::f32,
                        Reduction::sum);
  CHECK(sum.span<float>()[0] == 1.0f);
}

TEST_CASE("ranks that call different things are told so") {
  const auto odd = [](Communicator& c) {
    Tensor t({4}, DType::f32), u({5}, DType::f32);
    std::memset(t.data(), 0, 16), std::memset(u.data(), 0, 20);
    if (c.rank() == 2)
      c.all_reduce(u);
    else
      c.all_reduce(t);
  };
  CHECK(contains(error_of([&] { run_sockets(3, odd); }),
                 "rank 2 is at all_reduce number 1 (5 f32), rank 0 at all_reduce"));
}

TEST_CASE("a rank that does not come is named") {
  const auto lazy = [](Communicator& c) {
    if (c.rank() != 1)
      c.barrier();
    else
      std::this_thread::sleep_for(std::chrono::milliseconds(600));
  };
  CHECK(contains(error_of([&] { ThreadGroup(3, 0.2).run(lazy); }), "rank 1 of 3 did not come to barrier"));
  CHECK(contains(error_of([&] { run_sockets(3, lazy, 0.2); }),
                 "has waited 0.2 s for rank 1 in barrier number 1"));
}

TEST_CASE("a thread that throws ends the others' waits, and its error comes out") {
  const auto broken = [](Communicator& c) {
    if (c.rank() == 1) fail("the loss is NaN");
    c.barrier();
  };
  CHECK(error_of([&] { ThreadGroup(4, 20).run(broken); }) == "the loss is NaN");
}
