// SPDX-License-Identifier: Apache-2.0
// Mutants: planted bugs, one per family of real ones, that the tests must find.
//
// A build with KVRM_MUTANTS has all of them compiled in and one, chosen at run time, switched on.
// In every other build IsMutant is the constant false and the planted code is gone.
//
// A planted bug stands where the real one would: `if (IsMutant(Mutant::kFreeInFlight)) ...`.
// Threading: chosen once, before any other thread is there.
#pragma once

#include <cstdint>

namespace kvrm {

enum class Mutant : std::uint8_t {
  kNone,
  // Descriptors.
  kOverrunRing,    // the ring takes one step more than it has entries
  kStaleEpoch,     // an entry that is used again keeps the epoch it had
  kTokensInPlace,  // all entries of the ring have one array of tokens
  kStalePadding,   // rows of padding keep what the entry's step before had there
  kLoseLastRun,    // a row of several runs is told without its last one
  kTargetTwice,    // the second of two moves goes where the first one goes
  // Blocks and fences.
  kNoLimbo,        // blocks of an ended or shortened sequence are free at once
  kEarlyRetire,    // limbo waits for one epoch less than it must
  kMoveUnsettled,  // moves blocks that a step in flight still writes
  kFreePlanned,    // a block under a planned copy is given up as if nobody read it
  kIgnoreCredit,   // Extend takes blocks that others were promised
  kLoseBlock,      // a block that should be free stays in limbo for ever
  kDoubleRelease,  // one release gives a block back twice
  kReleaseHeld,    // a shared block is free when its first holder leaves
  // Sharing.
  kMissedCopy,         // a shared block is written in place
  kCopyWithoutTokens,  // copy-on-write takes a fresh block and copies nothing
  kForkForgetsRef,     // a fork does not count itself as a holder of its last block
  kTruncateKeepsName,  // what is cut off and written anew is still found under its old name
  kTrimOneTooMany,     // trimming drops the block behind its range as well
  kOwnTooEarly,        // who is left alone with a block writes it while the others' steps run
  // Prefix cache.
  kKeyWithoutTokens,  // a prefix is found by its key alone, tokens are not compared
  kPublishUnsettled,  // blocks are published before the step that fills them has retired
  kPublishPartial,    // a block is published before it is full
  kPublishHoled,      // a block is published although computed behind a hole
  kFindInLimbo,       // a block whose fence has not passed is handed out as a prefix hit
  kEvictHeld,         // a prefix hit leaves the block evictable
  kFreeKeepsName,     // a block becomes free and is still found under its name
  // Transport.
  kLoseCopy,         // the last copy of a step is not made
  kNoLand,           // Land does not wait
  kSplitOffByOne,    // a group longer than the limit loses the block at the seam
  kMergeAcrossGap,   // moves that are not adjacent at their targets become one
  kForgetAbandoned,  // the moves of a given-up step are forgotten
  kLateDeadline,     // copies of later layers may land one layer late
  kLoseLastLayers,   // of a move that is cut by layers the last range is forgotten
  // Host tier.
  kHostReuseEarly,    // a host block that is given up is free at once
  kResumeTooEarly,    // a row runs before its history is back
  kParkFreesEarly,    // a block of the pool that is parked is free before it was copied
  kParkUnsettled,     // a block is parked while a step in flight writes it
  kWrongTier,         // a history comes back from the pool's blocks of the same numbers
  kParkForgetsTail,   // the last block of a history is not copied
  kDiscardKeepsRoom,  // a history that is discarded keeps its host blocks
  // Memory of the pool.
  kGiveBackShared,  // a unit of memory that a neighbour's blocks lie in is given back
  // Views.
  kMirrorMissing,       // a window is believed to hold what was never written to it
  kStagedSurvivesOpen,  // a new sequence believes its window filled
  kStagedBeyondBudget,  // a window whose copies did not fit the step counts as filled
  kStageWrongBlock,     // a window is filled from the block behind
  kMapStale,            // a window shows the block that was there before the move
  kRunsSwapped,         // the first two runs of a row in the wrong order
  kWindowTooEarly,      // a window is filled or shown anew while a step in flight reads it
  kTailTogether,        // a half-filled block is copied in by the step that writes into it
  // Engine.
  kHitTooLong,         // a prefix hit counts one token more than it has
  kLoseSequenceId,     // a sequence that ends takes its identity with it
  kSampleOfAnother,    // the logits of a row that emits nothing are counted
  kCancelKeepsBlocks,  // who is removed keeps its blocks
};

#ifdef KVRM_MUTANTS
inline Mutant active_mutant = Mutant::kNone;
inline bool IsMutant(Mutant mutant) noexcept {
  return active_mutant == mutant;
}
#else
constexpr bool IsMutant(Mutant) noexcept {
  return false;
}
#endif

}  // namespace kvrm
