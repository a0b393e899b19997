// SPDX-License-Identifier: Apache-2.0
#include "step/step_content.h"

#include <algorithm>

namespace kvrm {

StepContent::StepContent(const StepLogHeader& header)
    : block_tokens_(header.limits.block_tokens),
      mirrored_(header.limits.mirrored),
      num_pool_blocks_(header.num_pool_blocks),
      num_window_blocks_(header.num_window_blocks),
      num_host_blocks_(header.num_host_blocks),
      slots_((std::uint64_t{num_pool_blocks_} + num_window_blocks_ + num_host_blocks_) *
             block_tokens_),
      shown_(num_window_blocks_, kOwnMemory),
      layers_(header.num_layer_blocks) {}

std::uint64_t StepContent::RequiredBytes(const StepLogHeader& header) {
  const std::uint64_t num_blocks =
      std::uint64_t{header.num_pool_blocks} + header.num_window_blocks + header.num_host_blocks;
  return num_blocks * header.limits.block_tokens * sizeof(SlotContent) +
         std::uint64_t{header.num_window_blocks} * sizeof(std::uint32_t) +
         std::uint64_t{header.num_layer_blocks} * sizeof(LayerBlock);
}

void StepContent::Copy(const TransferGroup& group, std::uint64_t retired) {
  const std::uint64_t source =
      std::uint64_t{PlaceOf(group.source, group.source_tier)} * block_tokens_;
  const std::uint64_t target =
      std::uint64_t{PlaceOf(group.target, group.target_tier)} * block_tokens_;
  for (std::uint64_t i = 0; i < std::uint64_t{group.num_blocks} * block_tokens_; ++i) {
    SlotContent& to = slots_[target + i];
    to = slots_[source + i];
    if (to.writer > retired) to.stamp = kTornStamp;
    to.writer = 0;
  }
}

void StepContent::Map(const TransferGroup& group) {
  for (std::uint32_t i = 0; i < group.num_blocks; ++i)
    shown_[Index(group.target) - num_pool_blocks_ + i] = Index(group.source) + i;
}

void StepContent::Gather(const TransferGroup& group, StepId step) {
  for (std::uint32_t i = 0; i < group.num_blocks; ++i)
    layers_[Index(group.target) + i] = {Index(step), Index(group.source) + i};
}

std::optional<std::uint32_t> StepContent::Resolve(std::uint32_t block) const {
  if (!IsWindow(block)) return block;
  const std::uint32_t shown = shown_[block - num_pool_blocks_];
  if (shown == kUnknownBlock) return std::nullopt;
  return shown == kOwnMemory ? block : shown;
}

std::optional<std::uint32_t> StepContent::ResolveLayer(std::uint32_t block, StepId step) const {
  if (layers_[block].step != Index(step)) return std::nullopt;
  return layers_[block].block;
}

void StepContent::Forget() {
  std::fill(slots_.begin(), slots_.end(), SlotContent{.stamp = kUnknownStamp});
  std::fill(shown_.begin(), shown_.end(), mirrored_ ? kOwnMemory : kUnknownBlock);
}

}  // namespace kvrm
