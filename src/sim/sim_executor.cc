// SPDX-License-Identifier: Apache-2.0
#include "sim/sim_executor.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "sim/history.h"

namespace kvrm {
namespace {

// What a window without anything behind it shows.
constexpr std::uint64_t kNothing = 0xeeeeeeeeeeeeeeee;

}  // namespace

SimExecutor::SimExecutor(const ExecutorNeeds& needs, SimDevice& device, std::uint32_t vocab_size)
    : needs_(needs),
      device_(device),
      num_pool_blocks_(needs.memory.size() / needs.layout.block_bytes()),
      seen_(needs.limits.max_tokens),
      logits_(std::size_t{needs.limits.max_samples} * vocab_size),
      stats_(needs.limits.max_samples, vocab_size),
      vocab_size_(vocab_size) {
  CHECK(needs.layout.layer_bytes() == needs.layout.block_tokens * sizeof(std::uint64_t));
  CHECK(needs.layout.num_layers == kSimLayers);
  const std::uint32_t rows = needs.limits.max_rows;
  if (rows > 1) buckets_.push_back({.max_rows = (rows + 1) / 2, .max_tokens = (rows + 1) / 2});
  buckets_.push_back({.max_rows = rows, .max_tokens = needs.limits.max_tokens});
  replays_.resize(buckets_.size());
}

std::uint64_t* SimExecutor::Home(std::uint32_t layer, BlockId block) const {
  std::uint64_t number = Index(block);
  CHECK(number < num_pool_blocks_);
  if (device_.is_mapped()) {
    const std::uint64_t num_home_blocks = num_pool_blocks_ - device_.num_window_units();
    if (number >= num_home_blocks) {
      const std::optional<std::size_t> shown = device_.Shown(number - num_home_blocks);
      if (!shown) return nullptr;
      number = *shown;
    }
  }
  std::byte* const at = needs_.memory.data() + number * needs_.layout.block_bytes() +
                        layer * needs_.layout.layer_bytes();
  return reinterpret_cast<std::uint64_t*>(at);
}

std::uint64_t* SimExecutor::Stamps(const StepView& step, std::uint32_t layer, BlockId block) const {
  if ((step.header->flags & kStepLayerWindows) == 0) return Home(layer, block);
  const std::size_t half = needs_.layer_buffers.size() / 2;
  const std::size_t offset = Index(block) * needs_.layout.layer_bytes();
  CHECK(offset + needs_.layout.layer_bytes() <= half);
  return reinterpret_cast<std::uint64_t*>(needs_.layer_buffers.data() + layer % 2 * half + offset);
}

void SimExecutor::Start(const StepView& step) {
  step_ = step;
  CHECK(step.header->num_tokens <= seen_.size());
  ++replays_[step.header->bucket];
}

void SimExecutor::RunLayer(std::uint32_t layer) {
  // Layer 0 is the business of who starts the step (Executor::Run).
  if (layer > 0) device_.WaitLayer(layer);
  Write(layer);
  Gather(layer);
  for (std::uint32_t row = 0; row < step_.header->num_rows; ++row)
    ReadRow(layer, row);
}

// Every token's stamp, from what the layer before has seen at it.
void SimExecutor::Write(std::uint32_t layer) {
  const std::uint32_t block_tokens = needs_.layout.block_tokens;
  for (std::uint32_t t = 0; t < step_.header->num_tokens; ++t) {
    const std::uint64_t stamp =
        layer == 0 ? FirstStamp(step_.token_ids[t], static_cast<std::uint32_t>(step_.positions[t]))
                   : NextStamp(seen_[t], layer);
    const std::uint32_t slot = Index(step_.slots[t]);
    Home(layer, BlockId{slot / block_tokens})[slot % block_tokens] = stamp;
    if (step_.mirrors.empty()) continue;
    const std::uint32_t mirror = Index(step_.mirrors[t]);
    Home(layer, BlockId{mirror / block_tokens})[mirror % block_tokens] = stamp;
  }
}

void SimExecutor::Gather(std::uint32_t layer) const {
  for (const TransferGroup& group : step_.groups) {
    if (group.kind != GroupKind::kLayerSlices) continue;
    for (std::uint32_t b = 0; b < group.num_blocks; ++b) {
      std::memcpy(Stamps(step_, layer, BlockId{Index(group.target) + b}),
                  Home(layer, BlockId{Index(group.source) + b}), needs_.layout.layer_bytes());
    }
  }
}

void SimExecutor::ReadRow(std::uint32_t layer, std::uint32_t row) {
  const std::uint32_t block_tokens = needs_.layout.block_tokens;
  const std::uint32_t begin = step_.row_start[row];
  const auto first = static_cast<std::uint32_t>(step_.positions[begin]);
  const std::uint32_t end = first + (step_.row_start[row + 1] - begin);
  std::uint64_t seen = 0;
  std::uint32_t position = 0;
  for (const Extent& run : step_.RowRuns(row)) {
    for (std::uint32_t b = 0; b < run.num_blocks && position < end; ++b) {
      const std::uint32_t block_end = std::min(end, position + block_tokens);
      if (run.start == kSentinelBlock) {
        position = block_end;
        continue;
      }
      const std::uint64_t* stamps = Stamps(step_, layer, BlockId{Index(run.start) + b});
      for (; position < block_end; ++position) {
        seen = See(seen, stamps == nullptr ? kNothing : *stamps++);
        if (position >= first) seen_[begin + (position - first)] = seen;
      }
    }
  }
  CHECK(position == end);  // The runs cover the context (D5).
}

void SimExecutor::Run(const StepView& step) noexcept {
  Start(step);
}

void SimExecutor::Wait() noexcept {
  for (std::uint32_t layer = 0; layer < kSimLayers; ++layer)
    RunLayer(layer);
  for (std::uint32_t s = 0; s < step_.header->num_samples; ++s) {
    FillLogits(seen_[step_.sample_token[s]],
               std::span(logits_).subspan(std::size_t{s} * vocab_size_, vocab_size_));
    stats_.Compute(s, Logits(s));
  }
}

std::span<const float> SimExecutor::Logits(std::uint32_t sample) const noexcept {
  return std::span(logits_).subspan(std::size_t{sample} * vocab_size_, vocab_size_);
}

}  // namespace kvrm
