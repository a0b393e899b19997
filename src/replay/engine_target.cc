// SPDX-License-Identifier: Apache-2.0
#include "replay/engine_target.h"

#include <time.h>

#include <algorithm>
#include <array>
#include <map>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/result.h"

namespace kvrm {
namespace {

constexpr std::int64_t kMaxSleepNs = 20'000'000;
// So many steps in a row without work or events while requests run.
constexpr std::uint32_t kPatience = 100000;

class ProbedExecutor final : public Executor {
 public:
  ProbedExecutor(std::unique_ptr<Executor> inner, const KvLayout& layout, StepProbe* probe)
      : inner_(std::move(inner)), layout_(layout), probe_(probe) {}

  std::span<const Bucket> buckets() const noexcept override { return inner_->buckets(); }
  bool waits_for_layers() const noexcept override { return inner_->waits_for_layers(); }
  void Run(const StepView& step) noexcept override {
    probe_->See(step, layout_);
    inner_->Run(step);
  }
  void Wait() noexcept override { inner_->Wait(); }
  std::span<const float> Logits(std::uint32_t sample) const noexcept override {
    return inner_->Logits(sample);
  }
  LogitStats Stats(std::uint32_t sample) const noexcept override { return inner_->Stats(sample); }
  std::span<const std::uint64_t> replays() const noexcept override { return inner_->replays(); }

 private:
  const std::unique_ptr<Executor> inner_;
  const KvLayout layout_;
  StepProbe* const probe_;
};

std::uint64_t MovedBytes(const TransferGroup& group, const KvLayout& layout) {
  if (group.kind == GroupKind::kMap) return 0;
  const std::uint64_t layers = group.kind == GroupKind::kBlocks && group.num_layers > 0
                                   ? group.num_layers
                                   : layout.num_layers;
  return layers * layout.layer_bytes() * group.num_blocks;
}

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

}  // namespace

void StepProbe::See(const StepView& step, const KvLayout& layout) {
  ++num_steps;
  num_rows = step.header->num_rows;
  num_tokens = step.header->num_tokens;
  num_groups = step.header->num_groups;
  moved_bytes = 0;
  num_copies = 0;
  num_maps = 0;
  bool has_slices = false;
  for (const TransferGroup& group : step.groups) {
    moved_bytes += MovedBytes(group, layout);
    num_maps += group.kind == GroupKind::kMap ? 1 : 0;
    num_copies += group.kind == GroupKind::kBlocks ? 1 : 0;
    has_slices = has_slices || group.kind == GroupKind::kLayerSlices;
  }
  if (has_slices) num_copies += layout.num_layers;
  attended_tokens = 0;
  prompt_pairs = 0;
  for (std::uint32_t row = 0; row < num_rows; ++row) {
    const auto last = static_cast<std::uint64_t>(step.positions[step.row_start[row + 1] - 1]);
    const std::uint64_t padded = step.header->padded_tokens;
    attended_tokens += padded > 0 ? padded : last + 1;
    const std::uint64_t count = step.row_start[row + 1] - step.row_start[row];
    // From last + 2 - count up to last + 1.
    if (count > 1) prompt_pairs += padded > 0 ? count * padded : count * (2 * last + 3 - count) / 2;
  }
}

EngineParts Probed(EngineParts parts, StepProbe* probe) {
  parts.make_executor = [make = std::move(parts.make_executor),
                         probe](const ExecutorNeeds& needs) -> std::unique_ptr<Executor> {
    return std::make_unique<ProbedExecutor>(make(needs), needs.layout, probe);
  };
  return parts;
}

void SleepUntil(std::int64_t now_ns, std::int64_t until_ns) {
  const std::int64_t wait_ns = std::min(until_ns - now_ns, kMaxSleepNs);
  if (wait_ns <= 0) return;
  const timespec wait{.tv_sec = 0, .tv_nsec = wait_ns};
  ::nanosleep(&wait, nullptr);
}

class EngineTarget::Session {
 public:
  Session(EngineTarget& target, ReplayRun& run)
      : target_(target), run_(run), begin_ns_(target.clock_.NowNs()) {}

  void Run() {
    std::uint32_t patience = kPatience;
    while (!run_.done()) {
      while (const std::optional<std::size_t> request = run_.TakeDue(Now()))
        Submit(*request);
      if (run_.ShouldCancel(Now())) CancelAll();
      const bool worked = Step();
      const bool heard = Poll();
      run_.ShowProgress(Now());
      if (run_.done()) return;
      patience = worked || heard || num_running_ == 0 ? kPatience : patience - 1;
      if (patience == 0) throw StartError("the engine makes no progress with requests waiting");
      if (!worked && !heard && num_running_ == 0) target_.options_.wait(Now(), run_.NextDue());
    }
  }

 private:
  std::int64_t Now() const { return target_.clock_.NowNs() - begin_ns_; }

  void Submit(std::size_t request) {
    const TraceRequest& asked = run_.workload().requests[request];
    Request engine_request;
    engine_request.prompt = PromptTokens(run_.workload(), request, target_.options_.vocab);
    engine_request.max_tokens = asked.output_tokens;
    engine_request.sampling.temperature = 0.0f;
    engine_request.num_samples = asked.num_samples;
    const Result<RequestId> id = target_.engine_.Submit(std::move(engine_request));
    if (!id) return run_.OnEnd(request, Now(), {.finish = "error", .error = id.error().message});
    Served& served = served_[request];
    served.first = static_cast<std::uint64_t>(*id);
    served.num_open = asked.num_samples;
    served.end.prompt_tokens = asked.prompt_tokens;
    for (std::uint32_t i = 0; i < asked.num_samples; ++i)
      by_id_[served.first + i] = request;
    ++num_running_;
  }

  // Whether there was work. What moved nothing and ran nothing is no step.
  bool Step() {
    const std::uint64_t before = target_.probe_.num_steps;
    StepRecord step = {.at_ns = Now()};
    const bool worked = target_.engine_.Step();
    if (target_.probe_.num_steps == before) return worked;
    const StepProbe& probe = target_.probe_;
    const KvStats kv = target_.engine_.kv_stats();
    const std::uint64_t scale = target_.options_.bytes_scale;
    step.ns = Now() - step.at_ns;
    step.num_rows = probe.num_rows;
    step.num_tokens = probe.num_tokens;
    step.num_groups = probe.num_groups;
    step.moved_bytes = probe.moved_bytes * scale;
    step.reserved_bytes = kv.committed_bytes * scale;
    step.mapped_bytes = kv.mapped_bytes * scale;
    step.live_bytes = kv.live_bytes * scale;
    run_.OnStep(step);
    return worked;
  }

  bool Poll() {
    bool heard = false;
    while (const std::size_t count = target_.engine_.Poll(events_)) {
      heard = true;
      const std::int64_t now_ns = Now();
      for (const TokenEvent& event : std::span(events_).first(count))
        Take(event, now_ns);
    }
    return heard;
  }

  // Of several samples the first one's tokens are looked at; the request ends with the last.
  void Take(const TokenEvent& event, std::int64_t now_ns) {
    const auto id = static_cast<std::uint64_t>(event.request);
    const auto found = by_id_.find(id);
    CHECK(found != by_id_.end());
    const std::size_t request = found->second;
    Served& served = served_.at(request);
    if (id == served.first && event.token >= 0) {
      if (served.end.output_tokens++ == 0) served.end.cached_tokens = event.num_cached_tokens;
      run_.OnOutput(request, now_ns);
    }
    if (event.finish == FinishReason::kNone) return;
    by_id_.erase(found);
    if (id == served.first) {
      served.end.finish = FinishName(event.finish);
      if (event.finish == FinishReason::kError) served.end.error = "the logits are not finite";
    }
    if (--served.num_open > 0) return;
    const ReplayRun::End end = std::move(served.end);
    served_.erase(request);
    --num_running_;
    run_.OnEnd(request, now_ns, end);
  }

  void CancelAll() {
    if (std::exchange(cancelled_, true)) return;
    for (const auto& [id, request] : by_id_)
      target_.engine_.Cancel(RequestId{id});
  }

  struct Served {
    std::uint64_t first = 0;
    std::uint32_t num_open = 0;
    ReplayRun::End end = {};
  };

  EngineTarget& target_;
  ReplayRun& run_;
  const std::int64_t begin_ns_;
  std::map<std::uint64_t, std::size_t> by_id_;  // engine requests, in order
  std::unordered_map<std::size_t, Served> served_;
  std::array<TokenEvent, 256> events_;
  std::uint64_t num_running_ = 0;
  bool cancelled_ = false;
};

EngineTarget::EngineTarget(Engine& engine, const StepProbe& probe, const Clock& clock,
                           const EngineTargetOptions& options)
    : engine_(engine), probe_(probe), clock_(clock), options_(options) {
  CHECK(options.wait != nullptr);
}

void EngineTarget::Run(ReplayRun& run) {
  Session(*this, run).Run();
}

}  // namespace kvrm
