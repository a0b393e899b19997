// SPDX-License-Identifier: Apache-2.0
// StepReplay: an executor without arithmetic. It runs a descriptor log over stamps
// (step_content.h): copies copy them, mappings show them, rows read them and write new ones that
// depend on all they have read. It believes every descriptor; StepVerifier is the one that doubts.
//
// What a sequence has read in the end is one number, its digest. It does not depend on where blocks
// lay, how histories were shown, how prompts were cut into chunks or what ran beside them: two logs
// of the same requests give the same digests, whatever view, placement or batch made them, and a
// block that was misplaced, lost or mixed up gives another.
//
// Threading: one thread. Memory: RequiredBytes at construction, and one entry for each request.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "base/result.h"
#include "step/step_content.h"
#include "step/step_log.h"

namespace kvrm {

struct SequenceDigest {
  std::uint32_t num_tokens = 0;  // whose K and V were written, or found in the prefix cache
  std::uint64_t digest = 0;
  friend bool operator==(const SequenceDigest&, const SequenceDigest&) = default;
};

class StepReplay {
 public:
  static std::uint64_t RequiredBytes(const StepLogHeader& header);
  explicit StepReplay(const StepLogHeader& header);

  // Requires: a record that StepVerifier has accepted. False: a gap; what follows cannot be told.
  bool Consume(const StepLogRecord& record);

  // By request; sequences that nobody opened are numbered from 2^63 in the order of their rows.
  // Of a request that ran again, after a preemption, that of its last row.
  const std::map<std::uint64_t, SequenceDigest>& digests() const { return digests_; }
  // Of all of them.
  std::uint64_t total() const;

 private:
  struct Life {
    bool open = false;
    std::uint64_t request = 0;
    std::uint64_t salt = 0;
    std::uint32_t length = 0;
  };
  void RunRow(const StepView& view, std::uint32_t row);
  void Note(std::uint64_t request, const SequenceDigest& digest);

  const StepLogHeader header_;
  StepContent content_;
  std::vector<Life> lives_;  // [num_lanes], and behind them the parked ones
  std::map<std::uint64_t, SequenceDigest> digests_;
  std::uint64_t num_unopened_ = 0;
};

}  // namespace kvrm
