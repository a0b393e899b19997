// SPDX-License-Identifier: Apache-2.0
// The processor time of the thread that asks, as a number and as a Clock. For benchmarks on a
// machine that others use as well, and for saying whether work was long or only its wait for a
// processor; never for deadlines.
#pragma once

#include <time.h>

#include <cstdint>

#include "base/clock.h"

namespace kvrm {

inline std::int64_t ThreadCpuNs() noexcept {
  timespec used = {};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
  return std::int64_t{used.tv_sec} * 1'000'000'000 + used.tv_nsec;
}

class ThreadCpuClock final : public Clock {
 public:
  std::int64_t NowNs() const noexcept override { return ThreadCpuNs(); }
  std::int64_t UnixSeconds() const noexcept override { return NowNs() / 1'000'000'000; }
};

}  // namespace kvrm
