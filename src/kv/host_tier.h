// SPDX-License-Identifier: Apache-2.0
// HostTier: histories that have left the pool, and the host blocks that hold them meanwhile.
//
// Tier 1 is a second memory of blocks of the pool's layout, numbered from 1. A history is parked by
// copies out of the pool and resumed by copies back into it, groups of the one transport like all
// others, as many a step as its budget allows. What becomes of a history:
//
//              Park            last copy planned          Resume             last copy planned
//       kNone -----> kParking -------------------> kParked -----> kResuming ------------------->
//       kNone
//         ^              | Discard                  | ^  Park of it  |  |
//         +--------------+--------------------------+ +--------------+  | Release
//         +-----------------------------------------+-------------------+
//
//     kNone     -> kParking   room for all of its blocks is taken, or none is and Park refuses; the
//                             pager puts what the sequence held on a shelf (Pager::Shelve)
//     kParking  -> kParking   a step copies some more, from the end on, so that the prefix cache
//                             forgets the ends of prefixes first; what was copied leaves the shelf
//     kParking  -> kParked    nothing is left on the shelf
//     kParked   -> kResuming  a sequence has taken blocks for all of it; what the prefix cache
//     still
//                             has of its beginning is shared and not copied
//     kResuming -> kParked    parked again: the host blocks hold it still, nothing is copied
//     kResuming -> kNone      the row may run in the step of the last copy, before which all land
//
// Costs: a history keeps its host blocks until all of it is back, twice its size for some steps; in
// return a resume can be given up at any point. One that is being parked cannot be resumed before
// it is parked, a few steps later.
//
// Invariants (checked where they matter, and all of them by CheckInvariants):
//   Y1  Every host block is free, held by one history, or waits for an epoch, and the three sum up.
//   Y2  A history has a host block for each of its blocks that is no hole; the shelf has what was
//       not copied yet, blocks [0, end) without the holes.
//   Y3  A host block that is given up is not reused before the last step whose copies touch it has
//       retired.
//   Y4  A history is resumed only when every copy that parks it was committed: no step both fills
//       and reads a host block (D6), and flights land one after the other.
//   Y5  A row of a resuming sequence is not added before the last of its copies is planned.
//   Y6  Nothing of a resuming sequence is settled: its blocks are not moved, published, staged or
//       shared before they hold what they should.
//
// Threading: engine thread only. Memory: everything is reserved by the constructor.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/check.h"
#include "kv/free_runs.h"
#include "kv/kv_cache.h"
#include "kv/pager.h"
#include "kv/transport.h"
#include "step/ids.h"
#include "step/step.h"

namespace kvrm {

struct HostTierOptions {
  std::uint32_t num_blocks = 0;  // 0: no tier, Park always refuses
  std::uint32_t max_parked = 0;  // histories, those that come and go included
  std::uint32_t max_seqs = 0;
  std::uint32_t max_blocks_per_seq = 0;
};

class HostTier {
 public:
  // `pager` has max_parked shelves and outlives the tier.
  HostTier(const HostTierOptions& options, Pager& pager);

  // As in KvCache.
  std::optional<ParkedId> Park(SeqId seq) noexcept;
  bool CanPark(SeqId seq) const noexcept;
  bool Resume(ParkedId parked, SeqId seq, std::span<const std::int32_t> tokens,
              std::span<const PrefixKey> keys, std::uint32_t reserve_tokens) noexcept;
  void Discard(ParkedId parked) noexcept;
  bool is_parked(ParkedId parked) const noexcept;
  bool is_resuming(SeqId seq) const noexcept {
    CHECK(Index(seq) < options_.max_seqs);
    return resuming_[Index(seq)] != kNobody;
  }
  // The sequence is about to be released: what is still to come for it is not needed.
  void Releasing(SeqId seq) noexcept;

  // Copies out of the pool, or back into it, as far as the transport's budget goes; who was parked
  // or resumed first is served first.
  void PlanParks(Transport& transport) noexcept;
  void PlanResumes(Transport& transport) noexcept;
  void Retired(StepId step) noexcept;

  std::uint32_t num_free() const noexcept { return free_.num_free(); }
  std::uint32_t num_held() const noexcept { return num_held_; }
  std::uint32_t num_limbo() const noexcept { return num_limbo_; }
  bool is_parking() const noexcept { return num_parking() > 0; }
  // Histories that are being parked, lie there, are being resumed.
  std::uint32_t num_parking() const noexcept { return Count(State::kParking); }
  std::uint32_t num_parked() const noexcept { return Count(State::kParked); }
  std::uint32_t num_resuming() const noexcept { return Count(State::kResuming); }
  std::uint32_t num_leaving() const noexcept;  // blocks of the pool that are still to be copied out
  std::uint64_t num_parked_tokens() const noexcept;
  std::uint64_t num_parks() const noexcept { return num_parks_; }
  std::uint64_t num_resumes() const noexcept { return num_resumes_; }
  std::uint64_t num_refusals() const noexcept { return num_refusals_; }
  std::uint64_t reserved_bytes() const noexcept;
  void CheckInvariants() const;
  std::uint64_t StateHash() const;  // As in KvCache.

 private:
  static constexpr std::uint32_t kNobody = ~std::uint32_t{0};

  enum class State : std::uint8_t { kNone, kParking, kParked, kResuming };
  struct History {
    State state = State::kNone;
    SeqId seq{};                   // of a resuming one
    std::uint32_t num_runs = 0;    // of host blocks and holes, in token order
    std::uint32_t end = 0;         // parking: blocks [0, end) are still to be copied
    std::uint32_t begin = 0;       // resuming: blocks [begin, ..) are
    std::uint64_t last_epoch = 0;  // the last step with copies of it (Y3)
  };
  // Given up, and free when the epoch has retired.
  struct Waiting {
    Extent blocks;
    std::uint64_t epoch = 0;
  };
  // Consecutive blocks of a history in the pool and in the tier.
  struct Piece {
    BlockId pool{};
    BlockId host{};
    std::uint32_t first = 0;  // number of the first in the history
    std::uint32_t num_blocks = 0;
  };

  std::span<const Extent> HostRuns(std::uint32_t h) const noexcept {
    return {&runs_[std::size_t{h} * options_.max_blocks_per_seq], histories_[h].num_runs};
  }
  SeqId Shelf(std::uint32_t h) const noexcept { return SeqId{options_.max_seqs + h}; }
  std::uint32_t Count(State state) const noexcept {
    return num_in_state_[static_cast<std::size_t>(state)];
  }
  void SetState(std::uint32_t h, State state) noexcept;
  std::uint32_t BlocksOf(SeqId seq) const noexcept;
  std::uint32_t FreePlace() const noexcept;
  void PushRun(std::uint32_t h, const Extent& blocks) noexcept;
  void TakeRoom(std::uint32_t h) noexcept;
  void GiveUpRoom(std::uint32_t h) noexcept;
  void Forget(std::uint32_t h) noexcept;
  std::uint32_t BudgetOf(const Transport& transport) const noexcept;
  Piece PieceBefore(std::uint32_t h, std::uint32_t end) const noexcept;
  Piece PieceFrom(std::uint32_t h, std::uint32_t begin) const noexcept;
  void PlanPark(std::uint32_t h, Transport& transport) noexcept;
  bool PlanResume(std::uint32_t h, Transport& transport) noexcept;

  const HostTierOptions options_;
  Pager& pager_;
  FreeRuns free_;
  std::vector<History> histories_;         // [max_parked]
  std::vector<Extent> runs_;               // [max_parked * max_blocks_per_seq]
  std::vector<std::uint32_t> resuming_;    // [max_seqs] the history that comes back, or kNobody
  std::vector<std::uint32_t> on_the_way_;  // histories that park or resume, in order of the call
  std::vector<Waiting> waiting_;
  // Every step asks for them.
  std::array<std::uint32_t, 4> num_in_state_ = {options_.max_parked, 0, 0, 0};
  std::uint32_t num_held_ = 0;
  std::uint32_t num_limbo_ = 0;
  std::uint64_t num_parks_ = 0;
  std::uint64_t num_resumes_ = 0;
  std::uint64_t num_refusals_ = 0;
};

}  // namespace kvrm
