// SPDX-License-Identifier: Apache-2.0
// Every program of a small scope: two sequences, three blocks in each of two tiers, one prefix that
// both begin with.
//
// Breadth first, so that what fails is as short as can be; a state that has been seen is not gone
// on from again (KvWorld::StateHash). Every state is checked as KvWorld checks, and from every new
// state the world is brought to its end.
// Threading: call from a process with one thread. Errors: throws StartError.
#pragma once

#include <cstdint>
#include <string>

#include "kv/kv_cache.h"

namespace kvrm {

struct ExhaustiveReport {
  std::uint64_t num_states = 0;
  std::uint64_t num_programs = 0;  // that were run: every operation in every state but the last
  std::uint32_t num_ops = 0;       // of the longest
  bool complete = false;           // no new state was left at the end
  std::string failure = {};        // empty: none; else what was said, the program first
};

// Programs of up to `max_ops` operations, in one view. Views without windows differ in what rows
// show only; kExtents, kStagedWindows and kMapped have state of their own.
ExhaustiveReport Explore(std::uint32_t max_ops, KvView view);

}  // namespace kvrm
