// SPDX-License-Identifier: Apache-2.0
// Who has which blocks of the pool, as runs. For pictures. Threading: plain data.
#pragma once

#include <cstdint>

namespace kvrm {

// What nobody has but the prefix cache. Ids of requests begin at 1.
inline constexpr std::uint64_t kCacheOwner = 0;

struct BlockMapRun {
  std::uint32_t start = 0;  // a block of the pool
  std::uint32_t num_blocks = 0;
  std::uint64_t owner = kCacheOwner;  // the id of a request, or the above
  friend bool operator==(const BlockMapRun&, const BlockMapRun&) = default;
};

}  // namespace kvrm
