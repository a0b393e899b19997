// SPDX-License-Identifier: Apache-2.0
// What does each view reserve, at equal service, for every byte that is live?
//
// 64 rows decode for 20,000 steps, a row that ends being taken by the next request at once. The
// pool of the views that share one is as large as that traffic ever needed (its peak of held
// blocks); static views need the longest context for every row. No time is measured. Runs for about
// 10 seconds.
//
// Columns   reserved/live   reserved bytes (pool, windows, layer buffers) over the mean of live
// bytes
//           held/live       the same of the blocks that are held: what block rounding costs
//           peak/mean       of held blocks: what the pool has for the worst moment
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
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

struct Served {
  std::uint32_t peak_held = 0;
  double mean_held = 0;
  double mean_live_bytes = 0;
};

// With room for everybody, so that nothing but the requests decides what is held.
Served Serve(const Family& family) {
  KvCacheOptions options = Options(family, KvView::kExtents, 0);
  options.num_blocks = static_cast<std::uint32_t>(
      KvCache::MinBlocks(KvView::kStatic, kRows, options.max_blocks_per_seq));
  HostDevice device;
  KvCache cache(options, device);
  StepLimits limits = {.max_rows = kRows,
                       .max_tokens = kRows * kChunk,
                       .max_runs = options.max_runs,
                       .max_groups = options.max_groups,
                       .block_tokens = kBlockTokens};
  KvCache::RaiseLimits(options, &limits);
  StepBuilder builder(limits, 2);
  const std::vector<std::int32_t> tokens(kChunk);
  Rng rng(7, family.name);
  std::vector<Need> needs(kRows);
  std::vector<std::uint32_t> lengths(kRows, 0);
  for (std::uint32_t s = 0; s < kRows; ++s) {
    needs[s] = Draw(family, rng);
    // Rows are somewhere in the middle when counting begins.
    needs[s].output = 1 + static_cast<std::uint32_t>(rng.Below(needs[s].output));
    CHECK(cache.Open(SeqId{s}, 0));
  }
  Served served;
  for (std::uint32_t step = 0; step < kSteps; ++step) {
    CHECK(builder.Begin());
    std::vector<std::uint32_t> more(kRows);
    for (std::uint32_t s = 0; s < kRows; ++s) {
      more[s] = lengths[s] < needs[s].prompt ? std::min(kChunk, needs[s].prompt - lengths[s]) : 1;
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
    const KvStats stats = cache.stats();
    served.peak_held = std::max(served.peak_held, stats.num_held);
    served.mean_held += stats.num_held / static_cast<double>(kSteps);
    served.mean_live_bytes += static_cast<double>(stats.live_bytes) / kSteps;
    for (std::uint32_t s = 0; s < kRows; ++s) {
      if (lengths[s] < needs[s].prompt + needs[s].output) continue;
      cache.Release(SeqId{s});
      needs[s] = Draw(family, rng);
      lengths[s] = 0;
      CHECK(cache.Open(SeqId{s}, 0));
    }
  }
  return served;
}

void Print(const Family& family) {
  const Served served = Serve(family);
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
}

}  // namespace
}  // namespace kvrm

int main() {
  for (const kvrm::Family& family : kvrm::kFamilies)
    kvrm::Print(family);
}
