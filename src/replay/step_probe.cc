// SPDX-License-Identifier: Apache-2.0
#include "replay/step_probe.h"

#include <memory>
#include <span>
#include <utility>

namespace kvrm {
namespace {

class ProbedExecutor final : public Executor {
 public:
  ProbedExecutor(std::unique_ptr<Executor> inner, const KvLayout& layout, StepProbe* probe)
      : inner_(std::move(inner)), layout_(layout), probe_(probe) {}

  std::span<const Bucket> buckets() const noexcept override { return inner_->buckets(); }
  bool waits_for_layers() const noexcept override { return inner_->waits_for_layers(); }
  void Run(const StepView& step) noexcept override {
    probe_->See(step, layout_);
    inner_->Run(step);
  }
  void Wait() noexcept override { inner_->Wait(); }
  std::span<const float> Logits(std::uint32_t sample) const noexcept override {
    return inner_->Logits(sample);
  }
  LogitStats Stats(std::uint32_t sample) const noexcept override { return inner_->Stats(sample); }
  std::span<const std::uint64_t> replays() const noexcept override { return inner_->replays(); }

 private:
  const std::unique_ptr<Executor> inner_;
  const KvLayout layout_;
  StepProbe* const probe_;
};

std::uint64_t MovedBytes(const TransferGroup& group, const KvLayout& layout) {
  if (group.kind == GroupKind::kMap) return 0;
  const std::uint64_t layers = group.kind == GroupKind::kBlocks && group.num_layers > 0
                                   ? group.num_layers
                                   : layout.num_layers;
  return layers * layout.layer_bytes() * group.num_blocks;
}

}  // namespace

void StepProbe::See(const StepView& step, const KvLayout& layout) {
  ++num_steps;
  num_rows = step.header->num_rows;
  num_tokens = step.header->num_tokens;
  num_groups = step.header->num_groups;
  moved_bytes = 0;
  num_copies = 0;
  num_maps = 0;
  bool has_slices = false;
  for (const TransferGroup& group : step.groups) {
    moved_bytes += MovedBytes(group, layout);
    num_maps += group.kind == GroupKind::kMap ? 1 : 0;
    num_copies += group.kind == GroupKind::kBlocks ? 1 : 0;
    has_slices = has_slices || group.kind == GroupKind::kLayerSlices;
  }
  if (has_slices) num_copies += layout.num_layers;
  attended_tokens = 0;
  prompt_pairs = 0;
  for (std::uint32_t row = 0; row < num_rows; ++row) {
    const auto last = static_cast<std::uint64_t>(step.positions[step.row_start[row + 1] - 1]);
    const std::uint64_t padded = step.header->padded_tokens;
    attended_tokens += padded > 0 ? padded : last + 1;
    const std::uint64_t count = step.row_start[row + 1] - step.row_start[row];
    // From last + 2 - count up to last + 1.
    if (count > 1) prompt_pairs += padded > 0 ? count * padded : count * (2 * last + 3 - count) / 2;
  }
}

EngineParts Probed(EngineParts parts, StepProbe* probe) {
  parts.make_executor = [make = std::move(parts.make_executor),
                         probe](const ExecutorNeeds& needs) -> std::unique_ptr<Executor> {
    return std::make_unique<ProbedExecutor>(make(needs), needs.layout, probe);
  };
  return parts;
}

}  // namespace kvrm
