// SPDX-License-Identifier: Apache-2.0
// RecordSummary: what a summarised record has in place of every token's and every step's time.
//
// Of outputs a histogram of the gaps, of steps one of their times, and for every replica the sums
// of its steps. So a record of a million requests has lines of requests only.
//
// Threading: one thread. Memory: two histograms and some numbers a replica.
#pragma once

#include <cstdint>
#include <vector>

#include "replay/log_histogram.h"

namespace kvrm {

struct StepRecord;

// Of KV bytes, of one replica: as of the end of each of its steps.
struct MemorySum {
  double byte_ns = 0.0;  // from the end of each step to that of the next one
  std::uint64_t max = 0;
  std::uint64_t last = 0;
};

// The steps of one replica.
struct ReplicaSummary {
  std::uint64_t num_steps = 0;
  std::uint64_t num_rows = 0;
  std::uint64_t num_tokens = 0;
  std::uint64_t moved_bytes = 0;
  std::uint64_t num_groups = 0;
  std::uint64_t max_moved_bytes = 0;  // of one step
  std::int64_t first_end_ns = 0;      // of its first step
  std::int64_t last_end_ns = 0;
  MemorySum reserved;
  MemorySum mapped;
  MemorySum live;
};

struct RecordSummary {
  // Gaps between outputs that follow one another, of requests that are no warm-up; those of
  // requests that failed after their first output as well.
  LogHistogram itl_ns = {};
  LogHistogram step_ns = {};
  std::vector<ReplicaSummary> replicas = {};

  // Requires: step.replica < replicas.size().
  void Add(const StepRecord& step);
};

}  // namespace kvrm
