// SPDX-License-Identifier: Apache-2.0
// Executor: replays a small family of fixed graphs over committed steps. The simulator has a twin.
//
// After construction nothing is captured, compiled or allocated: every step runs one of the
// buckets, with the addresses and partitions fixed at start. What varies is in the descriptor.
//
// Threading: engine thread only; the executor has workers of its own. One step is in flight at a
// time: Run, then Wait before the next Run.
#pragma once

#include <cstdint>
#include <span>

#include "exec/logit_stats.h"
#include "step/ids.h"
#include "step/step.h"

namespace kvrm {

// One fixed graph: a step fits when it has at most this many rows and tokens.
struct Bucket {
  std::uint32_t max_rows = 0;
  std::uint32_t max_tokens = 0;
};
inline constexpr std::uint32_t kMaxBuckets = 8;

class Executor {
 public:
  virtual ~Executor() = default;
  // Ascending; the last fits every step within the limits given at construction.
  virtual std::span<const Bucket> buckets() const noexcept = 0;
  // Whether layer l of the cache is touched only after Device::WaitLayer(l), so that a step may run
  // while copies with later deadlines are on their way. Constant.
  virtual bool waits_for_layers() const noexcept { return false; }
  // Starts a latched step; `step` stays valid and unchanged until Wait has returned. Its copies
  // have landed: all of them, or with waits_for_layers those that layer 0 needs.
  virtual void Run(const StepView& step) noexcept = 0;
  // Returns when the step has run; the calling thread takes part in the work.
  virtual void Wait() noexcept = 0;
  // Logits of the last step's sample `i`, [vocab], valid until the next Run.
  virtual std::span<const float> Logits(std::uint32_t sample) const noexcept = 0;
  // Of the same logits, as long. Depends on them alone, as they do on their own row.
  virtual LogitStats Stats(std::uint32_t sample) const noexcept = 0;
  // Hidden state of the same, behind the last norm, [hidden_dim], as long. Empty: this executor has
  // none.
  virtual std::span<const float> Hidden(std::uint32_t) const noexcept { return {}; }
  // How often each bucket ran. Captures after start are always zero on this executor family.
  virtual std::span<const std::uint64_t> replays() const noexcept = 0;
};

}  // namespace kvrm
