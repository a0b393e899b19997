// SPDX-License-Identifier: Apache-2.0
// Clock: the only way to ask the time. The simulator replaces it.
#pragma once

#include <chrono>
#include <cstdint>

namespace kvrm {

class Clock {
 public:
  virtual ~Clock() = default;
  // Nanoseconds on a clock that never goes backwards; the origin has no meaning.
  virtual std::int64_t NowNs() const noexcept = 0;
  // Seconds since 1970-01-01 UTC, for what is shown to people and clients only.
  virtual std::int64_t UnixSeconds() const noexcept = 0;
};

class SystemClock final : public Clock {
 public:
  std::int64_t NowNs() const noexcept override {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
  std::int64_t UnixSeconds() const noexcept override {
    return std::chrono::duration_cast<std::chrono::seconds>(
               std::chrono::system_clock::now().time_since_epoch())
        .count();
  }
};

}  // namespace kvrm
