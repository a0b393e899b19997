// SPDX-License-Identifier: Apache-2.0
// BrokenDevice: a device with one planted bug, and DenseDecoder on top of it. They show that the
// kit finds what it is there to find.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "dense_decoder.h"
#include "device/device.h"

namespace foreign {

class BrokenDevice final : public kvrm::Device {
 public:
  enum class Bug {
    kSkipCopy,   // every seventh copy is lost
    kShortCopy,  // a copy ends 256 bytes early
    kLateCopy,   // Wait returns before the last flight has landed
    kStaleMap,   // every third mapping is not made
    kLostPark,   // copies out of the memory of the host are not made
  };

  BrokenDevice(kvrm::Device& device, Bug bug) : device_(device), bug_(bug) {}

  std::span<std::byte> Reserve(std::size_t bytes, const char* owner) override {
    return device_.Reserve(bytes, owner);
  }
  std::span<std::byte> ReserveHost(std::size_t bytes, const char* owner) override {
    host_ = device_.ReserveHost(bytes, owner);
    return host_;
  }
  kvrm::PoolMemory ReservePool(std::size_t pool_bytes, std::size_t window_bytes, bool mapped,
                               std::size_t map_unit) override {
    return device_.ReservePool(pool_bytes, window_bytes, mapped, map_unit);
  }
  bool Map(std::size_t window_offset, std::size_t pool_offset,
           std::size_t bytes) noexcept override {
    if (bug_ == Bug::kStaleMap && ++num_maps_ % 3 == 0) return true;
    return device_.Map(window_offset, pool_offset, bytes);
  }
  kvrm::FlightId Submit(std::span<const kvrm::CopyOp> copies) noexcept override {
    std::vector<kvrm::CopyOp> made =
        bug_ == Bug::kLateCopy ? std::exchange(late_, {}) : std::vector<kvrm::CopyOp>();
    for (kvrm::CopyOp copy : copies) {
      if (bug_ == Bug::kLateCopy) {
        late_.push_back(copy);
        continue;
      }
      if (bug_ == Bug::kLostPark && IsOfHost(copy.source)) continue;
      if (bug_ == Bug::kSkipCopy && ++num_copies_ % 7 == 0) continue;
      if (bug_ == Bug::kShortCopy) copy.bytes -= 256;
      made.push_back(copy);
    }
    return device_.Submit(made);
  }
  bool Landed(kvrm::FlightId flight) noexcept override { return device_.Landed(flight); }
  void Wait(kvrm::FlightId flight) noexcept override { device_.Wait(flight); }

 private:
  bool IsOfHost(const std::byte* at) const {
    return !std::less<>()(at, host_.data()) && std::less<>()(at, host_.data() + host_.size());
  }

  kvrm::Device& device_;
  const Bug bug_;
  std::vector<kvrm::CopyOp> late_;
  std::uint64_t num_copies_ = 0;
  std::uint64_t num_maps_ = 0;
  std::span<std::byte> host_;
};

class BrokenDeviceDecoder final : public Program {
 public:
  BrokenDeviceDecoder(std::uint64_t seed, BrokenDevice::Bug bug)
      : decoder_(seed), device_(decoder_.device(), bug) {}
  Shape shape() const override { return decoder_.shape(); }
  kvrm::Device& device() override { return device_; }
  bool offers_mapping() const override { return true; }
  void Run(const DenseCall& call) override { decoder_.Run(call); }

 private:
  DenseDecoder decoder_;
  BrokenDevice device_;
};

}  // namespace foreign
