// SPDX-License-Identifier: Apache-2.0
// Identities: strong types that cost nothing and cannot be passed for one another.
//
//   block   a fixed number of tokens' K and V, all layers, one tier; the unit of allocation
//   slot    one token's place in the cache: block * block_tokens + offset
//   row     a sequence's place in one step's batch, new every step
//   step    one run of the graph over one batch; its StepId is also its commit epoch
#pragma once

#include <cstdint>
#include <type_traits>

namespace kvrm {

enum class BlockId : std::uint32_t {};
enum class SlotId : std::uint32_t {};
enum class RowId : std::uint32_t {};
// Index of a sequence in the tables of kv/ and engine/; dense, reused after release.
enum class SeqId : std::uint32_t {};
// A history in the host tier; dense, reused when it has left.
enum class ParkedId : std::uint32_t {};
// Commit epoch: 1 for the first step, then one more each step. 0: no step.
enum class StepId : std::uint64_t {};

template <typename Id>
constexpr std::underlying_type_t<Id> Index(Id id) {
  return static_cast<std::underlying_type_t<Id>>(id);
}

// Block 0 of every pool is the sentinel: padding rows read and write it and nothing else does.
inline constexpr BlockId kSentinelBlock{0};

}  // namespace kvrm
