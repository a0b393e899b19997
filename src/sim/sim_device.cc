// SPDX-License-Identifier: Apache-2.0
#include "sim/sim_device.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace kvrm {

std::span<std::byte> SimDevice::Reserve(std::size_t bytes, const char*) {
  memory_.emplace_back((bytes + sizeof(std::uint64_t) - 1) / sizeof(std::uint64_t));
  return std::as_writable_bytes(std::span(memory_.back())).first(bytes);
}

PoolMemory SimDevice::ReservePool(std::size_t pool_bytes, std::size_t window_bytes, bool mapped,
                                  std::size_t map_unit) {
  const std::span<std::byte> memory = Reserve(pool_bytes + window_bytes, "kv pool");
  if (mapped) {
    map_unit_ = map_unit;
    shown_.assign(window_bytes / map_unit, std::nullopt);
  }
  return {memory.first(pool_bytes), memory.subspan(pool_bytes)};
}

void SimDevice::GiveBack(std::span<std::byte> units) noexcept {
  std::memset(units.data(), 0xa7, units.size());
}

FlightId SimDevice::Submit(std::span<const CopyOp> copies) noexcept {
  const FlightId flight{++num_flights_};
  for (const CopyOp& copy : copies) {
    CHECK(copy.num_pieces > 0 && copy.bytes > 0);
    for (std::size_t i = 0; i < copy.num_pieces; ++i) {
      for (std::size_t done = 0; done < copy.bytes; done += options_.piece_bytes) {
        waiting_.push_back({flight,
                            {.source = copy.source + i * copy.source_stride + done,
                             .target = copy.target + i * copy.target_stride + done,
                             .bytes = std::min(options_.piece_bytes, copy.bytes - done),
                             .before_layer = copy.before_layer}});
      }
    }
  }
  return flight;
}

bool SimDevice::AllLanded(FlightId flight) const {
  return std::ranges::none_of(waiting_,
                              [flight](const Piece& piece) { return piece.flight == flight; });
}

bool SimDevice::FirstLanded(std::uint64_t num_flights, std::uint32_t deadline) const {
  return std::ranges::none_of(waiting_, [&](const Piece& piece) {
    const auto flight = static_cast<std::uint64_t>(piece.flight);
    return flight < num_flights || (flight == num_flights && piece.copy.before_layer <= deadline);
  });
}

bool SimDevice::Landed(FlightId flight) noexcept {
  if (!AllLanded(flight) || rng_->Below(100) < options_.late_percent) return false;
  std::erase_if(landed_, [flight](const Piece& piece) { return piece.flight == flight; });
  return true;
}

void SimDevice::Wait(FlightId flight) noexcept {
  while (!AllLanded(flight))
    Tick();
  std::erase_if(landed_, [flight](const Piece& piece) { return piece.flight == flight; });
}

void SimDevice::WaitLayer(std::uint32_t layer) noexcept {
  const auto needed = [layer](const Piece& piece) { return piece.copy.before_layer <= layer; };
  while (std::ranges::any_of(waiting_, needed))
    Tick();
  std::erase_if(landed_, needed);
}

void SimDevice::Land(std::size_t which) {
  const Piece piece = waiting_[which];
  waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(which));
  std::memcpy(piece.copy.target, piece.copy.source, piece.copy.bytes);
  ++num_pieces_;
  landed_.push_back(piece);
}

void SimDevice::Tick() {
  if (!waiting_.empty()) Land(rng_->Below(waiting_.size()));
  if (!landed_.empty() && rng_->Below(100) < options_.twice_percent) {
    const CopyOp& copy = landed_[rng_->Below(landed_.size())].copy;
    std::memcpy(copy.target, copy.source, copy.bytes);
  }
}

bool SimDevice::Map(std::size_t window_offset, std::size_t pool_offset,
                    std::size_t bytes) noexcept {
  CHECK(is_mapped() && window_offset % map_unit_ == 0 && pool_offset % map_unit_ == 0);
  const bool refused = rng_->Below(100) < options_.refuse_percent;
  for (std::size_t i = 0; i < bytes / map_unit_; ++i) {
    shown_[window_offset / map_unit_ + i] =
        refused ? std::nullopt : std::optional(pool_offset / map_unit_ + i);
  }
  return !refused;
}

}  // namespace kvrm
