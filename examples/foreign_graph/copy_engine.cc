// SPDX-License-Identifier: Apache-2.0
#include "copy_engine.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "base/result.h"

namespace foreign {
namespace {

// More copies than a step of this example has; beyond it the queue grows once.
constexpr std::size_t kQueueCopies = 256;

std::byte* MapOrThrow(void* where, std::size_t bytes, int flags, int file) {
  void* const memory = mmap(where, bytes, PROT_READ | PROT_WRITE, flags, file, 0);
  if (memory == MAP_FAILED)
    throw kvrm::StartError("no " + std::to_string(bytes) + " bytes: " + std::strerror(errno));
  return static_cast<std::byte*>(memory);
}

}  // namespace

CopyEngine::CopyEngine() {
  queue_.reserve(kQueueCopies);
  working_.reserve(kQueueCopies);
  thread_ = std::thread([this] { Work(); });
}

CopyEngine::~CopyEngine() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  changed_.notify_all();
  thread_.join();
  for (const std::span<std::byte> mapping : mappings_)
    munmap(mapping.data(), mapping.size());
  if (pool_file_ >= 0) close(pool_file_);
}

std::span<std::byte> CopyEngine::Reserve(std::size_t bytes, const char*) {
  mappings_.emplace_back(MapOrThrow(nullptr, bytes, MAP_PRIVATE | MAP_ANONYMOUS, -1), bytes);
  return mappings_.back();
}

kvrm::PoolMemory CopyEngine::ReservePool(std::size_t pool_bytes, std::size_t window_bytes,
                                         bool mapped, std::size_t map_unit) {
  if (!mapped) {
    const std::span<std::byte> memory = Reserve(pool_bytes + window_bytes, "kv pool");
    return {memory.first(pool_bytes), memory.subspan(pool_bytes)};
  }
  if (map_unit % static_cast<std::size_t>(sysconf(_SC_PAGESIZE)) != 0)
    throw kvrm::StartError("a block of " + std::to_string(map_unit) + " bytes is no whole page");
  pool_file_ = memfd_create("pool", MFD_CLOEXEC);
  if (pool_file_ < 0 || ftruncate(pool_file_, static_cast<off_t>(pool_bytes)) != 0)
    throw kvrm::StartError("no memory file of " + std::to_string(pool_bytes) + " bytes");
  const std::span<std::byte> all = Reserve(pool_bytes + window_bytes, "addresses");
  MapOrThrow(all.data(), pool_bytes, MAP_SHARED | MAP_FIXED, pool_file_);
  windows_ = all.data() + pool_bytes;
  for (std::size_t offset = 0; offset < window_bytes; offset += map_unit)
    MapOrThrow(windows_ + offset, map_unit, MAP_SHARED | MAP_FIXED, pool_file_);
  return {all.first(pool_bytes), all.subspan(pool_bytes)};
}

kvrm::FlightId CopyEngine::Submit(std::span<const kvrm::CopyOp> copies) noexcept {
  std::uint64_t flight = 0;
  {
    const std::lock_guard lock(mutex_);
    queue_.insert(queue_.end(), copies.begin(), copies.end());
    flight = ++submitted_;
  }
  changed_.notify_all();
  return kvrm::FlightId{flight};
}

bool CopyEngine::Landed(kvrm::FlightId flight) noexcept {
  const std::lock_guard lock(mutex_);
  return landed_ >= static_cast<std::uint64_t>(flight);
}

void CopyEngine::Wait(kvrm::FlightId flight) noexcept {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return landed_ >= static_cast<std::uint64_t>(flight); });
}

bool CopyEngine::Map(std::size_t window_offset, std::size_t pool_offset,
                     std::size_t bytes) noexcept {
  return mmap(windows_ + window_offset, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
              pool_file_, static_cast<off_t>(pool_offset)) != MAP_FAILED;
}

// Copies are made without the lock: nobody else touches them until they have landed.
void CopyEngine::Work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return ends_ || landed_ < submitted_; });
    if (landed_ == submitted_) return;
    const std::uint64_t flight = submitted_;
    working_.swap(queue_);
    lock.unlock();
    // The last one first: KV-RM must not count on an order.
    for (std::size_t c = working_.size(); c > 0; --c) {
      const kvrm::CopyOp& copy = working_[c - 1];
      for (std::size_t i = 0; i < copy.num_pieces; ++i)
        std::memcpy(copy.target + i * copy.target_stride, copy.source + i * copy.source_stride,
                    copy.bytes);
    }
    working_.clear();
    lock.lock();
    landed_ = flight;
    changed_.notify_all();
  }
}

}  // namespace foreign
