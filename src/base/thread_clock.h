// SPDX-License-Identifier: Apache-2.0
// ThreadClock: the processor time of the thread that asks. For benchmarks on a machine that others
// use as well: what they take does not count, and so does nothing that another thread does.
#pragma once

#include <time.h>

#include <cstdint>

#include "base/clock.h"

namespace kvrm {

class ThreadClock final : public Clock {
 public:
  std::int64_t NowNs() const noexcept override {
    timespec time = {};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
  }
  std::int64_t UnixSeconds() const noexcept override { return NowNs() / 1'000'000'000; }
};

}  // namespace kvrm
