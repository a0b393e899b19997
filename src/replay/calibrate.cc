// SPDX-License-Identifier: Apache-2.0
#include "replay/calibrate.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "base/result.h"
#include "base/rng.h"
#include "engine/random_request.h"
#include "replay/engine_target.h"
#include "replay/metrics.h"

namespace kvrm {
namespace {

// What a step's tokens cost is fitted as a line between each two of these.
constexpr std::array<std::uint32_t, 11> kKnots = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024};
// step, row, attended byte, pair, then a slope for each stretch between two knots.
constexpr std::size_t kNumPlain = 4;
constexpr std::size_t kNumFeatures = kNumPlain + kKnots.size() - 1;
using Features = std::array<double, kNumFeatures>;

// A step this much over the median of its kind lost its core to somebody else.
constexpr double kLostFactor = 3.0;
constexpr std::size_t kLeastSteps = 3;
constexpr int kSweeps = 20000;

Features FeaturesOf(const StepCell& cell) {
  Features x = {1.0, cell.rows, cell.attended_bytes, cell.prompt_pairs};
  for (std::size_t i = 1; i < kKnots.size(); ++i) {
    const bool is_last = i + 1 == kKnots.size();
    const double reach = is_last ? cell.tokens : std::min<double>(cell.tokens, kKnots[i]);
    x[kNumPlain + i - 1] = std::max(reach - kKnots[i - 1], 0.0);
  }
  return x;
}

// Least squares of sum(x * cost) / ns against 1, no cost below zero: one cost after another, the
// others as they are, until nothing changes any more.
Features Solve(std::span<const StepCell> cells) {
  Features scale = {};
  std::vector<Features> rows;
  for (const StepCell& cell : cells) {
    rows.push_back(FeaturesOf(cell));
    for (std::size_t j = 0; j < kNumFeatures; ++j) {
      rows.back()[j] /= cell.ns;
      scale[j] += rows.back()[j] * rows.back()[j];
    }
  }
  Features costs = {};
  std::vector<double> left(rows.size(), 1.0);
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    double change = 0.0;
    for (std::size_t j = 0; j < kNumFeatures; ++j) {
      if (scale[j] <= 0.0) continue;
      double slope = 0.0;
      for (std::size_t i = 0; i < rows.size(); ++i)
        slope += rows[i][j] * left[i];
      const double next = std::max(costs[j] + slope / scale[j], 0.0);
      const double delta = next - costs[j];
      costs[j] = next;
      change = std::max(change, std::abs(delta) * std::sqrt(scale[j]));
      for (std::size_t i = 0; i < rows.size(); ++i)
        left[i] -= rows[i][j] * delta;
    }
    if (change < 1e-9) break;
  }
  return costs;
}

class Calibration {
 public:
  Calibration(const CalibrateOptions& calibrate, const EngineParts& parts,
              const EngineOptions& options, const Clock& clock)
      : calibrate_(calibrate),
        clock_(clock),
        vocab_size_(parts.vocab_size),
        rng_(calibrate.seed, "calibrate"),
        engine_(Probed(parts, &probe_), options, clock),
        token_bytes_(static_cast<double>(parts.layout.token_bytes())) {}

  std::vector<StepCell> Measure() {
    const std::uint32_t step_tokens = calibrate_.max_step_tokens;
    // The first pass is not kept: it touches what was never touched.
    for (const bool kept : {false, true}) {
      kept_ = kept;
      for (const std::uint32_t context : calibrate_.contexts) {
        if (kept || context == calibrate_.contexts.back())
          for (const std::uint32_t rows : calibrate_.rows)
            if (kept || rows == calibrate_.rows.back()) Decode(rows, context);
      }
      for (std::uint32_t i = 0; i < calibrate_.repetitions; ++i) {
        for (std::uint32_t tokens = 2; tokens < step_tokens; tokens *= 2)
          Prompt(tokens);
        Prompt(step_tokens);
        if (calibrate_.longest_prompt > step_tokens) Prompt(calibrate_.longest_prompt);
        if (!kept) break;
      }
    }
    return Cells();
  }

 private:
  // Which steps are of one kind.
  struct Kind {
    std::uint32_t phase = 0;
    std::uint32_t rows = 0;
    std::uint32_t tokens = 0;
    std::uint64_t pairs = 0;
    auto operator<=>(const Kind&) const = default;
  };
  struct Seen {
    double attended = 0.0;
    std::vector<double> ns;
  };

  void Submit(std::uint32_t num_prompt, std::uint32_t num_output) {
    OrThrow(engine_.Submit(RandomRequest(rng_, vocab_size_, num_prompt, num_output)));
    ++num_running_;
  }

  // From one step's begin to the next one's, as a replay goes.
  void Step() {
    const std::uint64_t before = probe_.num_steps;
    const std::int64_t begin_ns = clock_.NowNs();
    engine_.Step();
    while (const std::size_t count = engine_.Poll(events_)) {
      for (const TokenEvent& event : std::span(events_).first(count))
        num_running_ -= event.finish != FinishReason::kNone ? 1u : 0u;
    }
    const auto ns = static_cast<double>(clock_.NowNs() - begin_ns);
    if (!kept_ || probe_.num_steps == before || probe_.moved_bytes > 0) return;
    Seen& seen = seen_[{phase_, probe_.num_rows, probe_.num_tokens, probe_.prompt_pairs}];
    seen.attended += static_cast<double>(probe_.attended_tokens);
    seen.ns.push_back(ns);
  }

  void Drain() {
    while (num_running_ > 0)
      Step();
  }

  void Decode(std::uint32_t rows, std::uint32_t context) {
    ++phase_;
    for (std::uint32_t row = 0; row < rows; ++row)
      Submit(context, calibrate_.decode_steps);
    for (std::uint32_t i = 0; i < calibrate_.decode_steps / 2 && num_running_ > 0; ++i)
      Step();
    // Beside rows that decode, a prompt of every size.
    for (std::uint32_t tokens = 4; tokens < calibrate_.max_step_tokens; tokens *= 4)
      Submit(tokens, 1);
    Drain();
  }

  void Prompt(std::uint32_t tokens) {
    phase_ = 0;
    Submit(tokens, 1);
    Drain();
  }

  std::vector<StepCell> Cells() const {
    std::vector<StepCell> cells;
    for (const auto& [kind, seen] : seen_) {
      if (seen.ns.size() < kLeastSteps) continue;
      std::vector<double> ns = seen.ns;
      std::ranges::sort(ns);
      const double limit = kLostFactor * ns[ns.size() / 2];
      std::erase_if(ns, [limit](double each) { return each > limit; });
      cells.push_back(
          {.rows = static_cast<double>(kind.rows),
           .tokens = static_cast<double>(kind.tokens),
           .attended_bytes = seen.attended / static_cast<double>(seen.ns.size()) * token_bytes_,
           .prompt_pairs = static_cast<double>(kind.pairs),
           .ns = std::reduce(ns.begin(), ns.end()) / static_cast<double>(ns.size()),
           .each_ns = ns});
    }
    return cells;
  }

  const CalibrateOptions& calibrate_;
  const Clock& clock_;
  const std::uint32_t vocab_size_;
  Rng rng_;
  StepProbe probe_;
  Engine engine_;
  const double token_bytes_;
  std::array<TokenEvent, 256> events_;
  std::uint32_t num_running_ = 0;
  std::uint32_t phase_ = 0;
  bool kept_ = false;
  std::map<Kind, Seen> seen_;
};

}  // namespace

namespace {

// Close where the tail is: the 99th percentile of gaps is read off it.
constexpr std::array<double, 13> kShares = {0.0,  0.05, 0.1,  0.25,  0.5,   0.75, 0.9,
                                            0.95, 0.98, 0.99, 0.995, 0.999, 1.0};

std::vector<SpreadPoint> SpreadOf(std::span<const StepCell> cells) {
  std::vector<double> ratios;
  for (const StepCell& cell : cells) {
    if (cell.each_ns.size() < kSpreadSteps) continue;
    for (const double ns : cell.each_ns)
      ratios.push_back(ns / cell.ns);
  }
  std::vector<SpreadPoint> spread;
  if (ratios.empty()) return spread;
  std::ranges::sort(ratios);
  for (const double share : kShares)
    spread.push_back({share, Percentile(ratios, share)});
  double mean = 0.0;
  for (std::size_t i = 1; i < spread.size(); ++i) {
    const double width = spread[i].share - spread[i - 1].share;
    mean += width * (spread[i].factor + spread[i - 1].factor) / 2.0;
  }
  for (SpreadPoint& point : spread)
    point.factor /= mean;
  return spread;
}

}  // namespace

DeviceProfile FitProfile(std::span<const StepCell> cells, const DeviceProfile& profile) {
  CHECK(!cells.empty());
  const Features costs = Solve(cells);
  DeviceProfile fitted = profile;
  fitted.step_us = costs[0] * 1e-3;
  fitted.row_us = costs[1] * 1e-3;
  fitted.kv_byte_ns = costs[2];
  fitted.pair_ns = costs[3];
  fitted.token_us = 0.0;
  fitted.spread = SpreadOf(cells);
  fitted.tokens_us = {{1.0, 0.0}};
  double most = 0.0;
  for (const StepCell& cell : cells)
    most = std::max(most, cell.tokens);
  for (std::size_t i = 1; i < kKnots.size(); ++i) {
    // What no step reached goes on as the last that one did.
    if (kKnots[i - 1] >= most) break;
    const double us =
        fitted.tokens_us.back().us + costs[kNumPlain + i - 1] * 1e-3 * (kKnots[i] - kKnots[i - 1]);
    fitted.tokens_us.push_back({static_cast<double>(kKnots[i]), us});
  }
  return fitted;
}

double PredictNs(const DeviceProfile& profile, const StepCell& cell) {
  return (profile.step_us + profile.row_us * cell.rows + TokensUs(profile, cell.tokens)) * 1e3 +
         cell.attended_bytes * profile.kv_byte_ns + cell.prompt_pairs * profile.pair_ns;
}

std::vector<StepCell> MeasureSteps(const CalibrateOptions& calibrate, EngineParts parts,
                                   EngineOptions options, const Clock& clock) {
  CHECK(!calibrate.rows.empty() && !calibrate.contexts.empty());
  const std::uint32_t most_rows = std::ranges::max(calibrate.rows);
  const std::uint32_t longest = std::max(
      std::ranges::max(calibrate.contexts) + calibrate.decode_steps, calibrate.longest_prompt + 1);
  if (longest > parts.max_context) {
    throw StartError("the longest history is " + std::to_string(longest) +
                     " tokens; the model has " + std::to_string(parts.max_context));
  }
  // Room for the prompts beside the rows.
  options.max_rows = most_rows + 8;
  options.max_context = longest;
  options.max_step_tokens = std::max(calibrate.max_step_tokens, options.max_rows);
  options.kv_tokens = std::uint64_t{most_rows + 8} * longest;
  options.max_queued = 2 * options.max_rows;
  options.max_queued_tokens = options.kv_tokens;
  options.prefix_cache = false;
  options.pace = {.itl_factor = 0.0};
  return Calibration(calibrate, parts, options, clock).Measure();
}

double MeasureMoveByteNs(const Clock& clock) {
  constexpr std::size_t kBytes = std::size_t{16} << 20;
  std::vector<char> source(kBytes, 1), target(kBytes, 2);
  std::int64_t least = std::numeric_limits<std::int64_t>::max();
  for (int i = 0; i < 5; ++i) {
    const std::int64_t begin_ns = clock.NowNs();
    std::memcpy(target.data(), source.data(), kBytes);
    least = std::min(least, clock.NowNs() - begin_ns);
    source[0] = target[kBytes - 1];
  }
  return static_cast<double>(std::max<std::int64_t>(least, 1)) / kBytes;
}

}  // namespace kvrm
