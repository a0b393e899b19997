// SPDX-License-Identifier: Apache-2.0
#include "step/step_replay.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

namespace kvrm {

std::uint64_t StepReplay::RequiredBytes(const StepLogHeader& header) {
  return StepContent::RequiredBytes(header) +
         (std::uint64_t{header.num_lanes} + header.max_parked) * sizeof(Life);
}

StepReplay::StepReplay(const StepLogHeader& header)
    : header_(header),
      content_(header),
      lives_(std::size_t{header.num_lanes} + header.max_parked) {}

bool StepReplay::Consume(const StepLogRecord& record) {
  switch (record.kind) {
    case StepLogKind::kOpened: {
      const StepLogOpened& opened = record.opened;
      lives_[Index(opened.seq)] = {.open = true,
                                   .request = opened.request,
                                   .salt = opened.salt,
                                   .length = opened.num_tokens};
      return true;
    }
    case StepLogKind::kStep:
      for (const TransferGroup& group : record.view.groups) {
        if (group.kind == GroupKind::kMap) content_.Map(group);
        if (group.kind == GroupKind::kLayerSlices) content_.Gather(group, record.view.header->step);
        if (group.kind != GroupKind::kBlocks) continue;
        content_.Copy(group, std::numeric_limits<std::uint64_t>::max());
      }
      for (std::uint32_t row = 0; row < record.view.header->num_rows; ++row)
        RunRow(record.view, row);
      return true;
    case StepLogKind::kParked:
      lives_[header_.num_lanes + record.value] = std::exchange(lives_[Index(record.seq)], {});
      return true;
    case StepLogKind::kResumed:
      lives_[Index(record.seq)] = std::exchange(lives_[header_.num_lanes + record.value], {});
      return true;
    case StepLogKind::kGap:
      return false;
    default:
      return true;
  }
}

void StepReplay::RunRow(const StepView& view, std::uint32_t row) {
  const std::uint32_t block_tokens = header_.limits.block_tokens;
  const std::uint32_t begin = view.row_start[row];
  const std::uint32_t num_tokens = view.row_start[row + 1] - begin;
  const auto first = static_cast<std::uint32_t>(view.positions[begin]);
  const std::uint32_t context = first + num_tokens;
  Life& life = lives_[Index(view.row_seq[row])];
  if (!life.open || (first == 0 && life.length > 0 && !header_.has_lives)) {
    life = {.open = true, .request = (std::uint64_t{1} << 63) + num_unopened_++};
  }
  std::uint64_t chain = StepContent::BeginChain(life.salt);
  std::uint32_t position = 0;
  for (const Extent& run : view.RowRuns(row)) {
    for (std::uint32_t i = 0; i < run.num_blocks && position < context; ++i) {
      const std::uint32_t shown = Index(run.start) + i;
      std::optional<std::uint32_t> block;
      if (run.start != kSentinelBlock) {
        block = (view.header->flags & kStepLayerWindows) != 0
                    ? content_.ResolveLayer(shown, view.header->step)
                    : content_.Resolve(shown);
      }
      for (std::uint32_t o = 0; o < block_tokens && position < context; ++o, ++position) {
        if (position >= first) {
          const std::uint32_t t = begin + (position - first);
          const std::uint32_t home = Index(view.slots[t]);
          content_.At(home / block_tokens, home % block_tokens).stamp =
              StepContent::Stamp(chain, view.token_ids[t], position);
          if (!view.mirrors.empty())
            content_.At(shown, o) = content_.At(home / block_tokens, home % block_tokens);
        }
        chain = StepContent::Chain(chain, block ? content_.At(*block, o).stamp : kHoleStamp);
      }
    }
  }
  life.length = context;
  Note(life.request, {.num_tokens = context, .digest = chain});
}

void StepReplay::Note(std::uint64_t request, const SequenceDigest& digest) {
  digests_[request] = digest;
}

std::uint64_t StepReplay::total() const {
  std::uint64_t sum = 0;
  for (const auto& [request, sequence] : digests_)
    sum = Mix64(sum ^ Mix64(request) ^ sequence.digest) + sequence.num_tokens;
  return sum;
}

}  // namespace kvrm
