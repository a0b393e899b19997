// SPDX-License-Identifier: Apache-2.0
#include "replay/driver.h"

#include <algorithm>

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
      due_ns_(workload.requests.size(), 0),
      num_pending_(workload.requests.size()) {
  for (std::uint32_t i = 0; i < workload.requests.size(); ++i) {
    const TraceRequest& request = workload.requests[i];
    if (request.arrival == Arrival::kClosed) {
      closed_.push_back(i);
      continue;
    }
    ++num_open_;
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
  num_pending_ -= closed_.size() - next_closed_;
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
    if (request.arrival == Arrival::kClosed && due.at_ns >= closed_until) continue;
    due_ns_[due.request] = due.at_ns;
    Live& live = live_[due.request];
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

void ReplayRun::OnSent(std::size_t request, std::int64_t now_ns) {
  Live& live = live_.at(request);
  live.record.sent_ns = std::max(now_ns, live.record.arrival_ns);
  live.last_ns = live.record.sent_ns;
}

void ReplayRun::OnOutput(std::size_t request, std::int64_t now_ns) {
  Live& live = live_.at(request);
  CHECK(now_ns >= live.last_ns);
  live.record.gaps_ns.push_back(now_ns - live.last_ns);
  live.last_ns = now_ns;
  ++progress_.num_outputs;
}

void ReplayRun::OnEnd(std::size_t request, std::int64_t now_ns, const End& end) {
  const auto found = live_.find(request);
  CHECK(found != live_.end());
  RequestRecord& record = found->second.record;
  record.end_ns = std::max(now_ns, record.sent_ns);
  record.finish = end.finish;
  record.error = end.error;
  if (end.prompt_tokens > 0) record.prompt_tokens = end.prompt_tokens;
  record.output_tokens = end.output_tokens;
  record.cached_tokens = end.cached_tokens;
  progress_.num_failed += record.failed() ? 1u : 0u;
  ++progress_.num_ended;
  writer_.Add(record);
  live_.erase(found);
  if (workload_.requests[request].arrival == Arrival::kClosed) {
    PushNextClosed(now_ns);
    return;
  }
  --num_open_;
  const std::uint32_t next = next_[request];
  if (next != kNone && !IsOver(now_ns))
    queue_.push({now_ns + workload_.requests[next].arrival_ns, next});
}

bool ReplayRun::ShouldCancel(std::int64_t now_ns) const {
  if (live_.empty()) return false;
  if (IsOver(now_ns)) return true;
  return workload_.closed_until_ns > 0 && now_ns >= workload_.closed_until_ns && num_open_ == 0;
}

std::vector<std::size_t> ReplayRun::running() const {
  std::vector<std::size_t> all;
  for (const auto& [request, live] : live_)
    all.push_back(request);
  std::ranges::sort(all);
  return all;
}

void ReplayRun::ShowProgress(std::int64_t now_ns) {
  if (!options_.progress) return;
  progress_.now_ns = now_ns;
  progress_.num_running = live_.size();
  progress_.phase = {};
  for (const Phase& phase : workload_.phases) {
    if (phase.begin_ns <= now_ns) progress_.phase = phase.name;
  }
  options_.progress(progress_);
}

}  // namespace kvrm
