// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "kernels/cpu_kernels.h"
#include "step/layout.h"

namespace kvrm {
namespace {

static_assert(kAttentionUnit == kUnitTiles * kTileTokens && kUnitTiles % 4 == 0);

std::size_t TileBytes(const AttentionArgs& args) {
  return KvTileBytes(args.dtype, args.head_dim);
}

// Of all tokens.
std::uint32_t NumHeads(const AttentionArgs& args) {
  return args.group * args.num_tokens;
}

// A walk over the units of `args`, in the order of the positions.
class UnitWalk {
 public:
  // From unit `first` on, or from that of args.begin where that is later.
  UnitWalk(const AttentionArgs& args, std::uint32_t first)
      : args_(args),
        tile_bytes_(TileBytes(args)),
        tiles_per_block_(args.block_tokens / kTileTokens),
        position_(std::max(args.begin, first * kAttentionUnit)) {
    CHECK(args.begin < args.end && args.block_tokens % kTileTokens == 0);
    const std::uint32_t tile = position_ / kTileTokens;
    block_ = tile / tiles_per_block_;
    tile_ = tile % tiles_per_block_;
    EnterRun();
  }

  // False when there are no attended positions before `end`. Otherwise the index of the unit; those
  // without attended positions are passed by.
  bool Next(std::uint32_t end, AttentionUnit* unit, std::uint32_t* index) {
    end = std::min(end, args_.end);
    unit->num_tiles = 0;
    while (unit->num_tiles == 0) {
      if (position_ >= end) return false;
      *index = position_ / kAttentionUnit;
      Collect(std::min(end, (*index + 1) * kAttentionUnit), unit);
    }
    return true;
  }

 private:
  void Collect(std::uint32_t end, AttentionUnit* unit) {
    std::uint32_t n = 0;
    while (position_ < end) {
      const std::uint32_t lane = position_ % kTileTokens;
      const std::uint32_t left = end - (position_ - lane);
      DCHECK(run_ < args_.num_runs);
      if (const std::uint8_t* block = args_.runs[run_].base; block != nullptr) {
        if (n == 0) unit->first_lane = lane;
        unit->end_lane = std::min(left, kTileTokens);
        block += block_ * args_.block_bytes + tile_ * tile_bytes_;
        unit->k[n] = block + args_.k_offset;
        unit->v[n++] = block + args_.v_offset;
      }
      position_ += kTileTokens - lane;
      NextTile();
    }
    unit->num_tiles = n;
    unit->is_last = end == args_.end;
    for (std::uint32_t i = n; n != 0 && i < (n + 3) / 4 * 4 + 4; ++i) {
      unit->k[i] = unit->k[n - 1];
      unit->v[i] = unit->v[n - 1];
    }
  }

  // Leaves the runs that end before the block. The last run may be left when nothing follows.
  void EnterRun() {
    while (run_ < args_.num_runs && block_ >= args_.runs[run_].num_blocks)
      block_ -= args_.runs[run_++].num_blocks;
  }

  void NextTile() {
    if (++tile_ < tiles_per_block_) return;
    tile_ = 0;
    ++block_;
    EnterRun();
  }

  const AttentionArgs& args_;
  const std::size_t tile_bytes_;
  const std::uint32_t tiles_per_block_;
  std::uint32_t position_;   // first one that has not been taken
  std::uint32_t run_ = 0;    // where its tile is
  std::uint32_t block_ = 0;  // within the run
  std::uint32_t tile_ = 0;   // within the block
};

// Tile `i` of what is read from the unit on: its K, its V, then K and V of the next unit, if any.
const std::uint8_t* Following(const AttentionUnit& unit, const AttentionUnit* next,
                              std::uint32_t i) {
  const std::uint32_t n = unit.num_tiles;
  if (i < n) return unit.k[i];
  if (i < 2 * n) return unit.v[i - n];
  if (next != nullptr && i - 2 * n < 2 * next->num_tiles)
    return Following(*next, nullptr, i - 2 * n);
  return unit.v[n - 1];
}

void LookAhead(const AttentionUnit* next, AttentionUnit* unit) {
  const std::uint32_t n = unit->num_tiles;
  for (std::uint32_t i = 0; i < std::max(2 * n, (n + 3) / 4 * 4); ++i) {
    const std::uint32_t further = i < n ? 0 : kTilesBetween;
    unit->ahead[i] = Following(*unit, next, i + kTilesAhead + further);
  }
  for (std::uint32_t i = 0; i < kTilesBetween; ++i)
    unit->between[i] = Following(*unit, next, n + kTilesAhead + i);
}

// The first unit of `args`, whose tiles are only asked for. False when it attends nothing.
bool FirstUnit(const AttentionArgs& args, AttentionUnit* unit) {
  std::uint32_t index;
  return args.begin < args.end && UnitWalk(args, 0).Next(args.end, unit, &index);
}

// Calls take(unit, index) for the units with index below `end`.
template <typename Take>
void ForEachUnit(const AttentionArgs& args, std::uint32_t begin, std::uint32_t end,
                 const Take& take) {
  AttentionUnit units[2];
  std::uint32_t index[2];
  UnitWalk walk(args, begin);
  const std::uint32_t last = end > args.end / kAttentionUnit ? args.end : end * kAttentionUnit;
  bool more = walk.Next(last, &units[0], &index[0]);
  for (std::uint32_t i = 0; more; i ^= 1) {
    AttentionUnit* next = &units[i ^ 1];
    more = walk.Next(last, next, &index[i ^ 1]);
    const bool is_known = more || (args.following != nullptr && FirstUnit(*args.following, next));
    LookAhead(is_known ? next : nullptr, &units[i]);
    take(units[i], index[i]);
  }
}

struct Partial {
  Partial(const AttentionArgs& args, float* floats)
      : values(floats),
        maximum(floats + std::size_t{NumHeads(args)} * args.head_dim),
        sum(maximum + NumHeads(args)) {}
  float* values;
  float* maximum;
  float* sum;
};

void Clear(const AttentionArgs& args, float* partial) {
  const Partial p(args, partial);
  std::memset(partial, 0, AttentionPartialFloats(NumHeads(args), args.head_dim) * sizeof(float));
  std::fill_n(p.maximum, NumHeads(args), -INFINITY);
}

// Adds what comes after it to `into`. An empty partial result changes no bit, on either side.
void Merge(const AttentionArgs& args, const Partial& into, const Partial& more) {
  const std::uint32_t num_heads = NumHeads(args);
  for (std::uint32_t g = 0; g < num_heads; ++g) {
    float* values = into.values + std::size_t{g} * args.head_dim;
    const float* other = more.values + std::size_t{g} * args.head_dim;
    if (more.maximum[g] == -INFINITY && more.sum[g] == 0) continue;
    if (into.maximum[g] == -INFINITY && into.sum[g] == 0) {
      std::copy_n(other, args.head_dim, values);
      into.maximum[g] = more.maximum[g];
      into.sum[g] = more.sum[g];
      continue;
    }
    const float maximum = std::max(into.maximum[g], more.maximum[g]);
    const float ours = std::exp(into.maximum[g] - maximum);
    const float theirs = std::exp(more.maximum[g] - maximum);
    for (std::uint32_t d = 0; d < args.head_dim; ++d)
      values[d] = values[d] * ours + other[d] * theirs;
    into.sum[g] = into.sum[g] * ours + more.sum[g] * theirs;
    into.maximum[g] = maximum;
  }
}

void Finish(const AttentionArgs& args, const Partial& all) {
  const std::size_t width = std::size_t{args.group} * args.head_dim;
  for (std::uint32_t g = 0; g < NumHeads(args); ++g) {
    const float inverse = 1.0f / all.sum[g];
    const std::size_t row = std::size_t{g} * args.head_dim;
    float* out = args.out + g / args.group * args.out_stride + row % width;
    for (std::uint32_t d = 0; d < args.head_dim; ++d)
      out[d] = all.values[row + d] * inverse;
  }
}

}  // namespace

std::size_t AttentionPartialFloats(std::uint32_t group, std::uint32_t head_dim) {
  return (std::size_t{group} * (head_dim + 2) + 15) / 16 * 16;
}

std::size_t AttentionScratchFloats(std::uint32_t group, std::uint32_t head_dim) {
  const std::size_t own = std::size_t{group} * (kAttentionUnit + head_dim);
  return 2 * AttentionPartialFloats(group, head_dim) + (own + 15) / 16 * 16;
}

float* AttentionKernelScratch(const AttentionArgs& args) {
  return args.scratch + 2 * AttentionPartialFloats(NumHeads(args), args.head_dim);
}

void AttendUnits(AttentionUnitKernel kernel, const AttentionArgs& args, std::uint32_t begin,
                 std::uint32_t end, float* partials) {
  const std::size_t size = AttentionPartialFloats(NumHeads(args), args.head_dim);
  for (std::uint32_t i = begin; i < end; ++i)
    Clear(args, partials + (i - begin) * size);
  ForEachUnit(args, begin, end, [&](const AttentionUnit& unit, std::uint32_t index) {
    kernel(args, unit, partials + (index - begin) * size);
  });
}

void MergeUnits(const AttentionArgs& args, const float* partials, std::uint32_t num_partials) {
  const std::size_t size = AttentionPartialFloats(NumHeads(args), args.head_dim);
  std::memcpy(args.scratch, partials, size * sizeof(float));
  for (std::uint32_t i = 1; i < num_partials; ++i) {
    std::memcpy(args.scratch + size, partials + i * size, size * sizeof(float));
    Merge(args, Partial(args, args.scratch), Partial(args, args.scratch + size));
  }
  Finish(args, Partial(args, args.scratch));
}

void AttendWhole(AttentionUnitKernel kernel, const AttentionArgs& args) {
  const std::size_t size = AttentionPartialFloats(NumHeads(args), args.head_dim);
  Clear(args, args.scratch);
  ForEachUnit(args, 0, (args.end + kAttentionUnit - 1) / kAttentionUnit,
              [&](const AttentionUnit& unit, std::uint32_t) {
                kernel(args, unit, args.scratch + size);
                Merge(args, Partial(args, args.scratch), Partial(args, args.scratch + size));
              });
  Finish(args, Partial(args, args.scratch));
}

}  // namespace kvrm
