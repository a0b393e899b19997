// SPDX-License-Identifier: Apache-2.0
// StepBuilder: the ring of step descriptors and the only writer of them.
//
// Life of one ring entry, and who moves it on:
//
//      Begin            Commit              Latch              Retire
//   kFree ---> kBuilding ----> kCommitted -------> kInFlight --------> kFree
//
//     kFree      -> kBuilding   Begin    engine thread; refused (false) when no entry is free
//     kBuilding  -> kCommitted  Commit   engine thread; checks the descriptor, pads, seals with the
//                                        checksum, publishes with one release store
//     kCommitted -> kInFlight   Latch    executor; one acquire load; epochs in order
//     kInFlight  -> kFree       Retire   engine thread, after the executor is done; the checksum
//                                        must still hold (D2)
//
// Invariants (checked by Commit and Retire):
//   D1  Epochs are consecutive: commit n follows commit n - 1, retire likewise.
//   D2  A committed descriptor does not change until it retires: checksum at commit == at retire.
//   D3  Every write slot of a row lies inside that row's own runs, and no two tokens of a step
//       write the same slot.
//   D4  Live rows never name the sentinel block; padding rows name nothing else.
//   D5  num_runs[r] <= max_runs, and the runs cover the row's context.
//   D6  No transfer group's target overlaps another group's target or source.
//
// Threading: as above. Memory: all rings are reserved by the constructor.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "step/step.h"

namespace kvrm {

// A row as the engine states it.
struct StepRow {
  SeqId seq{};
  std::uint32_t first_position = 0;      // position of tokens[0]
  std::span<const std::int32_t> tokens;  // 1 .. the rest of the step's token budget
  std::span<const Extent> runs;          // history and this step's slots, in token order
  std::uint32_t num_samples = 0;         // logits are wanted of this many tokens from the end
};

class StepBuilder {
 public:
  StepBuilder(const StepLimits& limits, std::uint32_t ring_entries);
  ~StepBuilder();
  StepBuilder(const StepBuilder&) = delete;
  StepBuilder& operator=(const StepBuilder&) = delete;

  // Takes a free entry. False when every entry is committed and not retired.
  bool Begin() noexcept;
  // Requires: Begin, room for the row (num_rows < max_rows, tokens fit, runs <= max_runs).
  void AddRow(const StepRow& row) noexcept;
  void AddGroup(const TransferGroup& group) noexcept;
  std::uint32_t num_rows() const noexcept;
  std::uint32_t num_tokens() const noexcept;
  std::uint32_t num_groups() const noexcept;
  // Seals and publishes. `bucket_rows` >= num_rows rows of graph `bucket` will run.
  StepView Commit(std::uint32_t bucket, std::uint32_t bucket_rows) noexcept;
  // Gives up the entry under construction.
  void Abandon() noexcept;

  // Executor: the oldest committed step not yet latched; header null when there is none.
  StepView Latch() noexcept;
  // Engine: the oldest latched step is done; its epoch is returned and its memory reused.
  StepId Retire() noexcept;

  // Recomputes the checksum a view should carry.
  static std::uint64_t Checksum(const StepView& view) noexcept;
  std::uint64_t reserved_bytes() const noexcept;

 private:
  struct Ring;
  std::unique_ptr<Ring> ring_;
};

}  // namespace kvrm
