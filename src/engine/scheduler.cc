// SPDX-License-Identifier: Apache-2.0
#include "engine/scheduler.h"

#include <algorithm>
#include <optional>
#include <span>
#include <utility>

#include "base/check.h"
#include "base/mutant.h"

namespace kvrm {

namespace {

// Newcomers that a pass looks at: one that must wait for the sake of streams lets others by.
constexpr int kMaxTries = 8;
constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();

double Seconds(std::int64_t ns) {
  return static_cast<double>(ns) * 1e-9;
}

// The earliest of those that are set.
std::int64_t Earliest(std::int64_t a_ns, std::int64_t b_ns) {
  return std::min(a_ns == 0 ? kNever : a_ns, b_ns == 0 ? kNever : b_ns);
}

std::int64_t DeadlineOf(const Sequence& sequence) {
  const bool waits = sequence.admitted_ns == 0;
  return Earliest(sequence.deadline_ns, waits ? sequence.wait_deadline_ns : 0);
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options, KvCache& cache)
    : options_(options),
      cache_(cache),
      shares_(options.max_waiting + options.max_rows),
      pace_(options.pace),
      rng_(options.preempt_seed, "preempt") {
  CHECK(options.max_rows >= 1 && options.max_step_tokens >= options.max_rows);
  CHECK(options.prompt_chunk >= 1);
  waiting_.reserve(options.max_waiting + options.max_rows);
  running_.reserve(options.max_rows);
  rows_.reserve(options.max_rows);
  prompts_.reserve(options.max_rows);
  free_seqs_.reserve(options.max_rows);
  for (std::uint32_t i = options.max_rows; i > 0; --i)
    free_seqs_.push_back(SeqId{i - 1});
}

bool Scheduler::RanksBefore(const Sequence& a, const Sequence& b) noexcept {
  return a.priority != b.priority ? a.priority < b.priority : a.id < b.id;
}

std::int32_t Scheduler::PriorityOf(const Sequence& sequence) const noexcept {
  const bool comes_back = sequence.admitted_ns != 0 && sequence.priority <= aged_priority_;
  return comes_back || HasAged(sequence) ? kAgedPriority : sequence.priority;
}

bool Scheduler::HasAged(const Sequence& sequence) const noexcept {
  return now_ns_ - sequence.queued_ns >= kAgedNs;
}

std::int32_t Scheduler::AgedPriority() const noexcept {
  std::int32_t priority = kAgedPriority;
  for (const std::unique_ptr<Sequence>& sequence : waiting_) {
    if (HasAged(*sequence)) priority = std::max(priority, sequence->priority);
  }
  return priority;
}

bool Scheduler::ComesBefore(const Sequence& a, const Sequence& b) const noexcept {
  const std::int32_t a_priority = PriorityOf(a);
  const std::int32_t b_priority = PriorityOf(b);
  if (a_priority != b_priority) return a_priority < b_priority;
  if (a_priority == kAgedPriority) {
    const bool a_waits_again = a.admitted_ns != 0;
    const bool b_waits_again = b.admitted_ns != 0;
    return a_waits_again != b_waits_again ? a_waits_again : a.id < b.id;
  }
  const double a_time = shares_.Time(a.tenant_place);
  const double b_time = shares_.Time(b.tenant_place);
  if (a_time < b_time || b_time < a_time) return a_time < b_time;
  return a.id < b.id;
}

void Scheduler::Insert(Queue& queue, std::unique_ptr<Sequence> sequence, Order order) noexcept {
  CHECK(queue.size() < queue.capacity());
  const auto place =
      std::lower_bound(queue.begin(), queue.end(), sequence,
                       [order](const std::unique_ptr<Sequence>& a,
                               const std::unique_ptr<Sequence>& b) { return order(*a, *b); });
  queue.insert(place, std::move(sequence));
}

void Scheduler::Add(std::unique_ptr<Sequence> sequence) noexcept {
  sequence->tenant_place =
      shares_.Enter(sequence->tenant, static_cast<double>(sequence->tenant_weight));
  sequence->queued_ns = sequence->submitted_ns;
  sequence->queued_step = pace_.num_steps();
  NoteDeadline(DeadlineOf(*sequence));
  Insert(waiting_, std::move(sequence), ArrivedBefore);
}

std::span<const PlannedRow> Scheduler::Pass(std::uint32_t max_new, std::int64_t now_ns) noexcept {
  now_ns_ = now_ns;
  rows_.clear();
  load_ = {};
  budget_ = options_.max_step_tokens;
  samples_ = options_.prompt_samples;
  max_new_ = max_new;
  if (options_.preempt_seed != 0 && running_.size() > 1 && rng_.Below(8) == 0) PreemptYoungest();
  PlanRunning();
  PlanPrompts();
  ParkAhead();
  Admit();
  TopUp();
  return rows_;
}

// Rows that decode, in order of rank. A row whose slots cannot be had even after preempting
// everyone behind it sits this step out.
void Scheduler::PlanRunning() noexcept {
  // Preemption shortens running_ from its end only: the victim is the last in order of rank.
  for (std::size_t i = 0; i < running_.size(); ++i) {
    if (running_[i]->num_to_compute() == 1) Plan(*running_[i], /*shared=*/false);
  }
}

// The first in order, and then those that are done soonest.
void Scheduler::PlanPrompts() noexcept {
  prompts_.clear();
  for (const std::unique_ptr<Sequence>& sequence : running_) {
    if (sequence->num_to_compute() > 1) prompts_.push_back(sequence.get());
  }
  if (prompts_.empty()) return;
  const auto first = std::min_element(
      prompts_.begin(), prompts_.end(),
      [this](const Sequence* a, const Sequence* b) { return ComesBefore(*a, *b); });
  std::iter_swap(prompts_.begin(), first);
  std::sort(prompts_.begin() + 1, prompts_.end(), [](const Sequence* a, const Sequence* b) {
    return a->num_to_compute() != b->num_to_compute() ? a->num_to_compute() < b->num_to_compute()
                                                      : a->id < b->id;
  });
  const bool shared = prompts_.size() > 1 || !waiting_.empty();
  for (std::size_t i = 0; i < prompts_.size() && budget_ > 0; ++i) {
    // What was planned before it may have taken its blocks.
    if (IsRunning(prompts_[i])) Plan(*prompts_[i], shared && i == 0);
  }
}

bool Scheduler::IsRunning(const Sequence* sequence) const noexcept {
  return std::any_of(running_.begin(), running_.end(),
                     [=](const std::unique_ptr<Sequence>& s) { return s.get() == sequence; });
}

void Scheduler::Plan(Sequence& sequence, bool shared) noexcept {
  if (cache_.is_resuming(sequence.seq)) return;
  std::uint32_t num_tokens = std::min({sequence.num_to_compute(), options_.prompt_chunk, budget_});
  if (num_tokens > 1) {
    if (shared) num_tokens = std::min(num_tokens, (budget_ + 1) / 2);
    num_tokens = pace_.PromptTokens(load_, sequence.num_computed, num_tokens, shared);
  }
  const PlannedRow row = {.sequence = &sequence, .num_tokens = WithinSamples(sequence, num_tokens)};
  if (row.num_tokens == 0 || !Secure(row)) return;
  budget_ -= row.num_tokens;
  if (sequence.wants_prompt()) samples_ -= sequence.NumSamples(row.num_tokens);
  rows_.push_back(row);
  AddTo(load_, row);
}

// The first prompt takes what others have left of the step. Nobody is preempted for it.
void Scheduler::TopUp() noexcept {
  // What is sampled of prompts was counted when the row was planned.
  if (prompts_.empty() || budget_ == 0 || prompts_.front()->wants_prompt()) return;
  const auto row = std::find_if(rows_.begin(), rows_.end(), [this](const PlannedRow& r) {
    return r.sequence == prompts_.front();
  });
  if (row == rows_.end()) return;
  const Sequence& sequence = *row->sequence;
  const std::uint32_t had = std::exchange(row->num_tokens, 0);
  const std::uint32_t most =
      std::min({sequence.num_to_compute(), options_.prompt_chunk, had + budget_});
  const std::uint32_t num_tokens =
      pace_.PromptTokens(LoadOf(rows_), sequence.num_computed, most, /*shared=*/false);
  row->num_tokens = had;
  if (num_tokens <= had || !cache_.Extend(sequence.seq, sequence.num_computed + num_tokens)) return;
  row->num_tokens = num_tokens;
  budget_ -= num_tokens - had;
  load_ = LoadOf(rows_);
}

void Scheduler::AddTo(StepLoad& load, const PlannedRow& row) noexcept {
  const Sequence& sequence = *row.sequence;
  if (row.num_tokens == 0) return;
  if (sequence.num_to_compute() == 1)
    load.AddRow(sequence.length());
  else
    load.AddPrompt(sequence.num_computed, row.num_tokens);
}

StepLoad Scheduler::LoadOf(std::span<const PlannedRow> rows) noexcept {
  StepLoad load;
  for (const PlannedRow& row : rows)
    AddTo(load, row);
  return load;
}

void Scheduler::Observe(const StepLoad& load, std::int64_t step_ns, std::int64_t now_ns) noexcept {
  pace_.Observe(load, Seconds(step_ns), Seconds(now_ns));
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
    load_ = LoadOf(rows_);
  }
  GiveUpBlocks(*victim);
  free_seqs_.push_back(victim->seq);
  victim->queued_ns = now_ns_;
  victim->queued_step = pace_.num_steps();
  ++victim->num_preemptions;
  ++num_preemptions_;
  Insert(waiting_, std::move(victim), ArrivedBefore);
  return true;
}

// New sequences, in order, with credit for all tokens they know and one more: enough to come out of
// the prompt without preempting anyone. One for whom there are no blocks holds up those behind it;
// one that waits for the sake of streams does not.
void Scheduler::Admit() noexcept {
  // AgedPriority looks at all who wait: not where nobody could come in anyway.
  if (cache_.is_parking() || !CanTakeIn()) return;
  aged_priority_ = AgedPriority();
  AdmitInOrder();
  aged_priority_ = kAgedPriority;
}

void Scheduler::AdmitInOrder() noexcept {
  const Sequence* last = nullptr;
  for (int tries = 0; tries < kMaxTries;) {
    if (!CanTakeIn()) return;
    if (pace_.PromptTokens(load_, 0, budget_, /*shared=*/false) == 0) return;
    const std::size_t i = NextWaiting(last);
    if (i == waiting_.size()) return;
    Sequence& next = *waiting_[i];
    if (!HasRoomFor(next)) return;
    if (!next.parked && !MayJoin(next)) {
      last = &next;
      ++tries;
      continue;
    }
    if (!(next.parked ? Resume(next) : Open(next))) return;
    Run(i, free_seqs_.back());
    Plan(next, /*shared=*/false);
  }
}

// The first in order, of those that come after `last`, that does not wait for a parent.
std::size_t Scheduler::NextWaiting(const Sequence* last) const noexcept {
  std::size_t best = waiting_.size();
  for (std::size_t i = 0; i < waiting_.size(); ++i) {
    const Sequence& sequence = *waiting_[i];
    if (WaitsForParent(sequence)) continue;
    if (last != nullptr && !ComesBefore(*last, sequence)) continue;
    if (best == waiting_.size() || ComesBefore(sequence, *waiting_[best])) best = i;
  }
  return best;
}

bool Scheduler::MayJoin(const Sequence& sequence) noexcept {
  StepLoad running;
  for (const std::unique_ptr<Sequence>& other : running_)
    running.AddRow(other->length());
  return pace_.MayJoin(running, sequence.length(),
                       {.steps = pace_.num_steps() - sequence.queued_step,
                        .seconds = Seconds(now_ns_ - sequence.queued_ns)});
}

// Beside the headroom. One that would be alone may have it all.
bool Scheduler::HasRoom(std::uint64_t num_tokens) const noexcept {
  return running_.empty() || cache_.num_available_tokens() >= options_.headroom_tokens + num_tokens;
}

// What it might find in the prefix cache is left out of the account. Who was parked counts in whole
// blocks, and is not taken back for what others would want at once.
bool Scheduler::HasRoomFor(const Sequence& sequence) const noexcept {
  const std::uint64_t length = sequence.length();
  if (!sequence.parked || running_.empty()) return HasRoom(length);
  const std::uint64_t available = cache_.num_available_tokens();
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
  CHECK(free_seqs_.back() == seq && max_new_ > 0);
  --max_new_;
  free_seqs_.pop_back();
  Sequence& sequence = *waiting_[waiting_idx];
  sequence.seq = seq;
  sequence.sample_of = {};
  sequence.priority = PriorityOf(sequence);
  if (sequence.admitted_ns == 0) sequence.admitted_ns = now_ns_;
  Dequeue(sequence);
  Insert(running_, std::move(waiting_[waiting_idx]), RanksBefore);
  waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(waiting_idx));
}

void Scheduler::Dequeue(Sequence& sequence) noexcept {
  num_dequeued_tokens_ += std::exchange(sequence.num_queued_tokens, 0);
}

const Sequence* Scheduler::Expired(std::int64_t now_ns, FinishReason* reason) noexcept {
  if (now_ns < next_deadline_ns_) return nullptr;
  next_deadline_ns_ = kNever;
  for (const Queue* queue : {&running_, &waiting_}) {
    for (const std::unique_ptr<Sequence>& sequence : *queue) {
      const std::int64_t deadline_ns = DeadlineOf(*sequence);
      NoteDeadline(deadline_ns);
      if (deadline_ns > now_ns) continue;
      const bool is_over = sequence->deadline_ns != 0 && sequence->deadline_ns <= now_ns;
      *reason = is_over ? FinishReason::kTimeout : FinishReason::kWaited;
      return sequence.get();  // next_deadline_ns_ has passed: the next call looks again
    }
  }
  return nullptr;
}

const Sequence* Scheduler::Find(const Queue& queue, RequestId id) noexcept {
  const auto place =
      std::find_if(queue.begin(), queue.end(), [id](const auto& s) { return s->id == id; });
  return place != queue.end() ? place->get() : nullptr;
}

bool Scheduler::WaitsForParent(const Sequence& sequence) const noexcept {
  if (sequence.sample_of == RequestId{}) return false;
  const Sequence* parent = Find(running_, sequence.sample_of);
  if (parent == nullptr) parent = Find(waiting_, sequence.sample_of);
  return parent != nullptr && parent->num_output_tokens() == 0;
}

// Beside what it shares a sample needs one block at once: behind the prompt, or a copy of its last.
bool Scheduler::MayFork(const Sequence& child) noexcept {
  if (cache_.is_parking() || max_new_ == 0 || running_.size() == options_.max_rows) return false;
  return HasRoom(cache_.options().layout.block_tokens) && MayJoin(child);
}

Sequence* Scheduler::Fork(const Sequence& parent) noexcept {
  for (std::size_t i = 0; i < waiting_.size(); ++i) {
    Sequence& child = *waiting_[i];
    if (child.sample_of != parent.id) continue;
    child.sample_of = {};
    if (!MayFork(child)) continue;
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
  if (sequence == nullptr) return nullptr;
  shares_.Leave(sequence->tenant_place);
  Dequeue(*sequence);
  return sequence;
}

const Sequence* Scheduler::Any() const noexcept {
  if (!running_.empty()) return running_.back().get();
  return waiting_.empty() ? nullptr : waiting_.back().get();
}

}  // namespace kvrm
