// SPDX-License-Identifier: Apache-2.0
// HostDevice: memory of this machine, copied by memcpy.
//
// Reserve maps anonymous memory, zeroed by the kernel, on huge pages where the kernel grants them,
// and keeps a ledger of who asked for how many bytes.
//
// The pool begins on a huge page, and its memory comes and goes by huge pages.
//
// Submit makes the copies before it returns, in order. The contract of Device lets a caller count
// on less (copies land later, in any order), and the caller's budget per step bounds what Submit
// can cost: about 0.1 ms a MiB. What lands is visible to threads that are started or released
// afterwards by the caller.
//
// With a copy thread Submit makes those of deadline 0, which the step waits for anyhow, and leaves
// the others to it. One flight is on its way at a time: the next Submit waits for it.
//
// A mapped pool lies in a memory file that is mapped twice: all of it at the front of one range of
// addresses, and parts of it, by Map, behind. Windows are read-only and take no memory of their
// own; reading one that nothing was mapped to ends the process. The kernel limits the number of
// mappings of a process, and a window may need one for each of its units, so that a pool with more
// windows than fit below the limit is refused at start.
//
// Threading: as Device. Memory: Reserve and ReservePool allocate, nothing else does. Map makes one
// or two system calls, which wait for other threads that map memory; Submit one, to wake the copy
// thread, when there is something for it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "device/device.h"

namespace kvrm {

// One line of the ledger.
struct Reservation {
  std::string owner;
  std::size_t bytes = 0;  // as asked for; the mapping itself is rounded up to whole OS pages
};

struct HostDeviceOptions {
  // Touch every page at once, so that no step ever pays for a page fault. Costs about 0.2 s a GiB
  // at start-up and makes the reservation count as used memory from the start.
  bool prefault = false;
  // Mappings the process may have in all. 0: what the kernel says (vm.max_map_count).
  std::uint64_t max_mappings = 0;
  // Copies with a deadline after layer 0 are made by a thread of their own.
  bool copy_thread = false;
};

class HostDevice final : public Device {
 public:
  // Throws StartError when there is no thread.
  explicit HostDevice(const HostDeviceOptions& options = {});
  ~HostDevice() override;
  HostDevice(const HostDevice&) = delete;
  HostDevice& operator=(const HostDevice&) = delete;

  std::span<std::byte> Reserve(std::size_t bytes, const char* owner) override;
  PoolMemory ReservePool(std::size_t pool_bytes, std::size_t window_bytes, bool mapped,
                         std::size_t map_unit) override;
  bool Map(std::size_t window_offset, std::size_t pool_offset, std::size_t bytes) noexcept override;
  std::size_t elastic_unit() const noexcept override {
    return options_.prefault || pool_file_ >= 0 ? 0 : kHugePageBytes;
  }
  void Populate(std::span<std::byte> units) noexcept override;
  void GiveBack(std::span<std::byte> units) noexcept override;
  FlightId Submit(std::span<const CopyOp> copies) noexcept override;
  bool Landed(FlightId flight) noexcept override;
  void Wait(FlightId flight) noexcept override;
  bool has_deadlines() const noexcept override { return options_.copy_thread; }
  void WaitLayer(std::uint32_t layer) noexcept override;

  const std::vector<Reservation>& reservations() const noexcept { return reservations_; }
  std::uint64_t reserved_bytes() const noexcept;

 private:
  // Where the kernel grants any; elsewhere they are units like others.
  static constexpr std::size_t kHugePageBytes = std::size_t{2} << 20;
  static constexpr std::uint32_t kAllLanded = ~std::uint32_t{0};

  void CopyLoop() noexcept;
  PoolMemory ReserveMappedPool(std::size_t pool_bytes, std::size_t window_bytes,
                               std::size_t map_unit);
  void CheckMappings(std::uint64_t num_units) const;
  std::span<std::byte> ReserveAligned(std::size_t bytes, std::size_t alignment, const char* owner);
  std::span<std::byte> Adopt(void* memory, std::size_t mapped_bytes);
  void Prepare(std::span<std::byte> memory) const noexcept;

  HostDeviceOptions options_;
  std::vector<Reservation> reservations_;
  std::vector<std::span<std::byte>> mappings_;
  std::uint64_t num_flights_ = 0;
  int pool_file_ = -1;  // of the mapped pool
  PoolMemory mapped_pool_;
  std::size_t map_unit_ = 0;

  // Of the copy thread. What stands above the counters is written before they are.
  std::span<const CopyOp> pending_;
  bool quit_ = false;
  alignas(64) std::atomic<std::uint32_t> num_posted_{0};
  // Copies with a before_layer below this have landed. Written by the copy thread, group by group,
  // and by Submit between flights.
  alignas(64) std::atomic<std::uint32_t> landed_before_{kAllLanded};
  std::thread copy_thread_;  // last: it starts when all else is there
};

}  // namespace kvrm
