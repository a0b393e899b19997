// SPDX-License-Identifier: Apache-2.0
// History: what the simulated decoder computes, stated directly: one token after the other, no
// blocks, no mapping, nothing that moves.
//
// The simulated decoder has the data flow of a real one. Layer 0 stores a stamp of (token,
// position); every further layer stores a stamp of what the layer before has seen; a layer sees
// the stamps of all positions up to its own that are not in a hole, in order. The digest of a
// position is what the last layer has seen there, so one wrong, stale, missing or swapped stamp
// anywhere in the history changes it and the token drawn from it.
//
// SimExecutor computes the same from what a descriptor names. Threading: one thread. Memory:
// allocates; this is not the step path.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/rng.h"
#include "step/layout.h"

namespace kvrm {

inline constexpr std::uint32_t kSimLayers = 2;

// 8 bytes a token and layer: one stamp. Stamps of a layer lie in token order.
constexpr KvLayout SimLayout(std::uint32_t block_tokens) {
  return {.num_layers = kSimLayers,
          .num_kv_heads = 1,
          .head_dim = 1,
          .block_tokens = block_tokens,
          .dtype = DType::kF32};
}

constexpr std::uint64_t FirstStamp(std::int32_t token, std::uint32_t position) {
  return Mix64(std::uint64_t{position} << 32 | static_cast<std::uint32_t>(token));
}
// Of layer 1 and up; `seen` is what the layer before has seen at this position.
constexpr std::uint64_t NextStamp(std::uint64_t seen, std::uint32_t layer) {
  return Mix64(seen + layer);
}
// What is seen up to and including `stamp`.
constexpr std::uint64_t See(std::uint64_t seen, std::uint64_t stamp) {
  return seen * 0x9e3779b97f4a7c15u + stamp;
}

// Logits that say the digest: one token stands out, and by how much is 16 bits more of it.
void FillLogits(std::uint64_t digest, std::span<float> logits);

class History {
 public:
  explicit History(std::uint32_t block_tokens) : block_tokens_(block_tokens) {}

  void Append(std::int32_t token);
  void Truncate(std::uint32_t num_tokens);
  // Blocks [first, end) are a hole from now on.
  void Drop(std::uint32_t first_block, std::uint32_t end_block);

  std::uint32_t length() const { return static_cast<std::uint32_t>(tokens_.size()); }
  std::span<const std::int32_t> tokens() const { return tokens_; }
  bool IsHole(std::uint32_t block) const { return block < holes_.size() && holes_[block]; }
  bool has_holes() const { return !holes_.empty(); }
  std::uint64_t stamp(std::uint32_t layer, std::uint32_t position) const {
    return stamps_[layer][position];
  }
  // What the last layer has seen at the last position. Requires: length() > 0.
  std::uint64_t digest() const { return seen_[kSimLayers - 1]; }

 private:
  void LookAgain();

  std::uint32_t block_tokens_;
  std::vector<std::int32_t> tokens_;
  std::array<std::vector<std::uint64_t>, kSimLayers> stamps_;
  std::vector<bool> holes_;                          // by block
  std::array<std::uint64_t, kSimLayers> seen_ = {};  // up to the last position
};

}  // namespace kvrm
