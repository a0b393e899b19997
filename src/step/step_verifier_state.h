// SPDX-License-Identifier: Apache-2.0
// What StepVerifier knows between two records, and its checks: step_verifier.cc has those of epochs
// and groups, step_verifier_rows.cc those of rows.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "step/step_content.h"
#include "step/step_verifier.h"

namespace kvrm {

struct StepVerifier::State {
  explicit State(const StepLogHeader& header_in);

  // Of a block of the pool, of a window or of the host tier, whoever holds it. Epoch 0: never.
  struct Block {
    std::uint64_t row_epoch = 0;     // the last step a row of which read or wrote it
    std::uint64_t copy_epoch = 0;    // the last step that copied from or into it
    std::uint64_t life = 0;          // whose row it was; 0: it is a copy that no row has used yet
    std::uint64_t other_epoch = 0;   // the last step in which a row of another life than `life` did
    std::uint64_t copy_life = 0;     // for whose window it was copied; 0: not for a window
    std::uint64_t write_epoch = 0;   // the last step a row of which wrote it
    std::uint64_t target_epoch = 0;  // the last step that copied or mapped something into it
    std::uint32_t target_source = 0;  // of that copy
    std::uint32_t target_layers = 0;  // of them, copied by the groups seen so far
    std::uint32_t write_row = 0;
  };

  // One use of a sequence identity.
  struct Life {
    std::uint64_t id = 0;  // 0: none yet
    std::uint64_t salt = 0;
    std::uint32_t length = 0;
    bool is_lost = false;  // its history is unknown: records were lost
  };
  // One committed step, by epoch % ring_entries.
  struct Flight {
    std::uint64_t checksum = 0;
    std::uint64_t copies_until = 0;  // the last epoch with copies, up to this one
    std::uint32_t num_samples = 0;
    std::uint32_t last_deadline = 0;  // of its copies
  };

  bool Fail(StepRule rule, std::uint32_t row, std::uint32_t block, std::string message);
  bool Step(const StepView& view);
  bool Opened(const StepLogOpened& opened);
  bool Trimmed(const StepLogRecord& record);
  bool Parked(const StepLogRecord& record);
  bool Resumed(const StepLogRecord& record);
  void MoveLife(SeqId from, SeqId to);
  bool Landed(std::uint64_t step, std::uint64_t deadline);
  bool Latched(std::uint64_t step);
  bool Retired(std::uint64_t step, std::uint64_t checksum);
  bool Sampled(std::uint64_t step, std::size_t num_tokens);
  void Gap(std::uint64_t num_records);

  bool CheckHeader(const StepView& view);
  bool CheckTokens(const StepView& view);
  bool CheckPadding(const StepView& view);
  bool CheckGroup(const StepView& view, const TransferGroup& group);
  bool CheckDeadline(const TransferGroup& group);
  bool CheckTargets(const TransferGroup& group);
  bool CheckNextLayers(const TransferGroup& group, std::uint32_t block);
  bool CheckAllLayers(const TransferGroup& group);
  bool CheckSources(const TransferGroup& group);
  bool CheckGroups(const StepView& view);
  void ApplyGroup(const TransferGroup& group, StepId step);

  bool BeginRow(const StepView& view, std::uint32_t row);
  bool CheckWrites(const StepView& view, std::uint32_t row, std::span<const SlotId> slots);
  bool CheckWrite(const StepView& view, std::uint32_t row, std::uint32_t block,
                  std::uint32_t offset);
  bool WalkRow(const StepView& view, std::uint32_t row);
  bool WalkHole(std::uint32_t num_blocks);
  bool WalkRun(const StepView& view, const Extent& run);
  bool CheckLane(const StepView& view, const Extent& run);
  bool CheckStillOwn(const StepView& view, std::uint32_t block);
  bool ReadSlot(std::uint32_t block, std::uint32_t offset);
  bool WriteToken(const StepView& view, std::uint32_t shown, std::uint32_t offset,
                  std::optional<std::uint32_t> block);
  void Touch(std::uint32_t block, std::uint64_t life);

  std::uint64_t* History(SeqId seq) { return &history_[Index(seq) * lane_tokens_]; }
  std::uint8_t* MayBeHole(SeqId seq) {
    return &may_be_hole_[std::uint64_t{Index(seq)} * header_.lane_blocks];
  }
  // Whether an epoch before this one may still be running.
  bool InFlight(std::uint64_t epoch) const { return epoch > fence_ && epoch < now_; }

  const StepLogHeader header_;
  const std::uint32_t block_tokens_;
  const std::uint64_t lane_tokens_;
  StepContent content_;
  std::vector<Block> blocks_;  // by StepContent::PlaceOf
  // Of lanes, and behind them of parked histories.
  std::vector<Life> lives_;
  std::vector<std::uint64_t> history_;      // [.. * lane_tokens] stamps by position
  std::vector<std::uint8_t> may_be_hole_;   // [.. * lane_blocks]
  std::vector<Flight> flights_;             // [ring_entries]
  std::vector<std::uint64_t> layer_marks_;  // [num_layer_blocks] the last step that gathered there
  std::uint64_t num_lives_ = 0;

  std::uint64_t committed_ = 0;
  std::uint64_t latched_ = 0;
  std::uint64_t retired_ = 0;
  std::uint64_t landed_ = 0;         // the last epoch all of whose copies have landed
  std::uint64_t landed_partly_ = 0;  // the last whose copies of deadline 0 have
  std::uint64_t last_copies_ = 0;    // the last epoch with copies
  std::uint64_t floor_ = 0;          // epochs up to here lie before a gap
  bool is_lost_ = false;             // a gap, and no step since
  // Of the step that is being looked at.
  std::uint64_t now_ = 0;
  std::uint64_t fence_ = 0;  // what is not above it has retired

  // Of the row that is being walked.
  struct Walk {
    std::uint32_t row = 0;
    SeqId seq{};
    std::uint32_t first = 0;    // position of its first token
    std::uint32_t context = 0;  // position after its last token
    std::uint32_t token = 0;    // index of its next token
    std::uint32_t position = 0;
    std::uint64_t num_blocks = 0;
    std::uint64_t chain = 0;
    bool layered = false;
  };
  Walk walk_;

  StepTotals totals_;
  std::optional<StepViolation> violation_;
};

}  // namespace kvrm
