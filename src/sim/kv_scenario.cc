// SPDX-License-Identifier: Apache-2.0
// The swarm of KvWorld: what a seed's schedule runs on, and which operations it favours.
#include <algorithm>
#include <array>

#include "sim/kv_world.h"

namespace kvrm {
namespace {

// 0 with 1 - `percent` / 100, else up to `most`: whole classes of faults are absent at times.
std::uint32_t Fault(Rng& rng, std::uint32_t percent, std::uint32_t most) {
  return rng.Below(100) < percent ? static_cast<std::uint32_t>(1 + rng.Below(most)) : 0;
}

KvView RandomView(Rng& rng) {
  // The default view has the most parts of its own, compaction among them.
  return rng.Below(100) < 30 ? KvView::kExtents : static_cast<KvView>(rng.Below(kNumKvViews));
}

bool IsStatic(KvView view) {
  return view == KvView::kStatic || view == KvView::kStaticPadded ||
         view == KvView::kStaticBucketed;
}

PlacementPolicy RandomPlacement(Rng& rng) {
  const std::uint64_t dice = rng.Below(100);
  if (dice < 30) return PlacementPolicy::kInPlace;
  if (dice < 60) return PlacementPolicy::kScattered;
  return static_cast<PlacementPolicy>(rng.Below(kNumPlacementPolicies - 1));  // But kLanes.
}

}  // namespace

KvScenario RandomKvScenario(std::uint64_t seed) {
  Rng rng(seed, "kv scenario");
  const auto below = [&rng](std::uint32_t bound) {
    return static_cast<std::uint32_t>(rng.Below(bound));
  };
  const std::uint32_t dice = below(100);
  KvScenario s;
  KvCacheOptions& c = s.cache;
  c.layout = SimLayout(dice < 80 ? 16 : dice < 95 ? 32 : 48);
  c.view = RandomView(rng);
  c.placement = RandomPlacement(rng);
  c.placement_seed = 1 + rng.Below(1000);
  c.max_seqs = 1 + below(below(100) < 70 ? 5 : 12);
  c.max_blocks_per_seq = 2 + below(below(100) < 70 ? 8 : 24);
  const std::uint32_t lanes = c.max_seqs * c.max_blocks_per_seq;
  // From room for one sequence of the longest context to room for all.
  c.num_blocks =
      1 + (IsStatic(c.view) ? lanes + below(3)
                            : c.max_blocks_per_seq + below(lanes - c.max_blocks_per_seq + 1));
  c.max_runs = 2 + below(7);
  c.max_groups = 1 + below(8);
  c.max_move_bytes_per_step = (1 + below(16)) * c.layout.block_bytes();
  c.prefix_cache = below(100) < 75;
  s.device = {.twice_percent = Fault(rng, 50, 50),
              .late_percent = Fault(rng, 50, 100),
              .refuse_percent = Fault(rng, 20, 30),
              .piece_bytes = below(2) == 0 ? c.layout.block_bytes() : 64};
  s.depth = 1 + below(3);
  s.max_step_tokens = c.max_seqs + 32 + below(256);
  s.abandon_percent = Fault(rng, 60, 30);
  s.end_inside_percent = Fault(rng, 50, 20);
  s.interlude_percent = Fault(rng, 60, 40);
  s.key_bits = below(100) < 30 ? 1 + below(3) : 64;
  if (below(100) < 70) c.layered_move_bytes = below(3) * c.layout.block_bytes();
  // From a tier that refuses most to one that holds all.
  if (below(100) < 60) c.host_blocks = 1 + below(below(100) < 50 ? c.max_blocks_per_seq : lanes);
  c.max_parked = 1 + below(c.max_seqs + 1);
  // Units of half a block to two and a half, so that blocks share some.
  const std::uint32_t elastic = below(100);
  c.elastic = elastic < 35 ? KvElastic::kOn : elastic < 60 ? KvElastic::kTight : KvElastic::kOff;
  s.device.elastic_unit = (1 + below(5)) * c.layout.block_bytes() / 2;
  if (below(100) < 40) c.max_cached_blocks = below(100) < 50 ? kCachedAsHeld : below(12);
  return s;
}

std::string ToString(const KvScenario& s) {
  const KvCacheOptions& c = s.cache;
  const auto field = [](const char* name, std::uint64_t value) {
    return std::string(" ") + name + "=" + std::to_string(value);
  };
  return std::string("view=") + KvViewName(c.view) +
         " placement=" + PlacementPolicyName(c.placement) +
         field("block_tokens", c.layout.block_tokens) + field("blocks", c.num_blocks) +
         field("seqs", c.max_seqs) + field("blocks_per_seq", c.max_blocks_per_seq) +
         field("runs", c.max_runs) + field("groups", c.max_groups) +
         field("move_blocks", c.max_move_bytes_per_step / c.layout.block_bytes()) +
         field("layered_bytes", c.layered_move_bytes) + field("host_blocks", c.host_blocks) +
         field("parked", c.max_parked) + field("prefix_cache", c.prefix_cache ? 1 : 0) +
         field("depth", s.depth) + field("step_tokens", s.max_step_tokens) +
         field("abandon%", s.abandon_percent) + field("end_inside%", s.end_inside_percent) +
         field("interlude%", s.interlude_percent) + field("twice%", s.device.twice_percent) +
         field("refuse%", s.device.refuse_percent) +
         field("unit_bytes", c.elastic != KvElastic::kOff ? s.device.elastic_unit : 0) +
         " elastic=" + KvElasticName(c.elastic) + field("max_cached", c.max_cached_blocks) +
         field("key_bits", s.key_bits);
}

std::vector<std::uint8_t> KvWorld::OpMix(std::uint64_t seed) {
  Rng rng(seed, "kv mix");
  std::vector<std::uint8_t> mix;
  const auto add = [&mix](std::uint8_t kind, std::uint64_t weight) {
    mix.insert(mix.end(), weight, kind);
  };
  // Steps go through at rates of their own: the host ahead of the executor, or waiting for it.
  add(kStep, 20 + rng.Below(20));
  add(kRun, 25 + rng.Below(50));
  add(kRetire, 10 + rng.Below(30));
  add(kTick, rng.Below(15));
  static constexpr std::array<std::uint64_t, 4> kWeights = {0, 2, 5, 10};
  for (std::uint8_t kind = kOpen; kind < kNumKinds; ++kind) {
    if (kind != kRelease && kind != kDropCached) add(kind, kWeights[rng.Below(kWeights.size())]);
  }
  // Without sequences nothing happens, and they must live to do something.
  add(kOpen, 4);
  add(kOpenCached, 4);
  add(kRelease, 1 + rng.Below(5));
  add(kDropCached, rng.Below(4) == 0 ? 1 : 0);
  return mix;
}

}  // namespace kvrm
