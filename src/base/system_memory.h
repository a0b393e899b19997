// SPDX-License-Identifier: Apache-2.0
// What this machine has of memory and caches, for those who size something by it.
#pragma once

#include <cstdint>

namespace kvrm {

// Bytes that can be had without taking them from others (MemAvailable); where the system does not
// say, 2^64 - 1.
std::uint64_t AvailableMemoryBytes();
// Bytes of the last-level cache; where the system does not say, 32 MiB.
std::uint64_t LastLevelCacheBytes();

}  // namespace kvrm
