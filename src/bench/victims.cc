// SPDX-License-Identifier: Apache-2.0
#include "bench/victims.h"

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <string_view>
#include <utility>

#include "base/check.h"
#include "base/result.h"
#include "base/rng.h"
#include "base/thread_cpu.h"
#include "engine/random_request.h"

namespace kvrm {
namespace {

// By Disturbance.
constexpr std::array<std::string_view, 3> kNames = {"prompt", "burst", "oversubscribed"};
constexpr std::size_t kWindow = 64;  // tokens whose quiet gap is one number

Disturbance ParseDisturbance(const std::string& name) {
  const auto found = std::ranges::find(kNames, name);
  if (found == kNames.end()) {
    throw StartError("--disturbance: '" + name.substr(0, 40) +
                     "' is none of prompt, burst, oversubscribed");
  }
  return static_cast<Disturbance>(found - kNames.begin());
}

// "pace", or a number of tokens.
EngineOptions OptionsOf(const VictimsBench& bench, const BenchOptions& options,
                        const std::string& budget, Disturbance disturbance) {
  const std::uint32_t stream =
      bench.stream_prompt + bench.quiet_tokens + bench.disturbed_tokens + 1;
  const std::uint32_t burst = bench.burst_prompt + bench.burst_output;
  EngineOptions engine;
  engine.max_rows = std::max(32u, bench.streams + 1);
  engine.max_context = std::max({stream, bench.long_prompt + 1, burst});
  engine.max_queued = bench.burst + bench.streams;
  engine.num_threads = options.num_workers;
  engine.kernels = options.kernels;
  const std::uint64_t wanted = std::uint64_t{bench.streams} * stream;
  engine.kv_tokens = wanted + bench.long_prompt + std::uint64_t{bench.burst} * burst;
  // Half of what the streams hold by then and the burst will: 30 requests never run at once.
  if (disturbance == Disturbance::kOversubscribed) {
    const std::uint64_t held =
        std::uint64_t{bench.streams} * (bench.stream_prompt + bench.quiet_tokens);
    engine.kv_tokens = std::max<std::uint64_t>(engine.max_context,
                                               (held + std::uint64_t{bench.burst} * burst) / 2);
  }
  if (budget == "pace") {
    engine.pace = bench.pace;
  } else {
    engine.pace.itl_factor = 0;
    engine.max_step_tokens = ParseCounts("--budget", budget, 65536).front() + bench.streams;
  }
  return engine;
}

// One engine and one disturbance.
class VictimsRun {
 public:
  VictimsRun(const VictimsBench& bench, const EngineOptions& options, const Model& model,
             std::uint64_t seed)
      : bench_(bench),
        clock_(bench.processor_time ? static_cast<const Clock&>(thread_clock_) : system_clock_),
        vocab_size_(model.config().vocab_size),
        rng_(seed, "victims"),
        engine_(model, options, clock_) {}

  // Streams alone: seconds of the median gap near each token, [stream length].
  std::vector<double> MeasureQuiet() {
    const std::vector<RequestId> streams = Start();
    while (!AnyEnded(streams))
      Step();
    const std::size_t length = bench_.quiet_tokens + bench_.disturbed_tokens;
    std::vector<double> quiet(length);
    for (std::size_t first = 0; first < length; first += kWindow) {
      std::vector<double> gaps;
      for (const RequestId id : streams)
        AddGaps(id, {first, first + kWindow}, &gaps);
      std::ranges::sort(gaps);
      const double before = first == 0 ? 0 : quiet[first - 1];
      const double median = gaps.empty() ? before : Quantile(gaps, 0.5);
      for (std::size_t t = first; t < std::min(length, first + kWindow); ++t)
        quiet[t] = median;
    }
    return quiet;
  }

  json::object Measure(Disturbance disturbance, const std::vector<double>& quiet) {
    const std::vector<RequestId> streams = Start();
    const std::int64_t begin_ns = clock_.NowNs();
    const std::vector<RequestId> others = Disturb(disturbance);
    // Until the others have ended, or a stream has.
    while (!AllEnded(others) && !AnyEnded(streams))
      Step();
    const double seconds = static_cast<double>(clock_.NowNs() - begin_ns) * 1e-9;
    std::vector<double> ratios;
    for (const RequestId id : streams) {
      const std::vector<std::int64_t>& ns = records_.at(id).token_ns;
      for (std::size_t t = 1; t < ns.size(); ++t) {
        if (ns[t - 1] >= begin_ns)
          ratios.push_back(static_cast<double>(ns[t] - ns[t - 1]) * 1e-9 / quiet[t]);
      }
    }
    std::ranges::sort(ratios);
    std::uint64_t num_prompt = 0;
    for (const RequestId id : others)
      num_prompt += records_.at(id).token_ns.empty() ? 0 : records_.at(id).num_prompt;
    return {{"quiet_ms", Rounded(quiet[bench_.quiet_tokens] * 1e3)},
            {"p50", Rounded(Quantile(ratios, 0.5), 3)},
            {"p99", Rounded(Quantile(ratios, 0.99), 3)},
            {"p99.9", Rounded(Quantile(ratios, 0.999), 3)},
            {"max", Rounded(ratios.empty() ? 0 : ratios.back(), 3)},
            {"gaps", ratios.size()},
            {"prompt_tokens_per_s", Rounded(static_cast<double>(num_prompt) / seconds)},
            {"ended", NumEnded(others)},
            {"seconds", Rounded(seconds)},
            {"ttft_p50_ms", Rounded(FirstTokenSeconds(others) * 1e3)},
            {"preemptions", engine_.stats().num_preemptions}};
  }

 private:
  struct Record {
    std::vector<std::int64_t> token_ns;
    std::int64_t submitted_ns = 0;
    std::uint32_t num_prompt = 0;
    bool ended = false;
  };

  // Streams that have decoded their quiet part.
  std::vector<RequestId> Start() {
    std::vector<RequestId> streams;
    const std::uint32_t length = bench_.quiet_tokens + bench_.disturbed_tokens;
    for (std::uint32_t i = 0; i < bench_.streams; ++i)
      streams.push_back(Submit(bench_.stream_prompt, length));
    while (Least(streams) < bench_.quiet_tokens)
      Step();
    return streams;
  }

  RequestId Submit(std::uint32_t num_prompt, std::uint32_t num_output) {
    const RequestId id =
        OrThrow(engine_.Submit(RandomRequest(rng_, vocab_size_, num_prompt, num_output)));
    Record& record = records_[id];
    record.submitted_ns = clock_.NowNs();
    record.num_prompt = num_prompt;
    record.token_ns.reserve(num_output);
    return id;
  }

  std::vector<RequestId> Disturb(Disturbance disturbance) {
    if (disturbance == Disturbance::kPrompt) return {Submit(bench_.long_prompt, 1)};
    std::vector<RequestId> ids;
    for (std::uint32_t i = 0; i < bench_.burst; ++i)
      ids.push_back(Submit(bench_.burst_prompt, bench_.burst_output));
    return ids;
  }

  void Step() {
    engine_.Step();
    const std::int64_t now_ns = clock_.NowNs();
    TokenEvent event;
    while (engine_.Poll({&event, 1}) == 1) {
      Record& record = records_.at(event.request);
      if (event.token >= 0) record.token_ns.push_back(now_ns);
      if (event.finish != FinishReason::kNone) record.ended = true;
    }
  }

  std::size_t Least(const std::vector<RequestId>& ids) {
    std::size_t least = records_.at(ids[0]).token_ns.size();
    for (const RequestId id : ids)
      least = std::min(least, records_.at(id).token_ns.size());
    return least;
  }
  bool AnyEnded(const std::vector<RequestId>& ids) const {
    return std::ranges::any_of(ids, [this](RequestId id) { return records_.at(id).ended; });
  }
  bool AllEnded(const std::vector<RequestId>& ids) const { return NumEnded(ids) == ids.size(); }
  std::size_t NumEnded(const std::vector<RequestId>& ids) const {
    return static_cast<std::size_t>(
        std::ranges::count_if(ids, [this](RequestId id) { return records_.at(id).ended; }));
  }

  // Seconds before tokens [range.first, range.second) of the request, those that there are.
  void AddGaps(RequestId id, std::pair<std::size_t, std::size_t> range,
               std::vector<double>* gaps) const {
    const std::vector<std::int64_t>& ns = records_.at(id).token_ns;
    for (std::size_t t = std::max<std::size_t>(range.first, 1); t < range.second && t < ns.size();
         ++t)
      gaps->push_back(static_cast<double>(ns[t] - ns[t - 1]) * 1e-9);
  }
  double FirstTokenSeconds(const std::vector<RequestId>& ids) const {
    std::vector<double> seconds;
    for (const RequestId id : ids) {
      const Record& record = records_.at(id);
      if (record.token_ns.empty()) continue;
      seconds.push_back(static_cast<double>(record.token_ns[0] - record.submitted_ns) * 1e-9);
    }
    std::ranges::sort(seconds);
    return Quantile(seconds, 0.5);
  }
  static double Quantile(const std::vector<double>& ascending, double q) {
    if (ascending.empty()) return 0;
    const auto at = static_cast<std::size_t>(q * static_cast<double>(ascending.size()));
    return ascending[std::min(at, ascending.size() - 1)];
  }

  const VictimsBench& bench_;
  const SystemClock system_clock_;
  const ThreadCpuClock thread_clock_;
  const Clock& clock_;
  const std::uint32_t vocab_size_;
  Rng rng_;
  Engine engine_;
  std::map<RequestId, Record> records_;
};

}  // namespace

void RunVictimsBench(const VictimsBench& bench, const BenchOptions& options, const Model& model,
                     const BenchSink& sink) {
  CHECK(bench.streams > 0 && bench.quiet_tokens > 1);
  if (bench.processor_time && options.num_workers != 1)
    throw StartError("--processor-time measures one thread: give --workers 1");
  std::vector<Disturbance> disturbances;
  for (const std::string& name : bench.disturbances)
    disturbances.push_back(ParseDisturbance(name));
  const std::vector<double> quiet =
      VictimsRun(bench, OptionsOf(bench, options, "pace", Disturbance::kPrompt), model,
                 options.seed)
          .MeasureQuiet();
  for (const Disturbance disturbance : disturbances) {
    for (const std::string& budget : bench.budgets) {
      VictimsRun run(bench, OptionsOf(bench, options, budget, disturbance), model, options.seed);
      json::object line = {{"bench", "victims"},
                           {"model", model.config().name},
                           {"disturbance", kNames[static_cast<std::size_t>(disturbance)]},
                           {"budget", budget}};
      for (auto& [key, value] : run.Measure(disturbance, quiet))
        line[key] = value;
      sink(line);
    }
  }
}

}  // namespace kvrm
