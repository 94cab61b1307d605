// Ranks that do not fit together end with one line, the same everywhere. Threads stand for processes here.
#include <thread>

#include "distributed/rendezvous.h"
#include "tests/distributed/testing.h"

using namespace switchback;

namespace {

int free_port() { return Listener::on_port(0, true).port(); }

struct Start {
  int rank, world_size;
  Introduction introduction{};
  double delay = 0;
};

// What each gets from meet(): "" when all is well.
std::vector<std::string> gather(const std::vector<Start>& starts, double patience = 5) {
  const int port = free_port();
  std::vector<std::string> errors(starts.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < starts.size(); ++i) {
    threads.emplace_back([&, i] {
      std::this_thread::sleep_for(std::chrono::duration<double>(starts[i].delay));
      RankEnvironment e;
      e.rank = starts[i].rank, e.world_size = starts[i].world_size, e.port = port;
      errors[i] = error_of([&] {
        const Meeting m = meet(e, starts[i].introduction, patience);
        if (static_cast<int>(m.members.size()) != e.world_size) fail("members: ", m.members.size());
      });
    });
  }
  for (std::thread& t : threads) t.join();
  return errors;
}

bool all_say(const std::vector<std::string>& errors, const std::string& part) {
  bool all = true;
  for (const std::string& e : errors) all &= contains(e, part);
  return all;
}

}  // namespace

TEST_CASE("all come, whoever is first") {
  for (const std::string& e : gather({{0, 3, {}, 0.3}, {1, 3}, {2, 3}})) CHECK(e == "");
  for (const std::string& e : gather({{0, 3}, {1, 3, {}, 0.2}, {2, 3, {}, 0.1}})) CHECK(e == "");
}

TEST_CASE("a program's fingerprint") {
  CHECK(program_fingerprint().size() == 16);
  CHECK(program_fingerprint() == program_fingerprint());
}

TEST_CASE("missing ranks are named") {
  const auto errors = gather({{0, 4}, {1, 4}}, 0.5);
  CHECK(all_say(errors, "rank 2 and 3 of 4 did not come to 127.0.0.1:"));
  CHECK(contains(errors[0], "here: 0 on"));
}

TEST_CASE("no rank 0") {
  CHECK(contains(gather({{1, 2}}, 0.4)[0], "rank 1 of 2 on"));
  CHECK(contains(gather({{1, 2}}, 0.4)[0], "could not reach rank 0 at 127.0.0.1:"));
}

TEST_CASE("wrong world size") { CHECK(all_say(gather({{0, 2}, {1, 4}}), "was told of 4 ranks, rank 0 on")); }

TEST_CASE("two processes of one rank") {
  CHECK(all_say(gather({{0, 3}, {1, 3}, {1, 3, {}, 0.2}}), "two processes call themselves rank 1"));
}

TEST_CASE("different programs and flags") {
  const auto errors = gather({{0, 2, {{{"the program", "a"}, {"--lr", "1"}}, ""}},
                              {1, 2, {{{"the program", "a"}, {"--lr", "2"}}, ""}}});
  CHECK(all_say(errors, "has --lr 2, rank 0 on"));
  CHECK(all_say(gather({{0, 2, {{{"--siglip", "true"}}, ""}}, {1, 2}}), "has --siglip none"));
}

TEST_CASE("two ranks of one GPU") {
  CHECK(all_say(gather({{0, 3, {{}, "GPU 0"}}, {1, 3, {{}, "GPU 1"}}, {2, 3, {{}, "GPU 1"}, 0.2}}),
                "ranks 1 and 2 both want GPU 1"));
}

TEST_CASE("the port is in use") {
  const Listener other = Listener::on_port(0, true);
  RankEnvironment e;
  e.rank = 0, e.world_size = 2, e.port = other.port();
  const std::string error = error_of([&] { meet(e, {}, 1); });
  CHECK(contains(error, concat("port ", e.port, " of ")));
  CHECK(contains(error, "MASTER_PORT"));
}

TEST_CASE("strangers and other runs at the port do no harm") {
  const int port = free_port();
  RankEnvironment leader, other;
  leader.world_size = other.world_size = 2, other.rank = 1, leader.port = other.port = port;
  std::string first, second, foreign;
  std::thread a([&] { first = error_of([&] { meet(leader, {}, 8); }); });
  std::thread b([&] {
    std::string why;
    Socket stranger;
    while (!(stranger = connect_to("127.0.0.1", port, 1, why))) std::this_thread::yield();
    stranger.send("GET / HTTP/1.0\r\n\r\n", 18, nullptr);
    RankEnvironment alien = other;
    alien.session = "of yesterday";
    foreign = error_of([&] { meet(alien, {}, 0.3); });
    second = error_of([&] { meet(other, {}, 8); });
  });
  a.join();
  b.join();
  CHECK(first == "");
  CHECK(second == "");
  CHECK(contains(foreign, "belongs to another run"));
}

TEST_CASE("torchrun's agent holds the port: the next free one is found") {
  const Listener agent = Listener::on_port(0, true);
  RankEnvironment leader, other;
  leader.world_size = other.world_size = 2, other.rank = 1;
  leader.port = other.port = agent.port();
  leader.ports = other.ports = 16;
  std::string first, second;
  std::thread a([&] { first = error_of([&] { meet(leader, {}, 8); }); });
  std::thread b([&] { second = error_of([&] { meet(other, {}, 8); }); });
  a.join();
  b.join();
  CHECK(first == "");
  CHECK(second == "");
}
