// SPDX-License-Identifier: Apache-2.0
#include "replay/device_profile.h"

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <cmath>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/rng.h"

namespace kvrm {
namespace {

// Of a layer: one head of one dimension, F32, K and V.
constexpr std::uint32_t kSimTokenBytes = 8;
constexpr std::uint32_t kMaxLayers = 1024;
constexpr double kMaxCost = 1e9;
constexpr double kMaxFactor = 1000.0;
constexpr std::uint32_t kMaxTokenBytes = 64u << 20;
constexpr std::uint32_t kMaxContext = 1u << 24;

// Every token is 0, as nobody looks at them; prompts differ, and that is what prefixes see.
class CostExecutor final : public Executor {
 public:
  CostExecutor(const ExecutorNeeds& needs, const DeviceProfile& profile, StepProbe* probe,
               SimClock* clock, std::uint64_t seed)
      : layout_(needs.layout),
        profile_(profile),
        rng_(seed, "spread"),
        probe_(probe),
        clock_(clock),
        logits_(kProfileVocab),
        stats_(1, kProfileVocab) {
    logits_[0] = 1.0f;
    stats_.Compute(0, logits_);
    const std::uint32_t rows = needs.limits.max_rows;
    // Few rows in a small bucket: padding is what planning and checksums would cost most.
    for (std::uint32_t part = 64; part > 0; part /= 2) {
      if (rows / part > 0) buckets_.push_back({.max_rows = rows / part, .max_tokens = rows / part});
    }
    const std::uint32_t tokens = needs.limits.max_tokens;
    for (std::uint32_t part = 8; part > 0 && tokens > rows; part /= 2) {
      if (rows / part > 0) buckets_.push_back({.max_rows = rows / part, .max_tokens = tokens});
    }
    replays_.resize(buckets_.size());
  }

  std::span<const Bucket> buckets() const noexcept override { return buckets_; }
  void Run(const StepView& step) noexcept override {
    ++replays_[step.header->bucket];
    probe_->See(step, layout_);
  }
  void Wait() noexcept override {
    std::int64_t ns = StepCostNs(profile_, *probe_, ProfileBytesScale(profile_));
    if (!profile_.spread.empty()) {
      const double factor = SpreadFactor(profile_, rng_.Uniform());
      ns = std::max<std::int64_t>(std::llround(static_cast<double>(ns) * factor), 1);
    }
    clock_->Advance(ns);
  }
  std::span<const float> Logits(std::uint32_t) const noexcept override { return logits_; }
  LogitStats Stats(std::uint32_t) const noexcept override { return stats_.Of(0); }
  std::span<const std::uint64_t> replays() const noexcept override { return replays_; }

 private:
  const KvLayout layout_;
  const DeviceProfile profile_;
  Rng rng_;
  StepProbe* const probe_;
  SimClock* const clock_;
  std::vector<Bucket> buckets_;
  std::vector<std::uint64_t> replays_;
  std::vector<float> logits_;
  PlainLogitStats stats_;
};

Error Bad(const std::string& what) {
  return {ErrorCode::kInvalidArgument, "device profile: " + what};
}

// [[x, y], ..]: x ascend strictly and y do not descend.
std::optional<std::vector<std::pair<double, double>>> ParsePoints(const json::value& value) {
  std::vector<std::pair<double, double>> points;
  const json::array* array = value.if_array();
  if (array == nullptr || array->size() > kMaxTokensPoints) return std::nullopt;
  for (const json::value& each : *array) {
    const json::array* pair = each.if_array();
    if (pair == nullptr || pair->size() != 2) return std::nullopt;
    boost::system::error_code code;
    const double x = pair->at(0).is_number() ? pair->at(0).to_number<double>(code) : -1;
    const double y = pair->at(1).is_number() ? pair->at(1).to_number<double>(code) : -1;
    if (code || !(x >= 0.0 && x <= kMaxCost) || !(y >= 0.0 && y <= kMaxCost)) return std::nullopt;
    if (!points.empty() && (x <= points.back().first || y < points.back().second))
      return std::nullopt;
    points.emplace_back(x, y);
  }
  return points;
}

// [[tokens, us], ..]
bool ParseTokensUs(const json::value& value, DeviceProfile* profile) {
  const auto points = ParsePoints(value);
  if (!points) return false;
  for (const auto& [tokens, us] : *points)
    profile->tokens_us.push_back({tokens, us});
  return true;
}

// [[share, factor], ..]
bool ParseSpread(const json::value& value, DeviceProfile* profile) {
  const auto points = ParsePoints(value);
  if (!points) return false;
  for (const auto& [share, factor] : *points)
    profile->spread.push_back({share, factor});
  if (points->empty()) return true;
  return points->size() > 1 && points->front().first == 0.0 && points->back().first == 1.0 &&
         points->back().second <= kMaxFactor;
}

}  // namespace

Result<DeviceProfile> ParseDeviceProfile(std::string_view text) {
  const Result<json::value> value = ParseJson(text, {.max_bytes = 1u << 16});
  if (!value) return Bad(value.error().message);
  const json::object* object = value->if_object();
  if (object == nullptr) return Bad("is no JSON object");
  DeviceProfile profile;
  for (const auto& member : *object) {
    const std::string name(member.key());
    if (name == "name" && member.value().is_string()) {
      profile.name = std::string(member.value().get_string());
      continue;
    }
    if (name == "tokens_us") {
      if (ParseTokensUs(member.value(), &profile)) continue;
      return Bad("tokens_us is no array of at most 64 pairs [tokens, us] that ascend");
    }
    if (name == "spread") {
      if (ParseSpread(member.value(), &profile)) continue;
      return Bad(
          "spread is no array of at most 64 pairs [share, factor] that ascend, from share 0 to "
          "1 and up to factor 1000");
    }
    boost::system::error_code code;
    const double number = member.value().is_number() ? member.value().to_number<double>(code) : -1;
    double* cost = name == "step_us"        ? &profile.step_us
                   : name == "row_us"       ? &profile.row_us
                   : name == "token_us"     ? &profile.token_us
                   : name == "kv_byte_ns"   ? &profile.kv_byte_ns
                   : name == "pair_ns"      ? &profile.pair_ns
                   : name == "move_byte_ns" ? &profile.move_byte_ns
                   : name == "group_us"     ? &profile.group_us
                   : name == "map_us"       ? &profile.map_us
                                            : nullptr;
    if (cost != nullptr) {
      if (code || !(number >= 0.0 && number <= kMaxCost))
        return Bad(name + " is no number from 0 to 1e9");
      *cost = number;
    } else if (name == "kv_token_bytes" && number >= kSimTokenBytes && number <= kMaxTokenBytes) {
      profile.kv_token_bytes = static_cast<std::uint32_t>(number);
    } else if (name == "num_layers" && number >= 1 && number <= kMaxLayers) {
      profile.num_layers = static_cast<std::uint32_t>(number);
    } else if (name == "dense_only" && member.value().is_bool()) {
      profile.dense_only = member.value().get_bool();
    } else if (name == "max_context" && number >= 64 && number <= kMaxContext) {
      profile.max_context = static_cast<std::uint32_t>(number);
    } else {
      return Bad(name +
                 " is unknown or out of range (kv_token_bytes 8 to 2^26, max_context 64 to "
                 "2^24, num_layers 1 to 1024, dense_only true or false)");
    }
  }
  if (!object->contains("name")) return Bad("name is missing");
  return profile;
}

std::string DeviceProfileJson(const DeviceProfile& profile) {
  json::array points;
  for (const TokensPoint& point : profile.tokens_us)
    points.push_back(json::array{point.tokens, point.us});
  json::array spread;
  for (const SpreadPoint& point : profile.spread)
    spread.push_back(json::array{point.share, point.factor});
  json::object object = {{"name", profile.name},
                         {"step_us", profile.step_us},
                         {"row_us", profile.row_us},
                         {"token_us", profile.token_us},
                         {"tokens_us", std::move(points)},
                         {"spread", std::move(spread)},
                         {"kv_byte_ns", profile.kv_byte_ns},
                         {"pair_ns", profile.pair_ns},
                         {"move_byte_ns", profile.move_byte_ns},
                         {"group_us", profile.group_us},
                         {"map_us", profile.map_us},
                         {"num_layers", profile.num_layers},
                         {"dense_only", profile.dense_only},
                         {"kv_token_bytes", profile.kv_token_bytes},
                         {"max_context", profile.max_context}};
  return json::serialize(object) + "\n";
}

double TokensUs(const DeviceProfile& profile, double tokens) {
  const std::vector<TokensPoint>& points = profile.tokens_us;
  if (points.empty()) return 0.0;
  if (points.size() == 1 || tokens <= points[0].tokens) return points[0].us;
  std::size_t above = 1;
  while (above + 1 < points.size() && points[above].tokens < tokens)
    ++above;
  const TokensPoint& a = points[above - 1];
  const TokensPoint& b = points[above];
  return a.us + (b.us - a.us) * (tokens - a.tokens) / (b.tokens - a.tokens);
}

double SpreadFactor(const DeviceProfile& profile, double share) {
  const std::vector<SpreadPoint>& points = profile.spread;
  if (points.empty()) return 1.0;
  std::size_t above = 1;
  while (above + 1 < points.size() && points[above].share < share)
    ++above;
  const SpreadPoint& a = points[above - 1];
  const SpreadPoint& b = points[above];
  return a.factor + (b.factor - a.factor) * (share - a.share) / (b.share - a.share);
}

std::optional<DeviceProfile> FindDeviceProfile(std::string_view name) {
  // Llama-3.1-8B in 16 bits on one device: 16.06 GB of weights, 131,072 bytes of KV a token.
  // Bandwidth and arithmetic at 80 % and 60 % of what NVIDIA's data sheets say (A100 80 GB SXM,
  // H200 SXM, GH200 with HBM3; dense BF16). The shares, map_us and all of the npu are assumptions.
  const auto device = [name](double gb_per_s, double tflops) {
    const double byte_ns = 1.0 / (0.8 * gb_per_s);
    const double flop_us = 1e-6 / (0.6 * tflops);
    return DeviceProfile{.name = std::string(name) + " (model)",
                         .step_us = 16.06e6 * byte_ns,
                         .row_us = 0.0,
                         .token_us = 16.06e9 * flop_us,
                         .kv_byte_ns = byte_ns,
                         .pair_ns = 524288.0 * flop_us * 1e3,
                         .move_byte_ns = 2.0 * byte_ns,
                         .group_us = 2.3,
                         .map_us = 40.0,
                         .num_layers = 32,
                         .kv_token_bytes = 131072,
                         .max_context = 131072};
  };
  if (name == "example") return DeviceProfile{};
  if (name == "a100") return device(2039, 312);
  if (name == "h200") return device(4800, 989);
  if (name == "gh200") return device(4000, 989);
  if (name == "npu") {
    DeviceProfile profile = device(800, 100);
    profile.group_us = 1.0;
    profile.dense_only = true;
    return profile;
  }
  return std::nullopt;
}

bool CanShow(const DeviceProfile& profile, KvView view) {
  const bool in_place =
      view == KvView::kExtents || view == KvView::kPaged || view == KvView::kMapped;
  return !(profile.dense_only && in_place);
}

std::int64_t StepCostNs(const DeviceProfile& profile, const StepProbe& step,
                        std::uint64_t bytes_scale) {
  const double us = profile.step_us + profile.row_us * step.num_rows +
                    profile.token_us * step.num_tokens + TokensUs(profile, step.num_tokens);
  const double attended = static_cast<double>(step.attended_tokens) * profile.kv_token_bytes;
  const double moved = static_cast<double>(step.moved_bytes * bytes_scale);
  const double ns = us * 1e3 + attended * profile.kv_byte_ns +
                    static_cast<double>(step.prompt_pairs) * profile.pair_ns +
                    moved * profile.move_byte_ns + step.num_copies * profile.group_us * 1e3 +
                    step.num_maps * profile.map_us * 1e3;
  return std::max<std::int64_t>(std::llround(ns), 1);
}

std::uint64_t ProfileBytesScale(const DeviceProfile& profile) {
  return std::max(profile.kv_token_bytes / (kSimTokenBytes * profile.num_layers), 1u);
}

EngineParts ProfileParts(const DeviceProfile& profile, Device& device, StepProbe* probe,
                         SimClock* clock, std::uint64_t seed) {
  return {.layout = {.num_layers = profile.num_layers,
                     .num_kv_heads = 1,
                     .head_dim = 1,
                     .block_tokens = kTileTokens,
                     .dtype = DType::kF32},
          .vocab_size = kProfileVocab,
          .max_context = profile.max_context,
          .model_digest = "profile " + profile.name,
          .device = &device,
          .make_executor = [profile, probe, clock,
                            seed](const ExecutorNeeds& needs) -> std::unique_ptr<Executor> {
            return std::make_unique<CostExecutor>(needs, profile, probe, clock, seed);
          }};
}

}  // namespace kvrm
