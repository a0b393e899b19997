// SPDX-License-Identifier: Apache-2.0
// How long do histories stay in one piece when sequences come and go, by allocation policy?
//
//   churn_bench                 the default policy on every family, 75, 90 and 97 %      (20 s)
//   churn_bench --all           every policy, compaction or none, a hint or none        (10 min)
//   churn_bench --occupancies 75,90 --seeds 5   from each seed, and the range over them (70 s)
//   churn_bench --hour --headroom 6   an hour of steps of 30 ms, the mixed family        (10 s)
//   churn_bench --cached        the same where what has ended stays in the prefix cache
//   churn_bench --families mixed --policies soft,in-place --occupancies 90 --hints max --json
//
// Expected: at 75 % soft extents keep a median run of 16 blocks and more with 2 groups a step at
// p99; at 90 % so when admission keeps 5 % of the pool free (--headroom), and not without.
//
// 64 rows over the production KvCache; the device copies nothing. Two steps are in flight, prompts
// come in chunks of 512 tokens. A row whose sequence ends takes the next one at once; when its
// prompt and one token do not fit, it waits. A sequence that cannot grow, or waits 50 steps to be
// moved together, starts anew. The pool is sized so that the same traffic without a limit would
// fill `occupancy` of it on average. Everything but `plan` is exact for a seed.
//
// Families  uniform  prompt 512, output 256 tokens, all alike
//           mixed    log-normal: prompts of median 512, sigma 0.9, at most 8,192; outputs of median
//                    256, sigma 1.0, at most 4,096
//           tail     prompts as mixed; outputs Pareto, alpha 1.2, from 64 to 8,192
//           eos      prompts as mixed; outputs geometric, mean 24
//           comb     every other row 16 + 2,048 to 4,096 tokens, between them 16 + 16 to 128
// Hints     prompt   Open reserves the prompt and one token, as the engine does
//           max      and max_tokens: the output rounded up to 256, 1,024, 4,096 or 8,192
//
// Columns   held, soft   mean share of the pool; soft blocks are free and claimed by a sequence
//           runs, r99    runs of a sequence, mean and 99th percentile over sequences and steps
//           run50        median length of a run, in blocks, over all runs and steps
//           g50, g99     transfer groups of a step, percentiles;  moved: blocks moved a step, mean
//           over, stall  rows that had too many runs, and such for which nothing could be done
//           again        sequences that started anew;  empty: share of rows waiting for room
//           plan         mean time of KvCache::Plan in microseconds; plan99: its 99th percentile
#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "base/rng.h"
#include "device/device.h"
#include "kv/kv_cache.h"
#include "step/step_builder.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kRows = 64;
constexpr std::uint32_t kBlockTokens = 16;
constexpr std::uint32_t kChunk = 512;
constexpr std::uint32_t kMaxBlocksPerSeq = 1040;
constexpr std::uint32_t kMaxTokens = kMaxBlocksPerSeq * kBlockTokens;
constexpr std::uint32_t kMostWaits = 50;
constexpr std::uint32_t kSampleEvery = 16;  // steps
constexpr KvLayout kLayout = {.num_layers = 1,
                              .num_kv_heads = 1,
                              .head_dim = 1,
                              .block_tokens = kBlockTokens,
                              .dtype = DType::kF32};
constexpr std::array<std::int32_t, kChunk> kTokens = {};

// Memory, and flights that have landed before they start.
class NullDevice final : public Device {
 public:
  std::span<std::byte> Reserve(std::size_t bytes, const char*) override {
    return memory_.emplace_back(bytes);
  }
  PoolMemory ReservePool(std::size_t pool_bytes, std::size_t window_bytes, bool,
                         std::size_t) override {
    const std::span<std::byte> all = Reserve(pool_bytes + window_bytes, "pool");
    return {all.first(pool_bytes), all.subspan(pool_bytes)};
  }
  FlightId Submit(std::span<const CopyOp>) noexcept override { return FlightId{++num_flights_}; }
  bool Landed(FlightId) noexcept override { return true; }
  void Wait(FlightId) noexcept override {}
  bool Map(std::size_t, std::size_t, std::size_t) noexcept override { return true; }

 private:
  std::vector<std::vector<std::byte>> memory_;
  std::uint64_t num_flights_ = 0;
};

enum class Family : std::uint8_t { kUniform, kMixed, kTail, kEos, kComb };
constexpr std::array<const char*, 5> kFamilyNames = {"uniform", "mixed", "tail", "eos", "comb"};

struct Lengths {
  std::uint32_t prompt = 0;
  std::uint32_t output = 0;
};

std::uint32_t AtLeastOne(double value, std::uint32_t most) {
  return std::max(1u, static_cast<std::uint32_t>(std::min(value, static_cast<double>(most))));
}

std::uint32_t LogNormal(Rng& rng, double median, double sigma, std::uint32_t most) {
  // Box and Muller; 1 - u lies in (0, 1].
  const double normal =
      std::sqrt(-2.0 * std::log(1.0 - rng.Uniform())) * std::cos(6.283185307179586 * rng.Uniform());
  return AtLeastOne(median * std::exp(sigma * normal), most);
}

Lengths Draw(Family family, std::uint32_t row, Rng& rng) {
  switch (family) {
    case Family::kUniform:
      return {512, 256};
    case Family::kComb:
      if (row % 2 == 0) return {16, static_cast<std::uint32_t>(rng.Between(2048, 4096))};
      return {16, static_cast<std::uint32_t>(rng.Between(16, 128))};
    case Family::kMixed:
    case Family::kTail:
    case Family::kEos:
      break;
  }
  Lengths lengths = {.prompt = LogNormal(rng, 512, 0.9, 8192)};
  if (family == Family::kMixed) {
    lengths.output = LogNormal(rng, 256, 1.0, 4096);
  } else if (family == Family::kTail) {
    lengths.output = AtLeastOne(64.0 * std::pow(1.0 - rng.Uniform(), -1.0 / 1.2), 8192);
  } else {
    lengths.output =
        AtLeastOne(1.0 + std::log(1.0 - rng.Uniform()) / std::log(1.0 - 1.0 / 24), 8192);
  }
  return lengths;
}

struct Setting {
  Family family = Family::kMixed;
  PlacementPolicy policy = PlacementPolicy::kInPlace;
  std::uint32_t percent = 90;
  bool compaction = true;
  bool hint_max = false;
  std::uint32_t max_runs = 32;
  std::uint32_t max_groups = 8;
  std::uint32_t max_moved = 64;  // blocks a step
  std::uint32_t headroom = 0;    // percent of the pool
  bool cached = false;           // what ends stays in the prefix cache
  std::uint32_t num_steps = 30000;
  std::uint64_t seed = 1;
};

KvCacheOptions CacheOptions(const Setting& setting, std::uint32_t num_blocks) {
  return {
      .layout = kLayout,
      .num_blocks = num_blocks,
      .max_seqs = kRows,
      .max_blocks_per_seq = kMaxBlocksPerSeq,
      // Nothing moves and nobody waits when a row may have a run for every block.
      .max_runs = setting.compaction ? setting.max_runs : kMaxBlocksPerSeq,
      .max_groups = setting.max_groups,
      .max_move_bytes_per_step = setting.compaction ? setting.max_moved * kLayout.block_bytes() : 0,
      .placement = setting.policy,
      .placement_seed = setting.seed,
      .prefix_cache = setting.cached};
}

StepLimits Limits(const KvCacheOptions& options) {
  return {.max_rows = kRows,
          .max_tokens = kRows * kChunk,
          .max_runs = options.max_runs,
          .max_groups = options.max_groups,
          .max_samples = kRows,
          .block_tokens = kBlockTokens};
}

// How often each value was seen.
class Counts {
 public:
  explicit Counts(std::uint32_t most) : counts_(most + 1) {}
  void Add(std::uint32_t value) {
    ++counts_[std::min<std::size_t>(value, counts_.size() - 1)];
    ++num_;
    sum_ += value;
  }
  double mean() const {
    return num_ == 0 ? 0 : static_cast<double>(sum_) / static_cast<double>(num_);
  }
  std::uint32_t Percentile(std::uint32_t percent) const {
    std::uint64_t left = num_ * percent / 100;
    std::uint32_t value = 0;
    while (value + 1 < counts_.size() && counts_[value] <= left)
      left -= counts_[value++];
    return value;
  }

 private:
  std::vector<std::uint64_t> counts_;
  std::uint64_t num_ = 0;
  std::uint64_t sum_ = 0;
};

// What a range is told of; the columns have the same names.
constexpr std::array kFigureNames = {"held", "runs",  "r99",  "run50",
                                     "g99",  "moved", "over", "again"};
using Figures = std::array<double, kFigureNames.size()>;

// 64 sequences, each replaced by a new one when it ends.
class Traffic {
 public:
  Traffic(const Setting& setting, std::uint32_t num_blocks)
      : setting_(setting),
        cache_(CacheOptions(setting, num_blocks), device_),
        builder_(Limits(CacheOptions(setting, num_blocks)), 3),
        headroom_(num_blocks * setting.headroom / 100 * kBlockTokens),
        rng_(setting.seed, "churn") {
    for (std::uint32_t s = 0; s < kRows; ++s)
      Next(s);
  }

  void Step() {
    CHECK(builder_.Begin());
    std::array<std::uint32_t, kRows> want = {};
    for (std::uint32_t s = 0; s < kRows; ++s)
      want[s] = Grow(s);
    const std::int64_t start = clock_.NowNs();
    cache_.Plan(builder_, builder_.building());
    plan_tenths_.Add(static_cast<std::uint32_t>((clock_.NowNs() - start) / 100));
    for (std::uint32_t s = 0; s < kRows; ++s) {
      if (want[s] > 0) AddRow(s, want[s]);
    }
    const StepView step = builder_.Commit(0, kRows);
    cache_.Launch(step);
    cache_.Land();
    builder_.Latch();
    // The step before retires after this one was planned and committed.
    if (step.header->step > StepId{1}) cache_.Retire(builder_.Retire());
    groups_.Add(static_cast<std::uint32_t>(step.groups.size()));
    if (num_steps_++ % kSampleEvery == 0) Sample();
    for (std::uint32_t s = 0; s < kRows; ++s) {
      if (!seqs_[s].open || seqs_[s].length < seqs_[s].lengths.prompt + seqs_[s].lengths.output)
        continue;
      if (setting_.cached) Publish(s);
      cache_.Release(SeqId{s});
      --num_open_;
      Next(s);
    }
  }

  double mean_held() const { return held_.mean(); }
  void Report(bool json) const;
  Figures figures() const;

 private:
  struct Seq {
    Lengths lengths;
    std::uint32_t length = 0;
    std::uint32_t num_waits = 0;  // steps without a row, since the last one
    bool open = false;
  };
  void Next(std::uint32_t s) {
    seqs_[s] = {.lengths = Draw(setting_.family, s, rng_)};
    // The first ones are at any age, or all that are alike would end together.
    if (num_steps_ == 0)
      seqs_[s].lengths.output =
          static_cast<std::uint32_t>(rng_.Between(1, seqs_[s].lengths.output));
  }
  // Names of so many tokens that nobody else asks for: only where blocks lie matters.
  void Invent(std::uint32_t num_tokens) {
    keys_.resize(num_tokens / kBlockTokens);
    tokens_.resize(num_tokens);
    for (PrefixKey& key : keys_) {
      ++num_keys_;
      std::memcpy(key.bytes.data(), &num_keys_, sizeof(num_keys_));
    }
  }
  void Publish(std::uint32_t s) {
    Invent(seqs_[s].length);
    cache_.Publish(SeqId{s}, tokens_, keys_);
  }
  bool Open(std::uint32_t s, std::uint32_t reserve) {
    if (!setting_.cached) return cache_.Open(SeqId{s}, reserve);
    Invent(seqs_[s].lengths.prompt);
    return cache_.OpenCached(SeqId{s}, tokens_, keys_, reserve).has_value();
  }
  std::uint32_t ReserveOf(const Seq& seq) const {
    const std::uint32_t known = std::max(seq.length, seq.lengths.prompt) + 1;
    if (!setting_.hint_max) return known;
    std::uint32_t max_tokens = 256;
    while (max_tokens < seq.lengths.output)
      max_tokens = max_tokens < 4096 ? 4 * max_tokens : 8192;
    return std::min(seq.lengths.prompt + max_tokens, kMaxTokens);
  }
  // Tokens that the row may write in this step.
  std::uint32_t Grow(std::uint32_t s) {
    Seq& seq = seqs_[s];
    if (!seq.open) {
      ++num_row_steps_;
      const std::uint32_t reserve = ReserveOf(seq);
      const std::uint32_t spare = headroom_ > 0 && num_open_ > 0 ? headroom_ : 0;
      if (cache_.num_available_tokens() < spare + reserve || !Open(s, reserve)) {
        ++num_empty_;
        return 0;
      }
      seq.open = true;
      ++num_open_;
    }
    const std::uint32_t more =
        seq.length < seq.lengths.prompt ? std::min(kChunk, seq.lengths.prompt - seq.length) : 1;
    ++num_row_steps_;
    if (seq.num_waits < kMostWaits && cache_.Extend(SeqId{s}, seq.length + more)) return more;
    // Its tokens so far are part of the prompt to compute again.
    ++num_again_;
    cache_.Release(SeqId{s});
    --num_open_;
    const std::uint32_t longer = std::max(seq.length, seq.lengths.prompt) - seq.lengths.prompt;
    seq = {.lengths = {seq.lengths.prompt + longer, seq.lengths.output - longer}};
    return 0;
  }
  void AddRow(std::uint32_t s, std::uint32_t num_tokens) {
    Seq& seq = seqs_[s];
    if (!cache_.AddRow(builder_, {.seq = SeqId{s},
                                  .first_position = seq.length,
                                  .tokens = std::span(kTokens).first(num_tokens)})) {
      ++seq.num_waits;
      return;
    }
    seq.num_waits = 0;
    seq.length += num_tokens;
  }
  void Sample() {
    const KvStats stats = cache_.stats();
    held_.Add(stats.num_held);
    soft_.Add(stats.num_soft);
    for (std::uint32_t s = 0; s < kRows; ++s) {
      if (!seqs_[s].open) continue;
      const std::span<const Extent> home = cache_.home(SeqId{s});
      runs_.Add(static_cast<std::uint32_t>(home.size()));
      for (const Extent& run : home)
        run_blocks_.Add(run.num_blocks);
    }
  }

  const Setting setting_;
  SystemClock clock_;
  NullDevice device_;
  KvCache cache_;
  StepBuilder builder_;
  const std::uint32_t headroom_;  // tokens
  Rng rng_;
  std::array<Seq, kRows> seqs_ = {};
  Counts runs_{kMaxBlocksPerSeq};
  Counts run_blocks_{kMaxBlocksPerSeq};
  Counts groups_{4096};
  Counts plan_tenths_{100000};  // of a microsecond
  Counts held_{1};              // means only
  Counts soft_{1};
  std::uint32_t num_open_ = 0;
  std::uint64_t num_steps_ = 0;
  std::uint64_t num_again_ = 0;
  std::uint64_t num_empty_ = 0;
  std::uint64_t num_row_steps_ = 0;
  std::uint64_t num_keys_ = 0;
  std::vector<PrefixKey> keys_;
  std::vector<std::int32_t> tokens_;
};

Figures Traffic::figures() const {
  const KvStats stats = cache_.stats();
  return {100.0 * held_.mean() / stats.num_blocks,
          runs_.mean(),
          static_cast<double>(runs_.Percentile(99)),
          static_cast<double>(run_blocks_.Percentile(50)),
          static_cast<double>(groups_.Percentile(99)),
          static_cast<double>(stats.num_moved_blocks) / static_cast<double>(num_steps_),
          static_cast<double>(stats.num_run_overflows),
          static_cast<double>(num_again_)};
}

void Traffic::Report(bool json) const {
  cache_.CheckInvariants();
  const KvStats stats = cache_.stats();
  const auto steps = static_cast<double>(num_steps_);
  const auto share = [&stats](double blocks) { return 100.0 * blocks / stats.num_blocks; };
  const char* format =
      json
          ? "{\"family\":\"%s\",\"percent\":%u,\"policy\":\"%s\",\"compaction\":%s,\"hint\":\"%s\","
            "\"held_percent\":%.1f,\"soft_percent\":%.1f,\"runs_mean\":%.2f,\"runs_p99\":%u,"
            "\"run_blocks_p50\":%u,\"groups_p50\":%u,\"groups_p99\":%u,\"moved_blocks\":%.3f,"
            "\"overflows\":%llu,\"stalls\":%llu,\"restarts\":%llu,\"empty_percent\":%.2f,"
            "\"plan_us\":%.2f,\"plan_us_p99\":%.1f}\n"
          : "%-8s %3u  %-9s %-5s %-6s %6.1f %5.1f %7.2f %5u %6u %4u %4u %7.2f %8llu %8llu %6llu "
            "%6.2f %6.2f %6.1f\n";
  std::printf(format, kFamilyNames[static_cast<std::size_t>(setting_.family)], setting_.percent,
              PlacementPolicyName(setting_.policy),
              json                  ? setting_.compaction ? "true" : "false"
              : setting_.compaction ? "yes"
                                    : "no",
              setting_.hint_max ? "max" : "prompt", share(held_.mean()), share(soft_.mean()),
              runs_.mean(), runs_.Percentile(99), run_blocks_.Percentile(50),
              groups_.Percentile(50), groups_.Percentile(99),
              static_cast<double>(stats.num_moved_blocks) / steps,
              static_cast<unsigned long long>(stats.num_run_overflows),
              static_cast<unsigned long long>(stats.num_stalls),
              static_cast<unsigned long long>(num_again_),
              100.0 * static_cast<double>(num_empty_) / static_cast<double>(num_row_steps_),
              plan_tenths_.mean() / 10, plan_tenths_.Percentile(99) / 10.0);
  std::fflush(stdout);
}

// Blocks of a pool that the setting's traffic fills to its percentage.
std::uint32_t PoolFor(const Setting& setting) {
  Setting unlimited = setting;
  unlimited.policy = PlacementPolicy::kInPlace;
  unlimited.compaction = false;
  unlimited.hint_max = false;
  unlimited.headroom = 0;
  unlimited.cached = false;
  Traffic traffic(unlimited, kRows * kMaxBlocksPerSeq + 1);
  for (std::uint32_t i = 0; i < setting.num_steps; ++i)
    traffic.Step();
  return static_cast<std::uint32_t>(traffic.mean_held() * 100.0 / setting.percent);
}

struct Asked {
  std::vector<std::string> families = {"uniform", "mixed", "tail", "eos", "comb"};
  std::vector<std::string> policies;
  std::vector<std::uint32_t> occupancies = {75, 90, 97};
  std::vector<std::string> hints = {"prompt"};
  std::vector<std::string> compaction = {"yes"};
  std::uint32_t num_seeds = 1;
  bool all = false;
  bool hour = false;
  bool json = false;
  Setting base;
};

// The least and the most of each figure.
void ReportRange(const Setting& setting, const std::vector<Figures>& all) {
  std::printf("%-8s %3u  %-9s %zu seeds:", kFamilyNames[static_cast<std::size_t>(setting.family)],
              setting.percent, PlacementPolicyName(setting.policy), all.size());
  for (std::size_t i = 0; i < kFigureNames.size(); ++i) {
    const auto [least, most] =
        std::ranges::minmax(all, {}, [i](const Figures& figures) { return figures[i]; });
    std::printf("  %s %.4g to %.4g", kFigureNames[i], least[i], most[i]);
  }
  std::printf("\n");
}

// One setting, from every seed.
void RunSeeds(const Asked& asked, Setting setting, const std::vector<std::uint32_t>& loads) {
  std::vector<Figures> all;
  for (const std::uint32_t load : loads) {
    Traffic traffic(setting, std::max(kMaxBlocksPerSeq, load * 100 / setting.percent));
    for (std::uint32_t i = 0; i < setting.num_steps; ++i)
      traffic.Step();
    traffic.Report(asked.json);
    all.push_back(traffic.figures());
    ++setting.seed;
  }
  if (all.size() > 1 && !asked.json) ReportRange(setting, all);
}

void RunAll(const Asked& asked) {
  Setting setting = asked.base;
  if (!asked.json) {
    std::printf(
        "%-8s %3s  %-9s %-5s %-6s %6s %5s %7s %5s %6s %4s %4s %7s %8s %8s %6s %6s %6s %6s\n",
        "family", "%", "policy", "comp", "hint", "held", "soft", "runs", "r99", "run50", "g50",
        "g99", "moved", "over", "stall", "again", "empty", "plan", "plan99");
  }
  for (const std::string& family : asked.families) {
    const auto at = std::find(kFamilyNames.begin(), kFamilyNames.end(), family);
    CHECK(at != kFamilyNames.end());
    setting.family = static_cast<Family>(at - kFamilyNames.begin());
    setting.percent = 100;
    std::vector<std::uint32_t> loads;
    for (std::uint32_t i = 0; i < asked.num_seeds; ++i) {
      Setting seeded = setting;
      seeded.seed += i;
      loads.push_back(PoolFor(seeded));
    }
    for (const std::uint32_t percent : asked.occupancies) {
      setting.percent = percent;
      for (const std::string& policy : asked.policies) {
        setting.policy = FindPlacementPolicy(policy).value();
        for (const std::string& hint : asked.hints) {
          setting.hint_max = hint == "max";
          for (const std::string& compaction : asked.compaction) {
            setting.compaction = compaction == "yes";
            if (asked.all && setting.hint_max && !setting.compaction) continue;
            RunSeeds(asked, setting, loads);
          }
        }
      }
    }
  }
}

int Main(int argc, char** argv) {
  Asked asked;
  CLI::App app("Runs under churn, by allocation policy.");
  app.add_option("--families", asked.families)
      ->delimiter(',')
      ->check(CLI::IsMember(asked.families));
  app.add_option("--policies", asked.policies)->delimiter(',');
  app.add_option("--occupancies", asked.occupancies)->delimiter(',')->check(CLI::Range(1, 200));
  app.add_option("--hints", asked.hints)->delimiter(',')->check(CLI::IsMember({"prompt", "max"}));
  app.add_option("--compaction", asked.compaction)
      ->delimiter(',')
      ->check(CLI::IsMember({"yes", "no"}));
  app.add_option("--steps", asked.base.num_steps)->check(CLI::Range(1, 10000000));
  app.add_option("--runs", asked.base.max_runs, "runs a row")->check(CLI::Range(2, 1040));
  app.add_option("--groups", asked.base.max_groups, "groups a step")->check(CLI::Range(1, 4096));
  app.add_option("--moved", asked.base.max_moved, "blocks moved a step");
  app.add_option("--headroom", asked.base.headroom, "percent that admission leaves free");
  app.add_flag("--cached", asked.base.cached, "what has ended stays in the prefix cache");
  app.add_option("--seed", asked.base.seed);
  app.add_option("--seeds", asked.num_seeds, "so many, from --seed on")->check(CLI::Range(1, 1000));
  app.add_flag("--all", asked.all, "every policy, compaction and hint");
  app.add_flag("--hour", asked.hour, "120,000 steps of the mixed family at 75 and 90 %");
  app.add_flag("--json", asked.json, "one object a line");
  CLI11_PARSE(app, argc, argv);
  if (asked.all) {
    asked.policies = {"lifo", "fifo", "in-place", "best-fit", "buddy", "soft", "regions"};
    asked.hints = {"prompt", "max"};
    asked.compaction = {"no", "yes"};
  }
  if (asked.policies.empty()) asked.policies = {PlacementPolicyName(KvCacheOptions{}.placement)};
  if (asked.hour) {
    asked.families = {"mixed"};
    asked.occupancies = {75, 90};
    asked.base.num_steps = 120000;
  }
  for (const std::string& policy : asked.policies) {
    if (!FindPlacementPolicy(policy) || policy == "lanes") {
      std::fprintf(stderr, "no such policy: %s\n", policy.c_str());
      return 1;
    }
  }
  RunAll(asked);
  return 0;
}

}  // namespace
}  // namespace kvrm

int main(int argc, char** argv) {
  return kvrm::Main(argc, argv);
}
