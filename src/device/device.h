// SPDX-License-Identifier: Apache-2.0
// Device: memory to put blocks in, and copies between its parts. The simulator has a twin.
//
// Contract common to all: addresses are aligned to 64 bytes at least; Submit never blocks on the
// copies themselves; copies of one Submit may land in any order and must not overlap; a flight is
// done once all of its copies are visible to the executor.
//
// A device with deadlines makes copies beside the executor, those for the first layers first, and
// tells how far it is: the step runs its first layers while the caches of the later ones arrive.
//
// These few verbs are what an accelerator must offer beneath KvCache: memory, "copy a list of
// groups", and, for the mapped view only, "show these bytes there as well".
// Threading: engine thread only, but for WaitLayer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/check.h"

namespace kvrm {

// One contiguous copy (num_pieces 1), or one strided 2-D copy of `num_pieces` pieces of `bytes`.
struct CopyOp {
  const std::byte* source = nullptr;
  std::byte* target = nullptr;
  std::size_t bytes = 0;  // of one piece
  std::uint32_t num_pieces = 1;
  std::uint32_t before_layer = 0;  // the deadline: TransferGroup::before_layer
  std::size_t source_stride = 0;   // bytes from piece to piece
  std::size_t target_stride = 0;
};

enum class FlightId : std::uint64_t {};

// Memory of the pool, and behind it, in one range of addresses, the windows that views show.
struct PoolMemory {
  std::span<std::byte> pool;
  std::span<std::byte> windows;  // begins where `pool` ends; empty when none was asked for
};

class Device {
 public:
  virtual ~Device() = default;
  // Reserves zeroed memory for the life of the device. Start-up only; throws StartError with the
  // number of bytes when it cannot.
  virtual std::span<std::byte> Reserve(std::size_t bytes, const char* owner) = 0;
  // The same in memory of the host, for the host tier: what it takes grows as it is used, and
  // Submit copies between it and the pool. A device with memory of its own gives memory that it can
  // read.
  virtual std::span<std::byte> ReserveHost(std::size_t bytes, const char* owner) {
    return Reserve(bytes, owner);
  }
  // The pool's memory. Windows are memory of their own, or with `mapped` addresses only, to which
  // Map gives parts of the pool. Start-up only; throws StartError as above, also when `mapped` is
  // asked of a device without virtual memory, or `map_unit` bytes are no whole number of OS pages.
  virtual PoolMemory ReservePool(std::size_t pool_bytes, std::size_t window_bytes, bool mapped,
                                 std::size_t map_unit) = 0;
  // The pool's memory may come and go in units of so many bytes from its beginning on. 0: it is
  // there for good, and the two below are not called. Constant.
  virtual std::size_t elastic_unit() const noexcept { return 0; }
  // The units have memory when this returns, as far as the system has any, so that no step waits
  // for it. What is in it is undefined.
  virtual void Populate(std::span<std::byte> /*units*/) noexcept {}
  // Nobody reads what is in the units any more; they may be used again as they are.
  virtual void GiveBack(std::span<std::byte> /*units*/) noexcept {}
  // Starts the copies. Flights are numbered upwards. `copies` stays as it is until they have
  // landed. Requires of a device with deadlines: in order of before_layer.
  virtual FlightId Submit(std::span<const CopyOp> copies) noexcept = 0;
  // Whether every copy of the flight has landed.
  virtual bool Landed(FlightId flight) noexcept = 0;
  // Blocks until it has.
  virtual void Wait(FlightId flight) noexcept = 0;
  // Whether WaitLayer is offered, so that it pays to give copies deadlines. Constant.
  virtual bool has_deadlines() const noexcept { return false; }
  // Returns when every copy submitted so far whose before_layer is at most `layer` is visible to
  // the calling thread. Any thread, not during Submit; neither allocates nor locks, and when all
  // have landed it is one load. Without has_deadlines nobody gives copies any, and all have landed
  // before the step.
  virtual void WaitLayer(std::uint32_t /*layer*/) noexcept {}
  // Shows [pool_offset, + bytes) of the pool at [window_offset, + bytes) of the windows, whatever
  // was shown there. False, and what is shown there undefined, when the system refuses.
  // Requires: ReservePool with `mapped`, all three multiples of map_unit.
  virtual bool Map(std::size_t window_offset, std::size_t pool_offset,
                   std::size_t bytes) noexcept = 0;
};

}  // namespace kvrm
