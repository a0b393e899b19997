// SPDX-License-Identifier: Apache-2.0
// SimClock: time that passes only when told to. Threading: one thread.
#pragma once

#include <cstdint>

#include "base/clock.h"

namespace kvrm {

class SimClock final : public Clock {
 public:
  std::int64_t NowNs() const noexcept override { return now_ns_; }
  std::int64_t UnixSeconds() const noexcept override { return now_ns_ / 1'000'000'000; }
  void Advance(std::int64_t ns) noexcept { now_ns_ += ns; }

 private:
  std::int64_t now_ns_ = 0;
};

}  // namespace kvrm
