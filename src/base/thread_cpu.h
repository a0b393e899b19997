// SPDX-License-Identifier: Apache-2.0
// ThreadCpuNs: the processor time this thread has used. For saying whether work was long or only
// its wait for a processor; never for deadlines.
#pragma once

#include <time.h>

#include <cstdint>

namespace kvrm {

inline std::int64_t ThreadCpuNs() noexcept {
  timespec used{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
  return std::int64_t{used.tv_sec} * 1'000'000'000 + used.tv_nsec;
}

}  // namespace kvrm
