// SPDX-License-Identifier: Apache-2.0
// The production engine over an executor whose steps take a time that is stated: a clock that only
// it moves on. Tests only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "base/rng.h"
#include "device/host_device.h"
#include "engine/engine.h"
#include "exec/executor.h"

namespace kvrm {

class SteppedClock final : public Clock {
 public:
  std::int64_t NowNs() const noexcept override { return now_ns_; }
  std::int64_t UnixSeconds() const noexcept override { return now_ns_ / 1'000'000'000; }
  void Advance(double seconds) noexcept { now_ns_ += static_cast<std::int64_t>(seconds * 1e9); }

 private:
  std::int64_t now_ns_ = 1'000'000'000;
};

// Of 135 million parameters in Q8_0 on two cores, about: 7 ms for one row, 14 ms for eight. The
// first prompt tokens ride along with the weights, so the cost is not linear. Seconds.
inline double MiddleModelSeconds(const StepLoad& load) {
  const double tokens = load.rows + load.prompt_tokens;
  return std::max(6.3e-3 + 0.3e-3 * tokens, 1e-3 + 0.95e-3 * tokens) +
         2e-6 * (load.context + load.prompt_context) + 0.6e-6 * load.attended;
}
// Of the demo model: nothing is shared between rows.
inline double TinyModelSeconds(const StepLoad& load) {
  return 35e-6 + 25e-6 * (load.rows + load.prompt_tokens) +
         0.05e-6 * (load.context + load.prompt_context) + 0.01e-6 * load.attended;
}

class TimedExecutor final : public Executor {
 public:
  using Cost = std::function<double(const StepLoad&)>;
  static constexpr std::uint32_t kVocab = 8;

  TimedExecutor(const ExecutorNeeds& needs, SteppedClock& clock, Cost cost)
      : clock_(clock),
        cost_(std::move(cost)),
        bucket_{.max_rows = needs.limits.max_rows, .max_tokens = needs.limits.max_tokens},
        logits_(kVocab),
        stats_(1, kVocab) {
    for (std::size_t i = 0; i < logits_.size(); ++i)
      logits_[i] = static_cast<float>(i);
    stats_.Compute(0, logits_);
  }

  std::span<const Bucket> buckets() const noexcept override { return {&bucket_, 1}; }
  void Run(const StepView& step) noexcept override {
    StepLoad load;
    for (std::uint32_t r = 0; r < step.header->num_rows; ++r) {
      const std::uint32_t begin = step.row_start[r];
      const std::uint32_t end = step.row_start[r + 1];
      const double before = step.positions[begin];
      if (end - begin == 1)
        load.AddRow(before + 1);
      else
        load.AddPrompt(before, end - begin);
    }
    clock_.Advance(cost_(load));
    ++replays_;
  }
  void Wait() noexcept override {}
  std::span<const float> Logits(std::uint32_t) const noexcept override { return logits_; }
  LogitStats Stats(std::uint32_t) const noexcept override { return stats_.Of(0); }
  std::span<const std::uint64_t> replays() const noexcept override { return {&replays_, 1}; }

 private:
  SteppedClock& clock_;
  const Cost cost_;
  const Bucket bucket_;
  std::vector<float> logits_;
  PlainLogitStats stats_;
  std::uint64_t replays_ = 0;
};

// An engine, its clock, and what has come out of it.
class TimedWorld {
 public:
  struct Record {
    std::vector<std::int64_t> token_ns;
    FinishReason finish = FinishReason::kNone;
    std::int64_t submitted_ns = 0;
    std::int64_t ended_ns = 0;
  };

  TimedWorld(const EngineOptions& options, TimedExecutor::Cost cost)
      : engine_({.layout = {.num_layers = 1,
                            .num_kv_heads = 1,
                            .head_dim = 1,
                            .block_tokens = 16,
                            .dtype = DType::kF32},
                 .vocab_size = TimedExecutor::kVocab,
                 .max_context = 1u << 20,
                 .model_digest = "timed",
                 .device = &device_,
                 .make_executor = [this,
                                   cost](const ExecutorNeeds& needs) -> std::unique_ptr<Executor> {
                   return std::make_unique<TimedExecutor>(needs, clock_, cost);
                 }},
                options, clock_) {}

  std::int64_t now_ns() const { return clock_.NowNs(); }
  Engine& engine() { return engine_; }
  const Record& record(RequestId id) const { return records_.at(id); }
  const std::map<RequestId, Record>& records() const { return records_; }

  // Prompts differ from the first token on, so that nothing of them is found in the cache.
  static Request MakeRequest(std::uint32_t num_prompt, std::uint32_t num_output,
                             std::uint64_t seed) {
    Request request;
    for (std::uint32_t i = 0; i < num_prompt; ++i) {
      request.prompt.push_back(
          static_cast<std::int32_t>(Mix64(seed << 32 | i) % TimedExecutor::kVocab));
    }
    request.max_tokens = num_output;
    request.sampling.temperature = 0;
    return request;
  }
  RequestId Submit(Request request) {
    const RequestId id = OrThrow(engine_.Submit(std::move(request)));
    records_[id].submitted_ns = clock_.NowNs();
    return id;
  }
  RequestId Submit(std::uint32_t num_prompt, std::uint32_t num_output) {
    return Submit(MakeRequest(num_prompt, num_output, ++seed_));
  }

  // One step, and its events. False: there was nothing to do.
  bool Step() {
    const bool worked = engine_.Step();
    TokenEvent event;
    while (engine_.Poll({&event, 1}) == 1) {
      Record& record = records_[event.request];
      if (event.token >= 0) record.token_ns.push_back(clock_.NowNs());
      record.finish = event.finish;
      if (event.finish != FinishReason::kNone) record.ended_ns = clock_.NowNs();
    }
    return worked;
  }
  void RunFor(double seconds) {
    const std::int64_t end_ns = clock_.NowNs() + static_cast<std::int64_t>(seconds * 1e9);
    while (clock_.NowNs() < end_ns) {
      if (!Step()) clock_.Advance(1e-3);
    }
  }
  void RunToEnd() {
    while (Step() || engine_.stats().num_running + engine_.stats().num_waiting > 0) {
    }
  }

  // Seconds between tokens of these requests, from `begin_ns` on, ascending.
  std::vector<double> Gaps(const std::vector<RequestId>& ids, std::int64_t begin_ns) const {
    std::vector<double> gaps;
    for (const RequestId id : ids) {
      const std::vector<std::int64_t>& ns = record(id).token_ns;
      for (std::size_t i = 1; i < ns.size(); ++i) {
        if (ns[i - 1] >= begin_ns) gaps.push_back(static_cast<double>(ns[i] - ns[i - 1]) * 1e-9);
      }
    }
    std::sort(gaps.begin(), gaps.end());
    return gaps;
  }

 private:
  SteppedClock clock_;
  HostDevice device_;
  Engine engine_;
  std::map<RequestId, Record> records_;
  std::uint64_t seed_ = 0;
};

inline double QuantileOf(const std::vector<double>& ascending, double q) {
  const auto at = static_cast<std::size_t>(q * static_cast<double>(ascending.size()));
  return ascending[std::min(at, ascending.size() - 1)];
}

}  // namespace kvrm
