// SPDX-License-Identifier: Apache-2.0
// Device: memory to put blocks in, and copies between its parts. The simulator has a twin.
//
// Contract common to all: addresses are aligned to 64 bytes at least; Submit never blocks on the
// copies themselves; copies of one Submit may land in any order and must not overlap; a flight is
// done once all of its copies are visible to the executor.
// Threading: engine thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace kvrm {

struct CopyOp {
  const std::byte* source = nullptr;
  std::byte* target = nullptr;
  std::size_t bytes = 0;
};

enum class FlightId : std::uint64_t {};

class Device {
 public:
  virtual ~Device() = default;
  // Reserves zeroed memory for the life of the device. Start-up only; throws StartError with the
  // number of bytes when it cannot.
  virtual std::span<std::byte> Reserve(std::size_t bytes, const char* owner) = 0;
  // Starts the copies. Flights are numbered upwards.
  virtual FlightId Submit(std::span<const CopyOp> copies) noexcept = 0;
  // Whether every copy of the flight has landed.
  virtual bool Landed(FlightId flight) noexcept = 0;
  // Blocks until it has.
  virtual void Wait(FlightId flight) noexcept = 0;
};

}  // namespace kvrm
