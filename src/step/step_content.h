// SPDX-License-Identifier: Apache-2.0
// StepContent: memory without keys and values. Each slot holds a stamp, the hash of everything the
// token's K and V depend on; descriptors write, copy and map stamps as an executor would the real
// thing. StepVerifier compares them with what should be there, StepReplay reads them.
//
// The stamp of the token at position p is a hash of its id, of p and of the chain of all stamps its
// row reads before it, and a chain begins with the sequence's salt. So two slots hold the same
// stamp if and only if, hash collisions aside, they hold the same K and V: the same tokens from
// position 0 on, with the same holes, under the same salt.
//
// Threading: one thread. Memory: allocated by the constructor, RequiredBytes of it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/rng.h"
#include "step/step_log.h"

namespace kvrm {

// Stamps that are none.
inline constexpr std::uint64_t kNeverWritten = 0;
inline constexpr std::uint64_t kUnknownStamp = 1;  // records were lost
inline constexpr std::uint64_t kTornStamp = 2;     // copied while a step in flight wrote it
inline constexpr std::uint64_t kHoleStamp = 3;     // of a position that is not attended
inline constexpr std::uint64_t kFirstStamp = 4;

struct SlotContent {
  std::uint64_t stamp = kNeverWritten;
  std::uint64_t writer = 0;  // the epoch whose row wrote it; 0: a copy
  std::int32_t token = 0;
  std::uint32_t position = 0;
};

class StepContent {
 public:
  explicit StepContent(const StepLogHeader& header);
  static std::uint64_t RequiredBytes(const StepLogHeader& header);

  static constexpr std::uint64_t BeginChain(std::uint64_t salt) { return Mix64(~salt); }
  // Unknown stays unknown.
  static constexpr std::uint64_t Stamp(std::uint64_t chain, std::int32_t token,
                                       std::uint32_t position) {
    if (chain == kUnknownStamp) return kUnknownStamp;
    const std::uint64_t own = std::uint64_t{static_cast<std::uint32_t>(token)} << 32 | position;
    const std::uint64_t stamp = Mix64(chain ^ Mix64(own));
    return stamp < kFirstStamp ? stamp + kFirstStamp : stamp;
  }
  static constexpr std::uint64_t Chain(std::uint64_t chain, std::uint64_t stamp) {
    if (chain == kUnknownStamp || stamp == kUnknownStamp) return kUnknownStamp;
    return Mix64(chain + stamp) | kFirstStamp;
  }

  std::uint32_t num_blocks() const { return num_pool_blocks_ + num_window_blocks_; }
  std::uint32_t num_pool_blocks() const { return num_pool_blocks_; }
  bool IsWindow(std::uint32_t block) const {
    return block >= num_pool_blocks_ && block < num_blocks();
  }
  // Blocks of the host tier, which counts from 1, have their place behind the windows.
  std::uint32_t num_host_blocks() const { return num_host_blocks_; }
  std::uint32_t PlaceOf(BlockId block, std::uint8_t tier) const {
    return tier == 0 ? Index(block) : num_blocks() + Index(block) - 1;
  }
  std::uint32_t num_places() const { return num_blocks() + num_host_blocks_; }
  std::uint32_t num_layer_blocks() const { return static_cast<std::uint32_t>(layers_.size()); }

  SlotContent& At(std::uint32_t block, std::uint32_t offset) {
    return slots_[std::uint64_t{block} * block_tokens_ + offset];
  }
  // Whole blocks of either tier. What a row of an epoch after `retired` wrote is torn.
  // Requires, here and below: within the geometry.
  void Copy(const TransferGroup& group, std::uint64_t retired);
  void Map(const TransferGroup& group);
  // The layer buffers hold what they are given for the length of one step.
  void Gather(const TransferGroup& group, StepId step);

  // The block of the pool, or of a window with memory of its own, that a run's block stands for.
  // Nullopt: what is shown was told in a lost record; in a layer buffer, nothing was gathered there
  // for this step.
  std::optional<std::uint32_t> Resolve(std::uint32_t block) const;
  std::optional<std::uint32_t> ResolveLayer(std::uint32_t block, StepId step) const;
  // The pool block that a window's block shows; 0: none.
  std::uint32_t Shown(std::uint32_t window_block) const {
    return shown_[window_block - num_pool_blocks_];
  }

  // Records were lost: anything may be anywhere.
  void Forget();

 private:
  struct LayerBlock {
    std::uint64_t step = 0;
    std::uint32_t block = 0;
  };
  static constexpr std::uint32_t kOwnMemory = 0;
  static constexpr std::uint32_t kUnknownBlock = ~std::uint32_t{0};

  const std::uint32_t block_tokens_;
  const bool mirrored_;  // windows have memory of their own
  const std::uint32_t num_pool_blocks_;
  const std::uint32_t num_window_blocks_;
  const std::uint32_t num_host_blocks_;
  std::vector<SlotContent> slots_;    // [num_places * block_tokens]
  std::vector<std::uint32_t> shown_;  // [num_window_blocks]
  std::vector<LayerBlock> layers_;    // [num_layer_blocks]
};

}  // namespace kvrm
