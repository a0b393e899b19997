// SPDX-License-Identifier: Apache-2.0
// CostDevice: memory that nobody looks into. Copies land at once and copy nothing, mappings show
// nothing; what they cost is the profile's (replay/device_profile.h). So a mapping may have any
// unit, and a pool as large as the address space costs no memory. Threading: as Device.
#pragma once

#include "device/host_device.h"

namespace kvrm {

class CostDevice final : public Device {
 public:
  std::span<std::byte> Reserve(std::size_t bytes, const char* owner) override {
    return memory_.Reserve(bytes, owner);
  }
  PoolMemory ReservePool(std::size_t pool_bytes, std::size_t window_bytes, bool /*mapped*/,
                         std::size_t map_unit) override {
    return memory_.ReservePool(pool_bytes, window_bytes, false, map_unit);
  }
  FlightId Submit(std::span<const CopyOp> /*copies*/) noexcept override {
    return FlightId{++last_flight_};
  }
  bool Landed(FlightId /*flight*/) noexcept override { return true; }
  void Wait(FlightId /*flight*/) noexcept override {}
  bool Map(std::size_t /*window*/, std::size_t /*pool*/, std::size_t /*bytes*/) noexcept override {
    return true;
  }

 private:
  HostDevice memory_;
  std::uint64_t last_flight_ = 0;
};

}  // namespace kvrm
