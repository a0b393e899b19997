// SPDX-License-Identifier: Apache-2.0
#include "replay/record_summary.h"

#include <algorithm>

#include "base/check.h"
#include "replay/record.h"

namespace kvrm {
namespace {

void AddSample(std::uint64_t bytes, double since_last_ns, MemorySum* sum) {
  sum->byte_ns += since_last_ns * static_cast<double>(sum->last);
  sum->max = std::max(sum->max, bytes);
  sum->last = bytes;
}

}  // namespace

void RecordSummary::Add(const StepRecord& step) {
  step_ns.Add(static_cast<std::uint64_t>(step.ns));
  CHECK(step.replica < replicas.size());
  ReplicaSummary& replica = replicas[step.replica];
  const std::int64_t end_ns = step.at_ns + step.ns;
  if (replica.num_steps++ == 0) replica.first_end_ns = replica.last_end_ns = end_ns;
  const double since_last_ns = static_cast<double>(end_ns - replica.last_end_ns);
  replica.last_end_ns = end_ns;
  AddSample(step.reserved_bytes, since_last_ns, &replica.reserved);
  AddSample(step.mapped_bytes, since_last_ns, &replica.mapped);
  AddSample(step.live_bytes, since_last_ns, &replica.live);
  replica.num_rows += step.num_rows;
  replica.num_tokens += step.num_tokens;
  replica.moved_bytes += step.moved_bytes;
  replica.num_groups += step.num_groups;
  replica.max_moved_bytes = std::max(replica.max_moved_bytes, step.moved_bytes);
}

}  // namespace kvrm
