// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "engine/engine_state.h"

namespace kvrm {
namespace {

// A row that needs more runs than a descriptor holds waits this long for compaction: with the
// default budget of 16 MiB a step that is 1 GiB moved, beyond any one sequence.
constexpr std::uint32_t kMaxCrowdedSteps = 64;

}  // namespace

void Engine::State::EndExpired() noexcept {
  FinishReason reason = FinishReason::kNone;
  while (outbox.EventsFit(1)) {
    const Sequence* sequence = scheduler.Expired(now_ns, &reason);
    if (sequence == nullptr) return;
    Fail(sequence->id, reason);
  }
}

void Engine::State::DrainCommands() noexcept {
  while (outbox.EventsFit(1)) {
    std::optional<Command> command = commands.TryPop();
    if (!command) return;
    if (command->add != nullptr) {
      AddAll(std::move(command->add));
    } else if (scheduler.Has(command->cancel)) {
      Fail(command->cancel, FinishReason::kAborted);
    }
  }
}

void Engine::State::AddAll(std::unique_ptr<Sequence> sequence) noexcept {
  while (sequence != nullptr) {
    std::unique_ptr<Sequence> next = std::move(sequence->next_sample);
    scheduler.Add(std::move(sequence));
    sequence = std::move(next);
  }
}

void Engine::State::AbortAll() noexcept {
  while (num_accepted.load() > 0) {
    while (std::optional<Command> command = commands.TryPop()) {
      if (command->add != nullptr) AddAll(std::move(command->add));
    }
    while (const Sequence* sequence = scheduler.Any()) {
      Fail(sequence->id, FinishReason::kAborted);
    }
  }
}

void Engine::State::BuildRows(std::span<const PlannedRow> rows) noexcept {
  scheduled.clear();
  bool crowded = false;
  for (const PlannedRow& row : rows) {
    const Sequence& sequence = *row.sequence;
    if (loop.cache().AddRow(
            loop.builder(),
            {.seq = sequence.seq,
             .first_position = sequence.num_computed,
             .tokens = std::span(sequence.tokens).subspan(sequence.num_computed, row.num_tokens),
             .num_samples = sequence.NumSamples(row.num_tokens)})) {
      scheduled.push_back(row);
    } else {
      crowded = true;
    }
  }
  if (!crowded) {
    num_crowded_steps = 0;
    return;
  }
  // Windows are filled as the budget goes: as long as that goes on, the wait has an end. Layer
  // buffers are gathered by every step of the others, which is nobody's progress.
  const KvStats stats = loop.cache().stats();
  const std::uint64_t staged = options.view == KvView::kStagedWindows ? stats.num_staged_bytes : 0;
  const std::uint64_t filled = staged + stats.num_maps + stats.num_cow_blocks;
  const bool goes_on = std::exchange(num_filled, filled) != filled;
  num_crowded_steps = goes_on ? 1 : num_crowded_steps + 1;
}

std::uint32_t Engine::State::MaxNewcomers() noexcept {
  if (num_crowded_steps > 0) return 0;
  if (!is_alone) return options.max_rows;
  // What was parked has left its blocks there.
  if (scheduler.num_running() == 0) loop.cache().DropCached();
  if (counts[kOutputTokens] == num_tokens_before_alone) return scheduler.num_running() == 0 ? 1 : 0;
  is_alone = false;
  loop.cache().PlaceTogether(false);
  return options.max_rows;
}

void Engine::State::StartOverAlone() noexcept {
  loop.cache().DropCached();
  loop.cache().PlaceTogether(true);
  is_alone = true;
  num_tokens_before_alone = counts[kOutputTokens];
}

bool Engine::State::RunStep() noexcept {
  // While a row waits to be moved together, free blocks are for that and not for newcomers.
  const std::span<const PlannedRow> rows = scheduler.Pass(MaxNewcomers(), now_ns);
  loop.Begin();
  BuildRows(rows);
  const bool worked = loop.Commit();
  if (worked) {
    ++counts[kSteps];
    const StepLoad load = Scheduler::LoadOf(scheduled);
    const std::int64_t begin_ns = std::exchange(now_ns, clock.NowNs());
    TakeResults();
    ObserveStep(load, clock.NowNs() - begin_ns);
  }
  // Nothing can be moved, or not soon enough: the youngest starts over elsewhere.
  if (!worked || num_crowded_steps >= kMaxCrowdedSteps) {
    const bool preempted = scheduler.PreemptYoungest();
    // It was alone: what it finds again in the cache lies where it could not go on.
    if (preempted && scheduler.num_running() == 0) StartOverAlone();
    // The others are crowded still: taken in again at once, it would take the room it just left.
    num_crowded_steps = scheduler.num_running() > 0 ? 1 : 0;
    return preempted || worked;
  }
  return worked;
}

}  // namespace kvrm
