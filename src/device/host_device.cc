// SPDX-License-Identifier: Apache-2.0
#include "device/host_device.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <optional>

#include "base/check.h"
#include "base/checked_math.h"
#include "base/result.h"

namespace kvrm {

HostDevice::HostDevice(const HostDeviceOptions& options) : options_(options) {}

HostDevice::~HostDevice() {
  for (const std::span<std::byte> mapping : mappings_)
    CHECK(munmap(mapping.data(), mapping.size()) == 0);
}

std::span<std::byte> HostDevice::Reserve(std::size_t bytes, const char* owner) {
  CHECK(bytes > 0);
  const auto os_page_bytes = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  const std::optional<std::uint64_t> mapped_bytes = CheckedAlignUp(bytes, os_page_bytes);
  void* memory = MAP_FAILED;
  int error = ENOMEM;
  if (mapped_bytes) {
    memory =
        mmap(nullptr, *mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    error = errno;
  }
  if (memory == MAP_FAILED) {
    throw StartError("cannot reserve " + std::to_string(bytes) + " bytes for " + owner + ": " +
                     std::strerror(error) + " (" + std::to_string(reserved_bytes()) +
                     " bytes are reserved already)");
  }
  const std::span<std::byte> mapping(static_cast<std::byte*>(memory), *mapped_bytes);
  mappings_.push_back(mapping);
  // A wish, not a need: without huge pages all is as right and a little slower.
  static_cast<void>(madvise(mapping.data(), mapping.size(), MADV_HUGEPAGE));
  if (options_.prefault) {
    for (std::size_t offset = 0; offset < mapping.size(); offset += os_page_bytes) {
      // A store that the compiler must keep: it is the store that makes the kernel give the page.
      *const_cast<volatile std::byte*>(&mapping[offset]) = std::byte{0};
    }
  }
  reservations_.push_back({.owner = owner, .bytes = bytes});
  return mapping.first(bytes);
}

PoolMemory HostDevice::ReservePool(std::size_t pool_bytes, std::size_t window_bytes, bool mapped,
                                   std::size_t) {
  CHECK(!mapped);
  const std::span<std::byte> memory = Reserve(pool_bytes + window_bytes, "kv pool");
  return {memory.first(pool_bytes), memory.subspan(pool_bytes)};
}

bool HostDevice::Map(std::size_t, std::size_t, std::size_t) noexcept {
  return false;
}

FlightId HostDevice::Submit(std::span<const CopyOp> copies) noexcept {
  for (const CopyOp& copy : copies) {
    for (std::size_t i = 0; i < copy.num_pieces; ++i) {
      std::memcpy(copy.target + i * copy.target_stride, copy.source + i * copy.source_stride,
                  copy.bytes);
    }
  }
  return FlightId{++num_flights_};
}

bool HostDevice::Landed(FlightId flight) noexcept {
  CHECK(static_cast<std::uint64_t>(flight) <= num_flights_);
  return true;
}

void HostDevice::Wait(FlightId flight) noexcept {
  CHECK(Landed(flight));
}

std::uint64_t HostDevice::reserved_bytes() const noexcept {
  std::uint64_t sum = 0;
  for (const Reservation& reservation : reservations_)
    sum += reservation.bytes;
  return sum;
}

}  // namespace kvrm
