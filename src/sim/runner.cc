// SPDX-License-Identifier: Apache-2.0
#include "sim/runner.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <memory>
#include <string_view>
#include <utility>

#include "base/check.h"
#include "sim/child.h"

namespace kvrm {
namespace {

constexpr unsigned kScheduleSeconds = 20;
// Beginnings of the lines a worker says; everything else is what a check said.
constexpr std::string_view kBegins = "@begin ";
constexpr std::string_view kTotals = "@totals ";

using TotalsArray = std::array<std::uint64_t, sizeof(SimTotals) / sizeof(std::uint64_t)>;

void ChooseMutant(Mutant mutant) {
#ifdef KVRM_MUTANTS
  active_mutant = mutant;
#else
  CHECK(mutant == Mutant::kNone);
#endif
}

std::vector<std::uint64_t> Numbers(std::string_view text) {
  std::vector<std::uint64_t> numbers;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at != end) {
    std::uint64_t value = 0;
    const std::from_chars_result result = std::from_chars(at, end, value);
    if (result.ec != std::errc()) break;
    numbers.push_back(value);
    at = result.ptr == end ? end : result.ptr + 1;
  }
  return numbers;
}

// What one worker does: every `stride`-th schedule from `begin` on.
void Work(const SimPlan& plan, std::uint64_t begin, std::uint64_t stride) {
  ChooseMutant(plan.mutant);
  SimTotals totals;
  for (std::uint64_t i = begin; i < plan.num_schedules; i += stride) {
    SayToParent(std::string(kBegins) + std::to_string(i));
    ::alarm(kScheduleSeconds);
    const std::uint64_t seed = plan.first_seed + i;
    totals.Add(RunSchedule(MakeSchedule(LevelOf(plan.levels, seed), seed, plan.num_ops),
                           SimTrace(nullptr)));
  }
  ::alarm(0);
  const auto values = std::bit_cast<TotalsArray>(totals);
  std::string line(kTotals);
  for (const std::uint64_t value : values)
    line += std::to_string(value) + ' ';
  SayToParent(line);
}

// A worker as its parent sees it.
struct Worker {
  std::unique_ptr<Child> child;
  std::uint64_t at = 0;  // the schedule it has begun
  bool has_begun = false;
  std::string said;
};

class Crew {
 public:
  Crew(const SimPlan& plan, const std::function<void(std::uint64_t)>& progress)
      : plan_(plan), progress_(progress), stride_(std::max(1u, plan.num_jobs)) {
    for (std::uint64_t w = 0; w < stride_; ++w) {
      workers_.emplace_back();
      Start(workers_.back(), w);
    }
  }

  SimReport Run() {
    while (Wait()) {
    }
    return std::move(report_);
  }

 private:
  void Start(Worker& worker, std::uint64_t begin) {
    worker = {};
    if (begin >= plan_.num_schedules) return;
    worker.child = std::make_unique<Child>([this, begin] { Work(plan_, begin, stride_); });
  }

  // Takes what workers say. False when all have ended.
  bool Wait() {
    std::vector<pollfd> fds;
    std::vector<Worker*> readers;
    for (Worker& worker : workers_) {
      if (worker.child == nullptr) continue;
      fds.push_back({.fd = worker.child->fd(), .events = POLLIN, .revents = 0});
      readers.push_back(&worker);
    }
    if (fds.empty()) return false;
    if (::poll(fds.data(), fds.size(), -1) <= 0) return true;
    for (std::size_t i = 0; i < fds.size(); ++i) {
      if (fds[i].revents == 0) continue;
      Worker& worker = *readers[i];
      const bool more = worker.child->Read([&](const std::string& line) { Heard(worker, line); });
      if (!more) Ended(worker);
    }
    return true;
  }

  void Heard(Worker& worker, const std::string& line) {
    if (line.starts_with(kBegins)) {
      worker.at = Numbers(std::string_view(line).substr(kBegins.size())).at(0);
      worker.has_begun = true;
      ++report_.num_schedules;
      if (progress_ && report_.num_schedules % 256 == 0) progress_(report_.num_schedules);
    } else if (line.starts_with(kTotals)) {
      const auto numbers = Numbers(std::string_view(line).substr(kTotals.size()));
      TotalsArray values = {};
      CHECK(numbers.size() == values.size());
      std::ranges::copy(numbers, values.begin());
      report_.totals.Add(std::bit_cast<SimTotals>(values));
    } else {
      worker.said += (worker.said.empty() ? "" : "\n") + line;
    }
  }

  void Ended(Worker& worker) {
    const std::string how = worker.child->Wait();
    if (how.empty() || !worker.has_begun) {
      CHECK(how.empty());
      worker = {};
      return;
    }
    report_.failures.push_back(
        {.seed = plan_.first_seed + worker.at, .what = worker.said.empty() ? how : worker.said});
    if (report_.failures.size() >= plan_.max_failures) {
      for (Worker& other : workers_)
        other = {};
      return;
    }
    Start(worker, worker.at + stride_);
  }

  const SimPlan plan_;
  const std::function<void(std::uint64_t)> progress_;
  const std::uint64_t stride_;
  std::vector<Worker> workers_;
  SimReport report_;
};

}  // namespace

SimLevel LevelOf(SimLevels levels, std::uint64_t seed) {
  if (levels == SimLevels::kBoth) return seed % 4 == 0 ? SimLevel::kEngine : SimLevel::kKv;
  return levels == SimLevels::kKv ? SimLevel::kKv : SimLevel::kEngine;
}

SimReport RunPlan(const SimPlan& plan, const std::function<void(std::uint64_t)>& progress) {
  return Crew(plan, progress).Run();
}

std::optional<std::string> FailureOf(const SimSchedule& schedule, Mutant mutant) {
  Child child([&schedule, mutant] {
    ChooseMutant(mutant);
    ::alarm(kScheduleSeconds);
    RunSchedule(schedule, SimTrace(nullptr));
  });
  std::string said;
  while (child.Read([&said](const std::string& line) { said = line; })) {
  }
  const std::string how = child.Wait();
  if (how.empty()) return std::nullopt;
  return said.empty() ? how : said;
}

void RunTraced(const SimSchedule& schedule, Mutant mutant) {
  ChooseMutant(mutant);
  RunSchedule(schedule, SimTrace(stdout));
}

SimSchedule Shrink(SimSchedule schedule, Mutant mutant) {
  // Halves, quarters, ... of what is left, until no single operation can be left out.
  std::size_t part = std::max<std::size_t>(1, schedule.ops.size() / 2);
  for (;;) {
    bool any = false;
    for (std::size_t begin = 0; begin < schedule.ops.size();) {
      SimSchedule shorter = schedule;
      const auto first = shorter.ops.begin() + static_cast<std::ptrdiff_t>(begin);
      const std::size_t count = std::min(part, schedule.ops.size() - begin);
      shorter.ops.erase(first, first + static_cast<std::ptrdiff_t>(count));
      if (FailureOf(shorter, mutant)) {
        schedule = std::move(shorter);
        any = true;
      } else {
        begin += count;
      }
    }
    if (part == 1 && !any) return schedule;
    if (!any || part > schedule.ops.size()) part = std::max<std::size_t>(1, part / 2);
  }
}

std::optional<std::uint64_t> SchedulesToFailure(const SimPlan& plan) {
  SimPlan one = plan;
  one.num_jobs = 1;
  one.max_failures = 1;
  const SimReport report = RunPlan(one);
  if (report.failures.empty()) return std::nullopt;
  return report.num_schedules;
}

}  // namespace kvrm
