// SPDX-License-Identifier: Apache-2.0
// PinnedThreads: while one lives, each thread that the process had when it was made stays on a
// processor of its own.
//
// On a busy machine the scheduler may leave two workers on one processor for seconds, and nothing
// measured then says what two can do. With more threads than processors none is pinned.
//
// Threading: the thread that makes it ends it; threads started meanwhile inherit their starter's
// one processor.
#pragma once

#include <sched.h>

#include <cstdint>
#include <vector>

namespace kvrm {

class PinnedThreads {
 public:
  PinnedThreads();
  ~PinnedThreads();
  PinnedThreads(const PinnedThreads&) = delete;
  PinnedThreads& operator=(const PinnedThreads&) = delete;

  std::uint32_t num_pinned() const { return static_cast<std::uint32_t>(threads_.size()); }

 private:
  cpu_set_t allowed_ = {};  // the calling thread's, given back to all at the end
  std::vector<pid_t> threads_;
};

}  // namespace kvrm
