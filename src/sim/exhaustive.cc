// SPDX-License-Identifier: Apache-2.0
#include "sim/exhaustive.h"

#include <signal.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "base/check.h"
#include "sim/child.h"
#include "sim/kv_world.h"

namespace kvrm {
namespace {

// The letters of a program.
constexpr std::array kLetters = {
    "open a",       "open b", "fork b from a", "a + 1",     "a + 16",   "b + 17",
    "a + 1, b + 1", "end a",  "end b",         "publish a", "halve a",  "trim a",
    "run",          "retire", "drop cached",   "park a",    "resume a", "discard",
};
using Program = std::vector<std::uint8_t>;

KvScenario SmallScope(KvView view) {
  KvScenario scenario;
  scenario.cache = {.layout = SimLayout(16),
                    .num_blocks = 4,
                    .max_seqs = 2,
                    .max_blocks_per_seq = 3,
                    .max_runs = 2,
                    .max_groups = 2,
                    .max_move_bytes_per_step = 2 * SimLayout(16).block_bytes(),
                    .view = view,
                    .prefix_cache = true,
                    .host_blocks = 3,
                    .max_parked = 1};
  scenario.depth = 2;
  return scenario;
}

// A step in which a and b write so many tokens more, where there is room.
void Step(KvWorld& world, std::uint32_t a, std::uint32_t b) {
  if (!world.Begin()) return;
  const std::array<std::uint32_t, 2> more = {a, b};
  std::array<bool, 2> in_step = {};
  for (std::uint32_t s = 0; s < 2; ++s) {
    if (more[s] == 0 || !world.is_open(s)) continue;
    const std::uint32_t want = world.length(s) + more[s];
    in_step[s] = want <= world.max_tokens() && (want <= world.target(s) || world.Extend(s, want));
  }
  world.Plan();
  for (std::uint32_t s = 0; s < 2; ++s) {
    if (in_step[s]) world.AddRow(s, more[s]);
  }
  world.Commit();
}

void Do(KvWorld& world, std::uint8_t letter) {
  switch (letter) {
    case 0:
    case 1:
      return world.OpenFixed(letter, 33, 16);
    case 2:
      return world.Fork(1, 0, world.length(0));
    case 3:
      return Step(world, 1, 0);
    case 4:
      return Step(world, 16, 0);
    case 5:
      return Step(world, 0, 17);
    case 6:
      return Step(world, 1, 1);
    case 7:
    case 8:
      return world.Release(letter - 7u);
    case 9:
      return world.Publish(0);
    case 10:
      return world.Truncate(0, world.length(0) / 2);
    case 11:
      return world.Trim(0, 0, world.length(0) < 16 ? 0 : 16);
    case 12:
      return world.RunLayer();
    case 13:
      return world.Retire();
    case 14:
      return world.cache().DropCached();
    case 15:
      return world.Park(0);
    case 16:
      return world.Resume(0, 0, 33);
    default:
      return world.Discard(0);
  }
}

// What a child that aborts is running.
const Program* running = nullptr;

extern "C" void TellProgram(int) {
  const auto say = [](const char* text) {
    static_cast<void>(::write(STDERR_FILENO, text, std::string_view(text).size()) >= 0);
  };
  say("program: ");
  for (const std::uint8_t letter : *running) {
    say(kLetters[letter]);
    say("; ");
  }
  say("\n");
}

std::uint64_t Run(const Program& program, KvView view) {
  running = &program;
  std::uint64_t hash = 0;
  {
    KvWorld world(SmallScope(view), SimTrace(nullptr));
    for (const std::uint8_t letter : program)
      Do(world, letter);
    world.Check();
    hash = world.StateHash();
  }
  return hash;
}

void End(const Program& program, KvView view) {
  KvWorld world(SmallScope(view), SimTrace(nullptr));
  for (const std::uint8_t letter : program)
    Do(world, letter);
  world.Finish();
}

// The work of the child: says states, programs, longest, complete.
void Search(std::uint32_t max_ops, KvView view) {
  ::signal(SIGABRT, TellProgram);
  std::unordered_set<std::uint64_t> seen = {Run({}, view)};
  std::vector<Program> level = {{}};
  std::uint64_t num_programs = 1;
  std::uint32_t num_ops = 0;
  for (; num_ops < max_ops && !level.empty(); ++num_ops) {
    std::vector<Program> next;
    for (const Program& program : level) {
      for (std::uint8_t letter = 0; letter < kLetters.size(); ++letter) {
        Program longer = program;
        longer.push_back(letter);
        ++num_programs;
        if (!seen.insert(Run(longer, view)).second) continue;
        End(longer, view);
        next.push_back(std::move(longer));
      }
    }
    level = std::move(next);
  }
  SayToParent("@" + std::to_string(seen.size()) + " " + std::to_string(num_programs) + " " +
              std::to_string(num_ops) + " " + (level.empty() ? "1" : "0"));
}

}  // namespace

ExhaustiveReport Explore(std::uint32_t max_ops, KvView view) {
  Child child([max_ops, view] { Search(max_ops, view); });
  ExhaustiveReport report;
  const auto hear = [&report](const std::string& line) {
    if (!line.starts_with('@')) {
      report.failure += line + '\n';
      return;
    }
    std::array<std::uint64_t, 4> numbers = {};
    const char* at = line.data() + 1;
    for (std::uint64_t& number : numbers)
      at = std::from_chars(at, line.data() + line.size(), number).ptr + 1;
    report.num_states = numbers[0];
    report.num_programs = numbers[1];
    report.num_ops = static_cast<std::uint32_t>(numbers[2]);
    report.complete = numbers[3] == 1;
  };
  while (child.Read(hear)) {
  }
  const std::string how = child.Wait();
  if (!how.empty()) report.failure += how;
  return report;
}

}  // namespace kvrm
