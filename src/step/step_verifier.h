// SPDX-License-Identifier: Apache-2.0
// StepVerifier: proves of a descriptor log, record by record, that nothing was read, written or
// reused that should not have been. Knows no pager: what it needs is in the records.
//
// What is proved of every epoch (StepRule names each; D1 .. D8 are those of step_builder.h):
//   epochs     D1: commits, latches and retires count up by one, in this order, and no more steps
//              are in flight than the ring has entries
//   checksum   D2: the checksum holds at commit, and still does at retire
//   shape      counts, prefix sums and positions are those of a batch
//   slots      D3: a token's slot is its position's place in the row's own runs
//   two-owners D3: no two rows of a step write one block, or one reads what the other writes
//   sentinel   D4: live rows name it for holes only, padding rows for everything
//   runs       D5: the runs cover the context and the padding
//   groups     D6: targets are disjoint from each other and from sources, in order, and in bounds
//   deadline   D8: a layer of a block that is copied lands before the step stores or attends it:
//   each
//              block is copied whole before layer 0, or every layer of it, from one block, by its
//              own deadline
//   missed-write  D7: no copy reads a block that its own step writes
//   landed     no step is latched before the copies of the steps before and its own of deadline 0
//              have landed, and none retires before all of its own have
//   reuse      a block that a step in flight reads, writes or copies is no target of a copy or a
//              mapping, and no row of another sequence begins to write it
//   torn       nothing is read that was copied while a step in flight was writing it
//   unwritten  no position is read from a slot that nobody wrote
//   content    a position is read from a slot that holds this position of this very history: the
//              same tokens from the first on, under the same salt. Sharing is just this
//   hole       only what was trimmed is missing from a history
//   window     a row shows windows and layer buffers of its own lane, filled or gathered for it
//   sequence   a row goes on where its sequence stands, a resumed one where it was parked
//
// Blocks of the host tier are blocks like those of the pool here, numbered behind the windows.
//
// After lost records (kGap) everything unknown is believed until it is written anew.
//
// Why a row of one sequence may begin to write a block that another used in an epoch before: never
// at the block's first slot while that epoch is in flight. At a later slot it may, for its own
// history lies below (content): a block that was forked, or copied on write.
//
// Threading: one thread. Memory: RequiredBytes at construction, nothing later but messages.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "base/result.h"
#include "step/step_log.h"

namespace kvrm {

enum class StepRule : std::uint8_t {
  kEpochs,
  kChecksum,
  kShape,
  kSlots,
  kTwoOwners,
  kSentinel,
  kRuns,
  kGroups,
  kDeadline,
  kMissedWrite,
  kLanded,
  kReuse,
  kTorn,
  kUnwritten,
  kContent,
  kHole,
  kWindow,
  kSequence,
};
// As in the list above. Never null.
const char* StepRuleName(StepRule rule);

inline constexpr std::uint32_t kNoNumber = ~std::uint32_t{0};

struct StepViolation {
  StepRule rule{};
  StepId step{};
  std::uint32_t row = kNoNumber;
  std::uint32_t block = kNoNumber;
  std::string message;  // what, in one line

  // "step 7, row 2, block 19: reuse: ...".
  std::string Text() const;
};

struct StepTotals {
  std::uint64_t num_records = 0;
  std::uint64_t num_steps = 0;
  std::uint64_t num_rows = 0;
  std::uint64_t num_tokens = 0;
  std::uint64_t num_samples = 0;
  std::uint64_t num_reads = 0;          // slots of histories, each compared with what it must hold
  std::uint64_t num_unknown_reads = 0;  // of them: believed, for records were lost
  std::uint64_t num_sequences = 0;
  std::uint64_t num_copies = 0;  // groups of whole blocks
  std::uint64_t num_copied_blocks = 0;
  std::uint64_t num_parked_blocks = 0;   // of them, to the host tier
  std::uint64_t num_resumed_blocks = 0;  // and back
  std::uint64_t num_slices = 0;          // groups of layer slices
  std::uint64_t num_maps = 0;
  std::uint64_t num_lost = 0;  // records
  std::uint32_t most_in_flight = 0;
};

class StepVerifier {
 public:
  static std::uint64_t RequiredBytes(const StepLogHeader& header);
  explicit StepVerifier(const StepLogHeader& header);
  ~StepVerifier();
  StepVerifier(const StepVerifier&) = delete;
  StepVerifier& operator=(const StepVerifier&) = delete;

  // False once a rule has been broken; what follows is not looked at.
  // Requires: a view fits the header's limits, as StepLogReader and StepBuilder see to.
  bool Consume(const StepLogRecord& record);

  const std::optional<StepViolation>& violation() const;
  const StepTotals& totals() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kvrm
