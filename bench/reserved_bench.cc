// SPDX-License-Identifier: Apache-2.0
// What does each view reserve, at equal service, for every byte that is live?
//
// 64 rows decode for 20,000 steps, a row that ends being taken by the next request at once. The
// pool of the views that share one is as large as that traffic ever needed (its peak of held
// blocks); static views need the longest context for every row. An elastic pool has addresses for
// more than it ever needs, and of memory what is counted here, as a mean over the steps. No time is
// measured. Runs for about 15 seconds.
//
// Columns   reserved/live   reserved bytes (pool, windows, layer buffers) over the mean of live
// bytes
//           held/live       the same of the blocks that are held: what block rounding costs
//           peak/mean       of held blocks: what the pool has for the worst moment
// and of an elastic pool in the view extents
//           committed/live  bytes that have memory over live ones, both as means
//           runs, median    runs a sequence; blocks of the median run
//           moved           blocks that compaction moves in a step
//           wakes           units of memory that come in a step; as many go
//           waits           rows that had to sit out a step, in a million
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <span>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/rng.h"
#include "device/host_device.h"
#include "kv/kv_cache.h"
#include "step/step_builder.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kRows = 64;
constexpr std::uint32_t kChunk = 512;
constexpr std::uint32_t kSteps = 20000;
constexpr std::uint32_t kBlockTokens = 16;
constexpr std::uint32_t kUnitBlocks = 4;
constexpr std::uint32_t kMostRunBlocks = 1024;  // longest run told apart
// 28 layers: layer buffers are two of them.
constexpr KvLayout kLayout = {.num_layers = 28,
                              .num_kv_heads = 1,
                              .head_dim = 1,
                              .block_tokens = kBlockTokens,
                              .dtype = DType::kF16};

struct Family {
  const char* name;
  std::uint32_t max_prompt;
  std::uint32_t max_output;
};
constexpr Family kFamilies[] = {{"uniform", 512, 256},
                                {"mixed", 8192, 4096},
                                {"long-tail", 512, 8192},
                                {"eos-heavy", 2048, 1024}};

double Normal(Rng& rng) {
  const double u = 1.0 - rng.Uniform();
  return std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586 * rng.Uniform());
}
std::uint32_t Capped(double value, std::uint32_t cap) {
  return static_cast<std::uint32_t>(std::clamp(value, 1.0, static_cast<double>(cap)));
}

struct Need {
  std::uint32_t prompt = 0;
  std::uint32_t output = 0;
};
Need Draw(const Family& family, Rng& rng) {
  const std::string_view name = family.name;
  if (name == "uniform") return {family.max_prompt, family.max_output};
  if (name == "mixed") {
    return {Capped(512 * std::exp(0.9 * Normal(rng)), family.max_prompt),
            Capped(256 * std::exp(Normal(rng)), family.max_output)};
  }
  if (name == "long-tail") {
    return {family.max_prompt,
            Capped(64 * std::pow(1.0 - rng.Uniform(), -1.0 / 1.2), family.max_output)};
  }
  return {Capped(512 * std::exp(0.6 * Normal(rng)), family.max_prompt),
          Capped(-24 * std::log(1.0 - rng.Uniform()), family.max_output)};
}

KvCacheOptions Options(const Family& family, KvView view, std::uint32_t num_blocks) {
  const std::uint32_t context = family.max_prompt + family.max_output;
  return {.layout = kLayout,
          .num_blocks = num_blocks,
          .max_seqs = kRows,
          .max_blocks_per_seq = (context + kBlockTokens - 1) / kBlockTokens,
          .max_runs = 32,
          .max_groups = 64,
          .max_move_bytes_per_step = std::uint64_t{16} << 20,
          .view = view};
}

// Four blocks are a unit of memory, as half a MiB a block (1.2 billion parameters) makes of huge
// pages. Nothing is computed here, so nothing need come or go.
class UnitDevice final : public Device {
 public:
  std::span<std::byte> Reserve(std::size_t bytes, const char* owner) override {
    return host_.Reserve(bytes, owner);
  }
  PoolMemory ReservePool(std::size_t pool_bytes, std::size_t window_bytes, bool mapped,
                         std::size_t map_unit) override {
    return host_.ReservePool(pool_bytes, window_bytes, mapped, map_unit);
  }
  bool Map(std::size_t window_offset, std::size_t pool_offset,
           std::size_t bytes) noexcept override {
    return host_.Map(window_offset, pool_offset, bytes);
  }
  std::size_t elastic_unit() const noexcept override { return kUnitBlocks * kLayout.block_bytes(); }
  FlightId Submit(std::span<const CopyOp> copies) noexcept override { return host_.Submit(copies); }
  bool Landed(FlightId flight) noexcept override { return host_.Landed(flight); }
  void Wait(FlightId flight) noexcept override { host_.Wait(flight); }

 private:
  HostDevice host_;
};

struct Served {
  std::uint32_t peak_held = 0;
  double mean_held = 0;
  double mean_live_bytes = 0;
  double mean_committed_bytes = 0;
  double mean_runs = 0;
  std::vector<std::uint64_t> runs_by_blocks = std::vector<std::uint64_t>(kMostRunBlocks + 1);
  KvStats last = {};

  void Note(const KvCache& cache) {
    last = cache.stats();
    peak_held = std::max(peak_held, last.num_held);
    mean_held += last.num_held / static_cast<double>(kSteps);
    mean_live_bytes += static_cast<double>(last.live_bytes) / kSteps;
    mean_committed_bytes += static_cast<double>(last.committed_bytes) / kSteps;
    for (std::uint32_t s = 0; s < kRows; ++s) {
      for (const Extent& run : cache.home(SeqId{s})) {
        mean_runs += 1.0 / kRows / kSteps;
        ++runs_by_blocks[std::min(run.num_blocks, kMostRunBlocks)];
      }
    }
  }
  std::size_t median_run() const {
    std::uint64_t left = std::accumulate(runs_by_blocks.begin(), runs_by_blocks.end(), 0ull) / 2;
    std::size_t blocks = 0;
    while (left >= runs_by_blocks[blocks])
      left -= runs_by_blocks[blocks++];
    return blocks;
  }
};

// The rows' requests, one after another in each.
class Requests {
 public:
  explicit Requests(const Family& family) : family_(family), rng_(7, family.name) {
    for (std::uint32_t s = 0; s < kRows; ++s) {
      needs_[s] = Draw(family, rng_);
      // Rows are somewhere in the middle when counting begins.
      needs_[s].output = 1 + static_cast<std::uint32_t>(rng_.Below(needs_[s].output));
    }
  }
  const Need& of(std::uint32_t row) const { return needs_[row]; }
  void Next(std::uint32_t row) { needs_[row] = Draw(family_, rng_); }

 private:
  const Family family_;
  Rng rng_;
  std::array<Need, kRows> needs_;
};

// With addresses for everybody, so that nothing but the requests decides what is held.
Served Serve(const Family& family, KvElastic elastic) {
  KvCacheOptions options = Options(family, KvView::kExtents, 0);
  options.elastic = elastic;
  options.num_blocks = static_cast<std::uint32_t>(
      KvCache::MinBlocks(KvView::kStatic, kRows, options.max_blocks_per_seq));
  UnitDevice device;
  KvCache cache(options, device);
  StepLimits limits = {.max_rows = kRows,
                       .max_tokens = kRows * kChunk,
                       .max_runs = options.max_runs,
                       .max_groups = options.max_groups,
                       .block_tokens = kBlockTokens};
  KvCache::RaiseLimits(options, &limits);
  StepBuilder builder(limits, 2);
  const std::vector<std::int32_t> tokens(kChunk);
  Requests requests(family);
  std::array<std::uint32_t, kRows> lengths = {};
  for (std::uint32_t s = 0; s < kRows; ++s)
    CHECK(cache.Open(SeqId{s}, 0));
  Served served;
  for (std::uint32_t step = 0; step < kSteps; ++step) {
    CHECK(builder.Begin());
    std::array<std::uint32_t, kRows> more = {};
    for (std::uint32_t s = 0; s < kRows; ++s) {
      const std::uint32_t prompt = requests.of(s).prompt;
      more[s] = lengths[s] < prompt ? std::min(kChunk, prompt - lengths[s]) : 1;
      CHECK(cache.Extend(SeqId{s}, lengths[s] + more[s]));
    }
    cache.Plan(builder, builder.building());
    for (std::uint32_t s = 0; s < kRows; ++s) {
      if (cache.AddRow(builder, {.seq = SeqId{s},
                                 .first_position = lengths[s],
                                 .tokens = std::span(tokens).first(more[s])}))
        lengths[s] += more[s];
    }
    cache.Launch(builder.Commit(0, kRows));
    cache.Land();
    builder.Latch();
    cache.Retire(builder.Retire());
    served.Note(cache);
    for (std::uint32_t s = 0; s < kRows; ++s) {
      if (lengths[s] < requests.of(s).prompt + requests.of(s).output) continue;
      cache.Release(SeqId{s});
      requests.Next(s);
      lengths[s] = 0;
      CHECK(cache.Open(SeqId{s}, 0));
    }
  }
  return served;
}

void PrintElastic(const Family& family, KvElastic elastic) {
  const Served served = Serve(family, elastic);
  const double num_waits =
      static_cast<double>(served.last.num_run_overflows + served.last.num_waits);
  std::printf(
      "  elastic %-5s  committed/live %.3f  runs %5.2f  median %2zu  moved %5.2f  wakes %.2f  "
      "waits %.0f\n",
      KvElasticName(elastic), served.mean_committed_bytes / served.mean_live_bytes,
      served.mean_runs, served.median_run(),
      static_cast<double>(served.last.num_moved_blocks) / kSteps,
      static_cast<double>(served.last.num_wakes) / kSteps, num_waits * 1e6 / kRows / kSteps);
}

void Print(const Family& family) {
  const Served served = Serve(family, KvElastic::kOff);
  const auto block_bytes = static_cast<double>(kLayout.block_bytes());
  std::printf("%-10s held/live %.3f  peak/mean %.3f  reserved/live:", family.name,
              served.mean_held * block_bytes / served.mean_live_bytes,
              served.peak_held / served.mean_held);
  for (const KvView view : {KvView::kExtents, KvView::kPaged, KvView::kMapped,
                            KvView::kStagedLayers, KvView::kStagedWindows, KvView::kStatic}) {
    KvCacheOptions options = Options(family, view, served.peak_held + 1);
    if (view == KvView::kStatic) {
      options.num_blocks =
          static_cast<std::uint32_t>(KvCache::MinBlocks(view, kRows, options.max_blocks_per_seq));
    }
    // Mappings ask for whole pages, which these small blocks are not; addresses cost no memory.
    const bool is_mapped = view == KvView::kMapped;
    if (is_mapped) options.view = KvView::kExtents;
    HostDevice device;
    const KvCache cache(options, device);
    std::printf("  %s %.2f", KvViewName(view),
                static_cast<double>(cache.stats().reserved_bytes) / served.mean_live_bytes);
  }
  std::printf("\n");
  PrintElastic(family, KvElastic::kOn);
  PrintElastic(family, KvElastic::kTight);
}

}  // namespace
}  // namespace kvrm

int main() {
  for (const kvrm::Family& family : kvrm::kFamilies)
    kvrm::Print(family);
}
