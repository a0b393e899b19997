// SPDX-License-Identifier: Apache-2.0
// What this thread has asked of operator new, for tests that bound or forbid allocation.
//
// Linked into a test binary, counted_new_for_test.cc replaces operator new and delete there.
#pragma once

#include <cstdint>

namespace kvrm {

// All of the calling thread alone; memory that another thread frees is counted as this thread's.
struct CountedNew {
  std::uint64_t num_allocations = 0;
  std::int64_t live_bytes = 0;  // usable bytes, as the allocator rounded them
  std::int64_t peak_bytes = 0;  // the most since it was last set
};
CountedNew& ThreadNew() noexcept;

}  // namespace kvrm
