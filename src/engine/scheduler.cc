// SPDX-License-Identifier: Apache-2.0
#include "engine/scheduler.h"

#include <algorithm>
#include <optional>
#include <span>
#include <utility>

#include "base/check.h"
#include "base/mutant.h"

namespace kvrm {

Scheduler::Scheduler(const SchedulerOptions& options, KvCache& cache)
    : options_(options), cache_(cache), rng_(options.preempt_seed, "preempt") {
  CHECK(options.max_rows >= 1 && options.max_step_tokens >= options.max_rows);
  CHECK(options.prompt_chunk >= 1);
  waiting_.reserve(options.max_waiting + options.max_rows);
  running_.reserve(options.max_rows);
  rows_.reserve(options.max_rows);
  free_seqs_.reserve(options.max_rows);
  for (std::uint32_t i = options.max_rows; i > 0; --i)
    free_seqs_.push_back(SeqId{i - 1});
}

void Scheduler::InsertById(Queue& queue, std::unique_ptr<Sequence> sequence) noexcept {
  CHECK(queue.size() < queue.capacity());
  const auto place =
      std::lower_bound(queue.begin(), queue.end(), sequence,
                       [](const std::unique_ptr<Sequence>& a, const std::unique_ptr<Sequence>& b) {
                         return a->id < b->id;
                       });
  queue.insert(place, std::move(sequence));
}

void Scheduler::Add(std::unique_ptr<Sequence> sequence) noexcept {
  InsertById(waiting_, std::move(sequence));
}

std::span<const PlannedRow> Scheduler::Pass(std::uint32_t max_new) noexcept {
  rows_.clear();
  budget_ = options_.max_step_tokens;
  samples_ = options_.prompt_samples;
  if (options_.preempt_seed != 0 && running_.size() > 1 && rng_.Below(8) == 0) PreemptYoungest();
  PlanRunning();
  ParkAhead();
  Admit(max_new);
  return rows_;
}

// Decoding rows, then prompts, each in order of arrival. A row whose slots cannot be had even after
// preempting everyone younger sits this step out.
void Scheduler::PlanRunning() noexcept {
  for (const bool decoding : {true, false}) {
    // Preemption shortens running_ from its end only: the victim is the youngest.
    for (std::size_t i = 0; i < running_.size(); ++i) {
      if ((running_[i]->num_to_compute() == 1) == decoding) Plan(*running_[i]);
    }
  }
}

void Scheduler::Plan(Sequence& sequence) noexcept {
  if (cache_.is_resuming(sequence.seq)) return;
  const PlannedRow row = {
      .sequence = &sequence,
      .num_tokens = WithinSamples(
          sequence, std::min({sequence.num_to_compute(), options_.prompt_chunk, budget_}))};
  if (row.num_tokens == 0 || !Secure(row)) return;
  budget_ -= row.num_tokens;
  if (sequence.wants_prompt()) samples_ -= sequence.NumSamples(row.num_tokens);
  rows_.push_back(row);
}

// So many of them that what the step samples of prompts fits into it.
std::uint32_t Scheduler::WithinSamples(const Sequence& sequence,
                                       std::uint32_t num_tokens) const noexcept {
  if (!sequence.wants_prompt()) return num_tokens;
  const std::uint32_t num_samples = sequence.NumSamples(num_tokens);
  return num_tokens - (num_samples > samples_ ? num_samples - samples_ : 0);
}

bool Scheduler::Secure(const PlannedRow& row) noexcept {
  const Sequence& sequence = *row.sequence;
  while (!cache_.Extend(sequence.seq, sequence.num_computed + row.num_tokens)) {
    if (cache_.is_parking() || running_.back().get() == row.sequence) return false;
    PreemptYoungest();
  }
  return true;
}

void Scheduler::ParkAhead() noexcept {
  if (running_.size() < 2 || cache_.is_parking()) return;
  const std::uint32_t block_tokens = cache_.options().layout.block_tokens;
  const std::uint64_t low =
      std::min<std::uint64_t>(options_.headroom_tokens / 2 / block_tokens, running_.size());
  if (cache_.num_available_tokens() / block_tokens >= low) return;
  if (cache_.CanPark(running_.back()->seq)) PreemptYoungest();
}

void Scheduler::GiveUpBlocks(Sequence& victim) noexcept {
  victim.parked = cache_.Park(victim.seq);
  if (victim.parked) {
    if (options_.log != nullptr) options_.log->Parked(victim.seq, *victim.parked);
    return;
  }
  cache_.Release(victim.seq);
  victim.num_computed = 0;
  victim.num_published_blocks = 0;
}

bool Scheduler::PreemptYoungest() noexcept {
  if (running_.empty()) return false;
  std::unique_ptr<Sequence> victim = std::move(running_.back());
  running_.pop_back();
  const auto planned = std::find_if(rows_.begin(), rows_.end(), [&](const PlannedRow& row) {
    return row.sequence == victim.get();
  });
  if (planned != rows_.end()) {
    budget_ += planned->num_tokens;
    if (victim->wants_prompt()) samples_ += victim->NumSamples(planned->num_tokens);
    rows_.erase(planned);
  }
  GiveUpBlocks(*victim);
  free_seqs_.push_back(victim->seq);
  ++num_preemptions_;
  InsertById(waiting_, std::move(victim));
  return true;
}

// New sequences, in order of arrival, with credit for all tokens they know and one more: enough to
// come out of the prompt without preempting anyone.
void Scheduler::Admit(std::uint32_t max_new) noexcept {
  if (cache_.is_parking()) return;
  std::size_t i = 0;
  while (max_new > 0 && i < waiting_.size() && running_.size() < options_.max_rows && budget_ > 0) {
    Sequence& next = *waiting_[i];
    if (WaitsForParent(next)) {
      ++i;
      continue;
    }
    if (!HasRoomFor(next) || !(next.parked ? Resume(next) : Open(next))) return;
    --max_new;
    Run(i, free_seqs_.back());
    Plan(next);
  }
}

// What it might find in the prefix cache is left out of the account. Who was parked counts in whole
// blocks, and is not taken back for what others would want at once.
bool Scheduler::HasRoomFor(const Sequence& sequence) const noexcept {
  if (running_.empty()) return true;
  const std::uint64_t available = cache_.num_available_tokens();
  const std::uint64_t length = sequence.length();
  if (!sequence.parked) return available >= options_.headroom_tokens + length;
  const std::uint64_t block_tokens = cache_.options().layout.block_tokens;
  const std::uint64_t headroom_blocks = options_.headroom_tokens / block_tokens + 1;
  return available / block_tokens > length / block_tokens + 2 * headroom_blocks;
}

bool Scheduler::Resume(Sequence& sequence) noexcept {
  const std::uint32_t reserve = std::min(sequence.length() + 1, sequence.max_length);
  if (!cache_.Resume(*sequence.parked, free_seqs_.back(), sequence.tokens, sequence.keys, reserve))
    return false;
  if (options_.log != nullptr) options_.log->Resumed(free_seqs_.back(), *sequence.parked);
  sequence.parked.reset();
  return true;
}

// Takes over what is cached of its tokens, except for those whose logits are wanted.
bool Scheduler::Open(Sequence& sequence) noexcept {
  const std::uint32_t reserve = std::min(sequence.length() + 1, sequence.max_length);
  const std::span<const std::int32_t> tokens(sequence.tokens);
  const std::optional<std::uint32_t> found = cache_.OpenCached(
      free_seqs_.back(), tokens.first(sequence.max_found()), sequence.keys, reserve);
  if (!found) return false;
  if (options_.log != nullptr) {
    options_.log->Opened({.seq = free_seqs_.back(),
                          .num_tokens = *found,
                          .request = static_cast<std::uint64_t>(sequence.id),
                          .salt = sequence.log_salt,
                          .tokens = tokens.first(*found)});
  }
  sequence.num_computed = *found + (*found > 0 && IsMutant(Mutant::kHitTooLong) ? 1 : 0);
  if (sequence.num_ever_computed == 0)
    sequence.num_cached_tokens = std::min(*found, sequence.num_prompt_tokens);
  return true;
}

void Scheduler::Run(std::size_t waiting_idx, SeqId seq) noexcept {
  CHECK(free_seqs_.back() == seq);
  free_seqs_.pop_back();
  waiting_[waiting_idx]->seq = seq;
  waiting_[waiting_idx]->sample_of = {};
  InsertById(running_, std::move(waiting_[waiting_idx]));
  waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(waiting_idx));
}

const Sequence* Scheduler::Find(const Queue& queue, RequestId id) noexcept {
  const auto place =
      std::lower_bound(queue.begin(), queue.end(), id,
                       [](const std::unique_ptr<Sequence>& a, RequestId b) { return a->id < b; });
  return place != queue.end() && (*place)->id == id ? place->get() : nullptr;
}

bool Scheduler::WaitsForParent(const Sequence& sequence) const noexcept {
  if (sequence.sample_of == RequestId{}) return false;
  const Sequence* parent = Find(running_, sequence.sample_of);
  if (parent == nullptr) parent = Find(waiting_, sequence.sample_of);
  return parent != nullptr && parent->num_output_tokens() == 0;
}

Sequence* Scheduler::Fork(const Sequence& parent) noexcept {
  for (std::size_t i = 0; i < waiting_.size(); ++i) {
    Sequence& child = *waiting_[i];
    if (child.sample_of != parent.id) continue;
    child.sample_of = {};
    if (running_.size() == options_.max_rows) continue;
    const std::uint32_t reserve = std::min(child.length() + 1, child.max_length);
    if (!cache_.Fork(free_seqs_.back(), parent.seq, parent.num_computed, reserve)) continue;
    if (options_.log != nullptr) {
      options_.log->Opened({.seq = free_seqs_.back(),
                            .parent = parent.seq,
                            .num_tokens = parent.num_computed,
                            .request = static_cast<std::uint64_t>(child.id),
                            .salt = child.log_salt});
    }
    child.num_computed = child.num_ever_computed = parent.num_computed;
    child.num_cached_tokens = parent.num_computed;
    Run(i, free_seqs_.back());
    return &child;
  }
  return nullptr;
}

std::unique_ptr<Sequence> Scheduler::Remove(RequestId id) noexcept {
  const auto is_it = [id](const std::unique_ptr<Sequence>& s) { return s->id == id; };
  std::unique_ptr<Sequence> sequence;
  if (const auto it = std::find_if(running_.begin(), running_.end(), is_it); it != running_.end()) {
    sequence = std::move(*it);
    running_.erase(it);
    if (!IsMutant(Mutant::kCancelKeepsBlocks)) cache_.Release(sequence->seq);
    if (!IsMutant(Mutant::kLoseSequenceId)) free_seqs_.push_back(sequence->seq);
  } else if (const auto waiting = std::find_if(waiting_.begin(), waiting_.end(), is_it);
             waiting != waiting_.end()) {
    sequence = std::move(*waiting);
    waiting_.erase(waiting);
    if (sequence->parked) cache_.Discard(*sequence->parked);
  }
  return sequence;
}

const Sequence* Scheduler::Any() const noexcept {
  if (!running_.empty()) return running_.back().get();
  return waiting_.empty() ? nullptr : waiting_.back().get();
}

}  // namespace kvrm
