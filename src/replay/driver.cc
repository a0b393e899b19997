// SPDX-License-Identifier: Apache-2.0
#include "replay/driver.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kNone = ~std::uint32_t{0};

}  // namespace

ReplayRun::ReplayRun(const Workload& workload, const ReplayOptions& options, RecordWriter& writer)
    : workload_(workload),
      options_(options),
      writer_(writer),
      next_(workload.requests.size(), kNone),
      is_closed_(workload.requests.size(), false),
      due_ns_(workload.requests.size(), 0),
      place_(workload.requests.size(), kNone),
      num_pending_(workload.requests.size()) {
  for (std::uint32_t i = 0; i < workload.requests.size(); ++i) {
    const TraceRequest& request = workload.requests[i];
    is_closed_[i] = request.arrival == Arrival::kClosed ||
                    (request.arrival == Arrival::kAfter && is_closed_[request.after]);
    if (request.arrival == Arrival::kClosed) {
      closed_.push_back(i);
      continue;
    }
    if (!is_closed_[i]) ++num_open_;
    if (request.arrival == Arrival::kTimed) {
      queue_.push({request.arrival_ns, i});
    } else {
      CHECK(request.after < i && next_[request.after] == kNone);
      next_[request.after] = i;
    }
  }
  if (workload.num_clients == 0) EndClosedLoop();
  for (std::uint32_t client = 0; client < workload.num_clients; ++client)
    PushNextClosed(0);
}

void ReplayRun::PushNextClosed(std::int64_t now_ns) {
  if (closed_over_ || next_closed_ == closed_.size()) return;
  const std::uint32_t request = closed_[next_closed_++];
  queue_.push({now_ns + workload_.requests[request].arrival_ns, request});
}

void ReplayRun::EndClosedLoop() {
  if (closed_over_) return;
  closed_over_ = true;
  for (std::size_t i = next_closed_; i < closed_.size(); ++i)
    DropFrom(closed_[i]);
}

void ReplayRun::DropFrom(std::uint32_t request) {
  for (; request != kNone && num_pending_ > 0; request = next_[request])
    --num_pending_;
}

bool ReplayRun::IsOver(std::int64_t now_ns) const {
  return (options_.stop_ns > 0 && now_ns >= options_.stop_ns) ||
         (options_.stop != nullptr && options_.stop->load(std::memory_order_relaxed));
}

std::optional<std::size_t> ReplayRun::TakeDue(std::int64_t now_ns) {
  const std::int64_t closed_until =
      workload_.closed_until_ns > 0 ? workload_.closed_until_ns : kNever;
  if (now_ns >= closed_until) EndClosedLoop();
  if (IsOver(now_ns)) {
    EndClosedLoop();
    num_pending_ = 0;
    queue_ = {};
    return std::nullopt;
  }
  while (!queue_.empty() && queue_.top().at_ns <= now_ns) {
    const Due due = queue_.top();
    queue_.pop();
    const TraceRequest& request = workload_.requests[due.request];
    --num_pending_;
    if (is_closed_[due.request] && due.at_ns >= closed_until) {
      DropFrom(next_[due.request]);
      continue;
    }
    due_ns_[due.request] = due.at_ns;
    Live& live = Begin(due.request);
    live.last_ns = due.at_ns;
    RequestRecord& record = live.record;
    record.request = due.request;
    record.group = workload_.groups[request.group];
    record.warmup = progress_.num_sent < options_.warmup_requests;
    record.arrival_ns = due.at_ns;
    record.sent_ns = due.at_ns;
    record.prompt_tokens = request.prompt_tokens;
    record.asked_tokens = request.output_tokens;
    ++progress_.num_sent;
    return due.request;
  }
  return std::nullopt;
}

std::int64_t ReplayRun::NextDue() const {
  return queue_.empty() ? kNever : queue_.top().at_ns;
}

std::int64_t ReplayRun::due_ns(std::size_t request) const {
  return due_ns_[request];
}

ReplayRun::Live& ReplayRun::Begin(std::uint32_t request) {
  if (free_places_.empty()) {
    free_places_.push_back(static_cast<std::uint32_t>(live_.size()));
    live_.emplace_back();
  }
  place_[request] = free_places_.back();
  free_places_.pop_back();
  ++num_live_;
  return live_[place_[request]];
}

ReplayRun::Live& ReplayRun::LiveOf(std::size_t request) {
  CHECK(place_[request] != kNone);
  return live_[place_[request]];
}

void ReplayRun::OnRouted(std::size_t request, std::uint32_t replica) {
  LiveOf(request).record.replica = replica;
}

void ReplayRun::OnSent(std::size_t request, std::int64_t now_ns) {
  Live& live = LiveOf(request);
  live.record.sent_ns = std::max(now_ns, live.record.arrival_ns);
  live.last_ns = live.record.sent_ns;
}

void ReplayRun::OnOutput(std::size_t request, std::int64_t now_ns) {
  Live& live = LiveOf(request);
  CHECK(now_ns >= live.last_ns);
  const std::int64_t gap_ns = now_ns - live.last_ns;
  live.last_ns = now_ns;
  if (writer_.is_summary()) {
    OutputSpan& outputs = live.record.summary;
    if (outputs.count++ == 0)
      outputs.first_ns = gap_ns;
    else if (!live.record.warmup)
      writer_.AddGap(gap_ns);
    outputs.last_ns = now_ns - live.record.sent_ns;
  } else {
    live.record.gaps_ns.push_back(gap_ns);
  }
  ++progress_.num_outputs;
}

void ReplayRun::OnEnd(std::size_t request, std::int64_t now_ns, const End& end) {
  RequestRecord& record = LiveOf(request).record;
  record.end_ns = std::max(now_ns, record.sent_ns);
  record.finish = end.finish;
  record.error = end.error;
  if (end.prompt_tokens > 0) record.prompt_tokens = end.prompt_tokens;
  record.output_tokens = end.output_tokens;
  record.cached_tokens = end.cached_tokens;
  progress_.num_failed += record.failed() ? 1u : 0u;
  ++progress_.num_ended;
  writer_.Add(record);
  Release(request);
  const bool is_closed = is_closed_[request];
  if (!is_closed) --num_open_;
  const std::uint32_t next = next_[request];
  if (next != kNone && !IsOver(now_ns) && !(is_closed && closed_over_)) {
    queue_.push({now_ns + workload_.requests[next].arrival_ns, next});
    return;
  }
  DropFrom(next);
  // A client is free when its conversation is over.
  if (is_closed) PushNextClosed(now_ns);
}

void ReplayRun::Release(std::size_t request) {
  free_places_.push_back(place_[request]);
  live_[std::exchange(place_[request], kNone)] = {};
  --num_live_;
}

bool ReplayRun::ShouldCancel(std::int64_t now_ns) const {
  if (num_live_ == 0) return false;
  if (IsOver(now_ns)) return true;
  return workload_.closed_until_ns > 0 && now_ns >= workload_.closed_until_ns && num_open_ == 0;
}

std::vector<std::size_t> ReplayRun::running() const {
  std::vector<std::size_t> all;
  for (std::uint32_t place = 0; place < live_.size(); ++place) {
    const std::uint64_t request = live_[place].record.request;
    if (place_[request] == place) all.push_back(request);
  }
  std::ranges::sort(all);
  return all;
}

void ReplayRun::ShowProgress(std::int64_t now_ns) {
  if (!options_.progress) return;
  progress_.now_ns = now_ns;
  progress_.num_running = num_live_;
  progress_.phase = {};
  for (const Phase& phase : workload_.phases) {
    if (phase.begin_ns <= now_ns) progress_.phase = phase.name;
  }
  options_.progress(progress_);
}

}  // namespace kvrm
