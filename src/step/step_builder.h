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
// Invariants (checked by AddRow, Commit and Retire):
//   D1  Epochs are consecutive: commit n follows commit n - 1, latch and retire likewise.
//   D2  A committed descriptor does not change until it retires: checksum at commit == at retire.
//   D3  Every write slot of a row lies inside that row's own home runs (its mirror inside its
//       runs), never in a hole, and no two rows of a step write the same block.
//   D4  Live rows name the sentinel block only for holes; padding rows name nothing else.
//   D5  num_runs[r] <= max_runs, and the runs cover the row's context.
//   D6  No transfer group's target overlaps any copy's source, or another group's target in a
//       layer that both copy; copies are in order of before_layer; no group touches the sentinel.
//   D7  No block that a copy of blocks reads is written by the same step: the copy would miss the
//       write. (Layer slices get the step's tokens as well; a mapping copies nothing.)
//   D8  A group with a deadline after layer 0 copies layers from its deadline on and none before:
//       whoever waits for layer l may touch layer l. Groups of one deadline copy as many layers,
//       and the layers of two deadlines do not overlap. (That no layer is missing, StepVerifier
//       checks.)
//
// Threading: Latch on one executor thread, all else on the engine thread; the executor tells the
// engine that it is done by means of its own (Retire must happen after that). Memory: all entries
// lie in one block of memory, reserved by the constructor; nothing else allocates.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "step/step.h"

namespace kvrm {

// A row as the engine states it.
struct StepRow {
  SeqId seq{};
  std::uint32_t first_position = 0;      // position of tokens[0]
  std::span<const std::int32_t> tokens;  // 1 .. the rest of the step's token budget
  std::span<const Extent> runs = {};     // what the step reads, its own tokens included
  std::span<const Extent> home = {};     // where the tokens are written; empty: `runs` itself
  bool mirror = false;                   // write them into `runs` as well
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
  // The epoch of the entry under construction, or of the next one: last committed plus one.
  StepId building() const noexcept;
  // Requires: Begin, room for the row (num_rows < max_rows, tokens fit, runs <= max_runs).
  void AddRow(const StepRow& row) noexcept;
  void AddGroup(const TransferGroup& group) noexcept;
  std::uint32_t num_rows() const noexcept;
  std::uint32_t num_tokens() const noexcept;
  std::uint32_t num_groups() const noexcept;
  // Every row is computed over this many positions at least; runs must cover them (D5).
  void Pad(std::uint32_t num_tokens) noexcept;
  void SetLayerWindows() noexcept;
  // Seals and publishes. `bucket_rows` rows of graph `bucket` will run.
  // Requires: num_rows <= bucket_rows <= max_rows. A step may have groups and no rows.
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
