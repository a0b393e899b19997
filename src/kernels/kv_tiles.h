// SPDX-License-Identifier: Apache-2.0
// KvTiles: one (layer, kv head)'s K and V tiles in token order, for the plain kernels.
//
// Walks the runs of an AttentionArgs block by block. A tile is never asked for at or after `end`,
// so blocks past the last attended token need not exist. Never included by an ISA file.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/check.h"
#include "base/float16.h"
#include "kernels/cpu_kernels.h"
#include "step/layout.h"

namespace kvrm {

inline float LoadElement(const std::uint8_t* source, std::size_t index, DType type) {
  if (type == DType::kF32) {
    float value;
    std::memcpy(&value, source + 4 * index, sizeof(value));
    return value;
  }
  std::uint16_t bits;
  std::memcpy(&bits, source + 2 * index, sizeof(bits));
  return type == DType::kF16 ? F16ToFloat(bits) : Bf16ToFloat(bits);
}

inline void StoreElement(std::uint8_t* target, std::size_t index, DType type, float value) {
  if (type == DType::kF32) {
    std::memcpy(target + 4 * index, &value, sizeof(value));
    return;
  }
  const std::uint16_t bits = type == DType::kF16 ? FloatToF16(value) : FloatToBf16(value);
  std::memcpy(target + 2 * index, &bits, sizeof(bits));
}

class KvTiles {
 public:
  // Stands at the tile of args.begin.
  explicit KvTiles(const AttentionArgs& args)
      : args_(args),
        tiles_per_block_(args.block_tokens / kTileTokens),
        tile_bytes_(std::size_t{kTileTokens} * args.head_dim *
                    (args.dtype == DType::kF32 ? 4u : 2u)) {
    const std::uint32_t first = args.begin / kTileTokens;
    tile_ = first % tiles_per_block_;
    block_ = first / tiles_per_block_;
    EnterRun();
  }

  void Next() {
    if (++tile_ < tiles_per_block_) return;
    tile_ = 0;
    ++block_;
    EnterRun();
  }

  const std::uint8_t* k() const { return Block() + args_.k_offset + tile_ * tile_bytes_; }
  const std::uint8_t* v() const { return Block() + args_.v_offset + tile_ * tile_bytes_; }

 private:
  void EnterRun() {
    while (run_ < args_.num_runs && block_ >= args_.runs[run_].num_blocks)
      block_ -= args_.runs[run_++].num_blocks;
  }
  const std::uint8_t* Block() const {
    DCHECK(run_ < args_.num_runs);
    return args_.runs[run_].base + block_ * args_.block_bytes;
  }

  const AttentionArgs& args_;
  const std::uint32_t tiles_per_block_;
  const std::size_t tile_bytes_;
  std::uint32_t run_ = 0;
  std::uint32_t block_ = 0;  // Within the run.
  std::uint32_t tile_ = 0;   // Within the block.
};

}  // namespace kvrm
