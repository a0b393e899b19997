// SPDX-License-Identifier: Apache-2.0
#include "engine/scheduler.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace kvrm {

Scheduler::Scheduler(const SchedulerOptions& options, KvCache& cache)
    : options_(options), cache_(cache) {
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

std::span<const PlannedRow> Scheduler::Pass(bool admit) noexcept {
  rows_.clear();
  budget_ = options_.max_step_tokens;
  PlanRunning();
  if (admit) Admit();
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
  const PlannedRow row = {
      .sequence = &sequence,
      .num_tokens = std::min({sequence.num_to_compute(), options_.prompt_chunk, budget_})};
  if (row.num_tokens == 0 || !Secure(row)) return;
  budget_ -= row.num_tokens;
  rows_.push_back(row);
}

bool Scheduler::Secure(const PlannedRow& row) noexcept {
  const Sequence& sequence = *row.sequence;
  while (!cache_.Extend(sequence.seq, sequence.num_computed + row.num_tokens)) {
    if (running_.back().get() == row.sequence) return false;
    PreemptYoungest();
  }
  return true;
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
    rows_.erase(planned);
  }
  cache_.Release(victim->seq);
  free_seqs_.push_back(victim->seq);
  victim->num_computed = 0;
  ++num_preemptions_;
  InsertById(waiting_, std::move(victim));
  return true;
}

// New sequences, in order of arrival, with credit for all tokens they know and one more: enough to
// come out of the prompt without preempting anyone.
void Scheduler::Admit() noexcept {
  while (!waiting_.empty() && running_.size() < options_.max_rows && budget_ > 0) {
    Sequence& next = *waiting_.front();
    if (!cache_.Open(free_seqs_.back(), std::min(next.length() + 1, next.max_length))) return;
    next.seq = free_seqs_.back();
    free_seqs_.pop_back();
    InsertById(running_, std::move(waiting_.front()));
    waiting_.erase(waiting_.begin());
    Plan(next);
  }
}

std::unique_ptr<Sequence> Scheduler::Remove(RequestId id) noexcept {
  const auto is_it = [id](const std::unique_ptr<Sequence>& s) { return s->id == id; };
  std::unique_ptr<Sequence> sequence;
  if (const auto it = std::find_if(running_.begin(), running_.end(), is_it); it != running_.end()) {
    sequence = std::move(*it);
    running_.erase(it);
    cache_.Release(sequence->seq);
    free_seqs_.push_back(sequence->seq);
  } else if (const auto waiting = std::find_if(waiting_.begin(), waiting_.end(), is_it);
             waiting != waiting_.end()) {
    sequence = std::move(*waiting);
    waiting_.erase(waiting);
  }
  return sequence;
}

const Sequence* Scheduler::Any() const noexcept {
  if (!running_.empty()) return running_.back().get();
  return waiting_.empty() ? nullptr : waiting_.back().get();
}

}  // namespace kvrm
