// SPDX-License-Identifier: Apache-2.0
#include "replay/engine_client.h"

#include <span>
#include <string>
#include <utility>

#include "base/check.h"
#include "base/result.h"
#include "engine/metrics.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kNone = ~std::uint32_t{0};

const char* FinishName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kAborted:
      return "cancelled";
    default:
      return "error";
  }
}

std::string ErrorText(FinishReason reason) {
  return reason == FinishReason::kError ? "the logits are not finite" : FinishReasonName(reason);
}

}  // namespace

EngineClient::EngineClient(Engine& engine, const StepProbe& probe, const Clock& clock,
                           ReplayRun& run, const EngineClientOptions& options)
    : engine_(engine),
      probe_(probe),
      clock_(clock),
      run_(run),
      options_(options),
      begin_ns_(clock.NowNs()) {}

void EngineClient::Submit(std::size_t request) {
  const TraceRequest& asked = run_.workload().requests[request];
  Request engine_request;
  engine_request.prompt = PromptTokens(run_.workload(), request, options_.vocab);
  engine_request.max_tokens = asked.output_tokens;
  engine_request.sampling.temperature = 0.0f;
  engine_request.num_samples = asked.num_samples;
  const Result<RequestId> id = engine_.Submit(std::move(engine_request));
  if (!id) return End(request, NowNs(), {.finish = "error", .error = id.error().message});
  if (free_served_.empty()) {
    free_served_.push_back(static_cast<std::uint32_t>(served_.size()));
    served_.emplace_back();
  }
  const std::uint32_t idx = free_served_.back();
  free_served_.pop_back();
  const auto first_id = static_cast<std::uint64_t>(*id);
  served_[idx] = {.request = request, .first_id = first_id, .num_open = asked.num_samples};
  served_[idx].end.prompt_tokens = asked.prompt_tokens;
  // Ids ascend; those that nobody got stay without an owner.
  served_of_id_.resize(first_id, kNone);
  served_of_id_.resize(first_id + asked.num_samples, idx);
  ++num_running_;
}

bool EngineClient::Step() {
  const std::uint64_t before = probe_.num_steps;
  StepRecord step = {.at_ns = NowNs()};
  const bool worked = engine_.Step();
  if (probe_.num_steps == before) return worked;
  const KvStats kv = engine_.kv_stats();
  const std::uint64_t scale = options_.bytes_scale;
  step.ns = NowNs() - step.at_ns;
  step.num_rows = probe_.num_rows;
  step.num_tokens = probe_.num_tokens;
  step.num_groups = probe_.num_groups;
  step.moved_bytes = probe_.moved_bytes * scale;
  step.reserved_bytes = kv.committed_bytes * scale;
  step.mapped_bytes = kv.mapped_bytes * scale;
  step.live_bytes = kv.live_bytes * scale;
  step.replica = options_.replica;
  run_.OnStep(step);
  // Between steps, and behind the time of this one.
  const std::int64_t now_ns = NowNs();
  if (run_.WantsMap(now_ns))
    run_.OnMap({.at_ns = now_ns, .num_blocks = kv.num_blocks + 1, .runs = engine_.BlockMap()});
  return worked;
}

bool EngineClient::Poll() {
  bool heard = false;
  while (const std::size_t count = engine_.Poll(events_)) {
    heard = true;
    const std::int64_t now_ns = NowNs();
    for (const TokenEvent& event : std::span(events_).first(count))
      Take(event, now_ns);
  }
  return heard;
}

// Of several samples the first one's tokens are looked at; the request ends with the last.
void EngineClient::Take(const TokenEvent& event, std::int64_t now_ns) {
  const auto id = static_cast<std::uint64_t>(event.request);
  CHECK(id < served_of_id_.size() && served_of_id_[id] != kNone);
  const std::uint32_t idx = served_of_id_[id];
  Served& served = served_[idx];
  if (id == served.first_id && event.token >= 0) {
    if (served.end.output_tokens++ == 0) served.end.cached_tokens = event.num_cached_tokens;
    run_.OnOutput(served.request, now_ns);
  }
  if (event.finish == FinishReason::kNone) return;
  served_of_id_[id] = kNone;
  if (id == served.first_id) {
    served.end.finish = FinishName(event.finish);
    if (served.end.finish == "error") served.end.error = ErrorText(event.finish);
  }
  if (--served.num_open > 0) return;
  --num_running_;
  End(served.request, now_ns, served.end);
  free_served_.push_back(idx);
}

void EngineClient::End(std::size_t request, std::int64_t now_ns, const ReplayRun::End& end) {
  if (options_.on_end) options_.on_end(request);
  run_.OnEnd(request, now_ns, end);
}

void EngineClient::CancelAll() {
  if (std::exchange(cancelled_, true)) return;
  for (std::uint64_t id = 0; id < served_of_id_.size(); ++id) {
    if (served_of_id_[id] != kNone) engine_.Cancel(RequestId{id});
  }
}

}  // namespace kvrm
