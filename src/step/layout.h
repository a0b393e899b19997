// SPDX-License-Identifier: Apache-2.0
// KvLayout: where each element of a block lies. Host and executor share it; transport sees only
// block_bytes.
//
// A block holds block_tokens tokens of all layers (block-major, so a block moves as one piece):
//
//   block -> layer -> K | V -> kv head -> tile of 16 tokens -> elements
//     K tile  [head_dim][16]   dimension-major: one load gives one dimension of 16 keys
//     V tile  [16][head_dim]   token-major: one load gives 16 dimensions of one value
//
// Q8_0 has a scale d for every 32 values of a token's K or V; a value is d q, |q| <= 127. It is
// BF16 and not F16, so that it has the range of what it scales: q is rounded after d has been, and
// makes up for the bits that d lacks. Requires: head_dim is a multiple of 32.
//     K tile  [head_dim / 4][16][4] bytes q + 128, then [head_dim / 32][16] d: one load gives four
//             dimensions of 16 keys, as the dot products of bytes want them
//     V tile  [4][head_dim][4] bytes q, then [head_dim / 32][16] d: one load gives 16 dimensions of
//             four tokens
// A tile is rounded up to a multiple of 64 bytes.
//
// A tile is 16 tokens whatever block_tokens is, so the order of every sum is the same for every
// block size. Requires: block_tokens is a multiple of 16.
#pragma once

#include <cstdint>

#include "base/check.h"
#include "step/dtype.h"

namespace kvrm {

inline constexpr std::uint32_t kTileTokens = 16;

// Values of a token that share a scale in Q8_0.
inline constexpr std::uint32_t kKvScaleValues = 32;

// Bytes of one tile, K or V.
constexpr std::uint64_t KvTileBytes(DType dtype, std::uint32_t head_dim) {
  const std::uint64_t elements = std::uint64_t{kTileTokens} * head_dim;
  if (dtype == DType::kQ8_0) return (elements + elements / kKvScaleValues * 2 + 63) / 64 * 64;
  return elements * (dtype == DType::kF32 ? 4 : 2);
}

struct KvLayout {
  std::uint32_t num_layers = 0;
  std::uint32_t num_kv_heads = 0;
  std::uint32_t head_dim = 0;
  std::uint32_t block_tokens = 16;
  DType dtype = DType::kF16;  // kF32, kF16, kBf16 or kQ8_0

  std::uint64_t tile_bytes() const { return KvTileBytes(dtype, head_dim); }
  // All tiles of one kv head, K or V alone.
  std::uint64_t head_bytes() const { return tile_bytes() * (block_tokens / kTileTokens); }
  std::uint64_t layer_bytes() const { return 2 * head_bytes() * num_kv_heads; }
  std::uint64_t block_bytes() const { return layer_bytes() * num_layers; }
  std::uint64_t token_bytes() const { return block_bytes() / block_tokens; }

  // Byte offset within a block of the first tile of (layer, head); V lies head_bytes() *
  // num_kv_heads after K.
  std::uint64_t k_offset(std::uint32_t layer, std::uint32_t head) const {
    KVRM_DCHECK(layer < num_layers && head < num_kv_heads);
    return layer * layer_bytes() + head * head_bytes();
  }
  std::uint64_t v_offset(std::uint32_t layer, std::uint32_t head) const {
    return k_offset(layer, head) + num_kv_heads * head_bytes();
  }
};

}  // namespace kvrm
