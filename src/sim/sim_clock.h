// SPDX-License-Identifier: Apache-2.0
// SimClock: time that passes only when told to. RestlessClock: it passes a little whenever somebody
// looks, so that nothing may depend on how long anything takes. Threading: one thread.
#pragma once

#include <cstdint>

#include "base/clock.h"
#include "base/rng.h"

namespace kvrm {

class SimClock final : public Clock {
 public:
  std::int64_t NowNs() const noexcept override { return now_ns_; }
  std::int64_t UnixSeconds() const noexcept override { return now_ns_ / 1'000'000'000; }
  void Advance(std::int64_t ns) noexcept { now_ns_ += ns; }

 private:
  std::int64_t now_ns_ = 0;
};

class RestlessClock final : public Clock {
 public:
  // `seed` 0: it stands still, as SimClock.
  explicit RestlessClock(std::uint64_t seed) : seed_(seed) {}
  std::int64_t NowNs() const noexcept override {
    if (seed_ != 0) now_ns_ += static_cast<std::int64_t>(Mix64(seed_ + ++num_looks_) % kMostNs);
    return now_ns_;
  }
  std::int64_t UnixSeconds() const noexcept override { return now_ns_ / 1'000'000'000; }
  void Advance(std::int64_t ns) noexcept { now_ns_ += ns; }

 private:
  static constexpr std::uint64_t kMostNs = 2'000'000;
  const std::uint64_t seed_;
  mutable std::uint64_t num_looks_ = 0;
  mutable std::int64_t now_ns_ = 0;
};

}  // namespace kvrm
