// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "base/check.h"
#include "kernels/cpu_kernels.h"
#include "step/layout.h"

namespace kvrm {
namespace {

static_assert(kAttentionUnit == kUnitTiles * kTileTokens);

// Leaves the runs that end before the block. The last run may be left when nothing follows.
void EnterRun(UnitWalk* walk) {
  const AttentionArgs& args = *walk->args;
  while (walk->run < args.num_runs && walk->block >= args.runs[walk->run].num_blocks)
    walk->block -= args.runs[walk->run++].num_blocks;
}

void NextTile(UnitWalk* walk) {
  if (++walk->tile < walk->args->block_tokens / kTileTokens) return;
  walk->tile = 0;
  ++walk->block;
  EnterRun(walk);
}

// Lane of `position` in the tile that starts at `first`, held to its ends.
uint32_t Lane(uint32_t position, uint32_t first) {
  return position > first ? std::min(position - first, kTileTokens) : 0;
}

}  // namespace

UnitWalk StartUnits(const AttentionArgs& args) {
  CHECK(args.begin < args.end && args.block_tokens % kTileTokens == 0);
  const uint32_t tiles_per_block = args.block_tokens / kTileTokens;
  const uint32_t first = args.begin / kTileTokens;
  UnitWalk walk = {&args, args.begin, 0, first / tiles_per_block, first % tiles_per_block};
  EnterRun(&walk);
  return walk;
}

bool NextUnit(UnitWalk* walk, AttentionUnit* unit) {
  const AttentionArgs& args = *walk->args;
  const size_t tile_bytes =
      size_t{kTileTokens} * args.head_dim * (args.dtype == DType::kF32 ? 4 : 2);
  const uint8_t* some = nullptr;
  // Holes leave units without any lane: the running maximum could be -Inf still, so that folding
  // one in is not the same as passing it by.
  while (some == nullptr) {
    if (walk->position >= args.end) return false;
    const uint32_t start = walk->position / kAttentionUnit * kAttentionUnit;
    for (uint32_t i = 0; i < kUnitTiles; ++i) {
      const uint32_t first = start + i * kTileTokens;
      unit->begin[i] = Lane(args.begin, first);
      unit->end[i] = Lane(args.end, first);
      unit->k[i] = unit->v[i] = nullptr;
      if (unit->begin[i] >= unit->end[i]) continue;
      DCHECK(walk->run < args.num_runs);
      const uint8_t* block = args.runs[walk->run].base;
      if (block == nullptr) {
        unit->begin[i] = unit->end[i] = 0;
      } else {
        block += walk->block * args.block_bytes;
        some = unit->k[i] = block + args.k_offset + walk->tile * tile_bytes;
        unit->v[i] = block + args.v_offset + walk->tile * tile_bytes;
      }
      NextTile(walk);
    }
    walk->position = start + kAttentionUnit;
  }
  for (const uint8_t*& k : unit->k) {
    if (k == nullptr) k = some;
  }
  return true;
}

}  // namespace kvrm
