// SPDX-License-Identifier: Apache-2.0
// SimDevice: a Device that takes every liberty its contract gives.
//
// A copy is cut into pieces and each lands by itself, in any order: some when ticked, all by Wait,
// some twice while they are not known to have landed. Landed lies late. A mapping takes effect
// at once, as mmap does, whoever reads; the system may refuse it.
//
// Windows of a mapped pool are addresses only: SimExecutor asks which bytes of the pool they show.
// Threading: one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/rng.h"
#include "device/device.h"

namespace kvrm {

struct SimDeviceOptions {
  std::uint32_t twice_percent = 0;   // pieces that land a second time
  std::uint32_t late_percent = 0;    // of the calls of Landed that hide the truth
  std::uint32_t refuse_percent = 0;  // of the calls of Map
  std::size_t piece_bytes = 256;     // a copy lands in pieces of so many bytes
  std::size_t elastic_unit = 0;
};

class SimDevice final : public Device {
 public:
  explicit SimDevice(const SimDeviceOptions& options)
      : options_(options), unit_bytes_(options.elastic_unit) {}

  // Where the next decisions come from. Outlives its use.
  void Use(Rng* rng) { rng_ = rng; }
  // From now on nothing fails and nothing is late; copies still land in any order.
  void EndFaults() { options_ = {.piece_bytes = options_.piece_bytes}; }
  // One piece lands, if any is on its way.
  void Tick();

  std::span<std::byte> Reserve(std::size_t bytes, const char* owner) override;
  PoolMemory ReservePool(std::size_t pool_bytes, std::size_t window_bytes, bool mapped,
                         std::size_t map_unit) override;
  std::size_t elastic_unit() const noexcept override { return unit_bytes_; }
  // What was in the memory is lost at once.
  void GiveBack(std::span<std::byte> units) noexcept override;
  FlightId Submit(std::span<const CopyOp> copies) noexcept override;
  bool Landed(FlightId flight) noexcept override;
  void Wait(FlightId flight) noexcept override;
  bool has_deadlines() const noexcept override { return true; }
  void WaitLayer(std::uint32_t layer) noexcept override;
  bool Map(std::size_t window_offset, std::size_t pool_offset, std::size_t bytes) noexcept override;

  bool is_mapped() const { return map_unit_ != 0; }
  std::size_t num_window_units() const { return shown_.size(); }
  // Which unit of the pool the window's unit shows; none: nothing yet, or undefined.
  std::optional<std::size_t> Shown(std::size_t window_unit) const { return shown_[window_unit]; }
  std::uint64_t num_pieces() const { return num_pieces_; }
  std::uint64_t num_flights() const { return num_flights_; }
  // Whether the first `num_flights` of them have landed, of the last what has up to this deadline;
  // told or not.
  bool FirstLanded(std::uint64_t num_flights, std::uint32_t deadline) const;

 private:
  struct Piece {
    FlightId flight{};
    CopyOp copy;
  };
  bool AllLanded(FlightId flight) const;
  void Land(std::size_t which);

  SimDeviceOptions options_;
  const std::size_t unit_bytes_;
  Rng* rng_ = nullptr;
  std::vector<std::vector<std::uint64_t>> memory_;
  std::vector<Piece> waiting_;
  std::vector<Piece> landed_;  // which nobody has seen land
  std::size_t map_unit_ = 0;   // 0: not mapped
  std::vector<std::optional<std::size_t>> shown_;
  std::uint64_t num_flights_ = 0;
  std::uint64_t num_pieces_ = 0;
};

}  // namespace kvrm
