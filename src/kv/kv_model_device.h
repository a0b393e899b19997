// SPDX-License-Identifier: Apache-2.0
// What stands behind the cache in KvModel: decisions, and a device that is as late as it may be.
// Tests only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/rng.h"
#include "device/device.h"

namespace kvrm {

// Decisions, from a seed or from a fuzzer's bytes.
class Choices {
 public:
  explicit Choices(std::uint64_t seed) : rng_(seed, "kv model") {}
  explicit Choices(std::span<const std::uint8_t> bytes) : rng_(0), bytes_(bytes), replay_(true) {}

  // Uniform in [0, bound) from a seed; one byte, or two for a large bound, from a fuzzer.
  std::uint32_t Below(std::uint32_t bound) {
    if (!replay_) return static_cast<std::uint32_t>(rng_.Below(bound));
    std::uint32_t value = TakeByte();
    if (bound > 256) value = value << 8 | TakeByte();
    return value % bound;
  }
  bool Chance(std::uint32_t percent) { return Below(100) < percent; }
  bool exhausted() const { return replay_ && bytes_.empty(); }

 private:
  std::uint8_t TakeByte() {
    if (bytes_.empty()) return 0;
    const std::uint8_t byte = bytes_.front();
    bytes_ = bytes_.subspan(1);
    return byte;
  }
  Rng rng_;
  std::span<const std::uint8_t> bytes_;
  bool replay_ = false;
};

// Copies land one by one when ticked, in any order, and all by Wait. Mappings are a table: what
// lies at a window's address is found through At.
class LaggingDevice final : public Device {
 public:
  explicit LaggingDevice(Choices& choices) : choices_(choices) {}

  std::span<std::byte> Reserve(std::size_t bytes, const char*) override {
    auto& memory =
        memories_.emplace_back((bytes + sizeof(std::uint64_t) - 1) / sizeof(std::uint64_t));
    return std::as_writable_bytes(std::span(memory)).first(bytes);
  }
  PoolMemory ReservePool(std::size_t pool_bytes, std::size_t window_bytes, bool mapped,
                         std::size_t map_unit) override {
    const std::span<std::byte> memory = Reserve(pool_bytes + window_bytes, "kv pool");
    pool_bytes_ = pool_bytes;
    if (mapped) {
      unit_ = map_unit;
      shown_.assign(window_bytes / map_unit, 0);
    }
    return {memory.first(pool_bytes), memory.subspan(pool_bytes)};
  }
  bool Map(std::size_t window_offset, std::size_t pool_offset,
           std::size_t bytes) noexcept override {
    CHECK(window_offset % unit_ == 0 && pool_offset % unit_ == 0 && bytes % unit_ == 0);
    CHECK(pool_offset + bytes <= pool_bytes_ && pool_offset > 0);
    // The system refuses now and then; not for ever, when a fuzzer has no more bytes to decide by.
    if (choices_.Below(64) == 63) return false;
    for (std::size_t at = 0; at < bytes; at += unit_)
      shown_[(window_offset + at) / unit_] = pool_offset + at;
    return true;
  }
  // Where in ReservePool's memory the bytes at `offset` of it really lie.
  std::size_t At(std::size_t offset) const {
    if (shown_.empty() || offset < pool_bytes_) return offset;
    const std::size_t shown = shown_[(offset - pool_bytes_) / unit_];
    CHECK(shown != 0);  // Nothing was ever mapped there.
    return shown + (offset - pool_bytes_) % unit_;
  }

  FlightId Submit(std::span<const CopyOp> copies) noexcept override {
    ++num_flights_;
    for (const CopyOp& copy : copies)
      waiting_.push_back({FlightId{num_flights_}, copy});
    return FlightId{num_flights_};
  }
  bool Landed(FlightId flight) noexcept override {
    return std::none_of(waiting_.begin(), waiting_.end(),
                        [flight](const auto& entry) { return entry.first == flight; });
  }
  void Wait(FlightId flight) noexcept override {
    while (!Landed(flight))
      Tick();
  }
  bool idle() const { return waiting_.empty(); }
  void Tick() {
    if (waiting_.empty()) return;
    const std::size_t which = choices_.Below(static_cast<std::uint32_t>(waiting_.size()));
    const CopyOp copy = waiting_[which].second;
    waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(which));
    std::memcpy(copy.target, copy.source, copy.bytes);
  }

 private:
  Choices& choices_;
  std::vector<std::vector<std::uint64_t>> memories_;
  std::size_t pool_bytes_ = 0;
  std::size_t unit_ = 1;
  std::vector<std::size_t> shown_;  // offset in the pool, of each unit of the windows; 0: nothing
  std::vector<std::pair<FlightId, CopyOp>> waiting_;
  std::uint64_t num_flights_ = 0;
};

}  // namespace kvrm
