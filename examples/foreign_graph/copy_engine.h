// SPDX-License-Identifier: Apache-2.0
// CopyEngine: the example's own device, as an accelerator would bring one. Memory that every part
// of the program sees, one thread that copies beside it, and windows that show blocks of the pool.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "device/device.h"

namespace foreign {

class CopyEngine final : public kvrm::Device {
 public:
  CopyEngine();
  ~CopyEngine() override;
  CopyEngine(const CopyEngine&) = delete;
  CopyEngine& operator=(const CopyEngine&) = delete;

  std::span<std::byte> Reserve(std::size_t bytes, const char* owner) override;
  // Mapped windows show block 0, the sentinel, until Map shows something else there: a program that
  // reads its windows whole must be able to.
  kvrm::PoolMemory ReservePool(std::size_t pool_bytes, std::size_t window_bytes, bool mapped,
                               std::size_t map_unit) override;
  kvrm::FlightId Submit(std::span<const kvrm::CopyOp> copies) noexcept override;
  bool Landed(kvrm::FlightId flight) noexcept override;
  void Wait(kvrm::FlightId flight) noexcept override;
  bool Map(std::size_t window_offset, std::size_t pool_offset, std::size_t bytes) noexcept override;

 private:
  void Work();

  std::vector<std::span<std::byte>> mappings_;
  std::byte* windows_ = nullptr;
  int pool_file_ = -1;

  std::mutex mutex_;  // of everything below
  std::condition_variable changed_;
  std::vector<kvrm::CopyOp> queue_;
  std::uint64_t submitted_ = 0;  // the last flight in the queue
  std::uint64_t landed_ = 0;     // the last flight that has landed
  bool ends_ = false;
  std::vector<kvrm::CopyOp> working_;  // of the thread alone
  std::thread thread_;                 // last: it starts when all else is there
};

}  // namespace foreign
