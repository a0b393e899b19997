// SPDX-License-Identifier: Apache-2.0
#include "device/host_device.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <string>

#include "base/result.h"

namespace kvrm {
namespace {

TEST(HostDevice, ReservesZeroedAlignedMemoryAndKeepsTheLedger) {
  for (const bool prefault : {false, true}) {
    HostDevice device({.prefault = prefault});
    const std::span<std::byte> a = device.Reserve(100001, "kv pool");
    const std::span<std::byte> b = device.Reserve(1, "scratch");
    ASSERT_EQ(a.size(), 100001u);
    ASSERT_EQ(b.size(), 1u);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(a.data()) % 64, 0u);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(b.data()) % 64, 0u);
    EXPECT_TRUE(std::all_of(a.begin(), a.end(), [](std::byte x) { return x == std::byte{0}; }));
    ASSERT_EQ(device.reservations().size(), 2u);
    EXPECT_EQ(device.reservations()[0].owner, "kv pool");
    EXPECT_EQ(device.reservations()[0].bytes, 100001u);
    EXPECT_EQ(device.reserved_bytes(), 100002u);
  }
}

TEST(HostDevice, RefusesWithTheExactNumberOfBytes) {
  HostDevice device;
  device.Reserve(4096, "first");
  for (const std::size_t bytes : {std::size_t{1} << 60, std::numeric_limits<std::size_t>::max()}) {
    try {
      device.Reserve(bytes, "kv pool");
      ADD_FAILURE() << "reserved " << bytes;
    } catch (const StartError& error) {
      const std::string message = error.what();
      EXPECT_NE(message.find(std::to_string(bytes) + " bytes for kv pool"), std::string::npos)
          << message;
      EXPECT_NE(message.find("4096 bytes are reserved"), std::string::npos) << message;
    }
  }
  EXPECT_EQ(device.reservations().size(), 1u);
}

TEST(HostDevice, CopiesLandAndFlightsAreNumberedUpwards) {
  HostDevice device;
  const std::span<std::byte> memory = device.Reserve(256, "blocks");
  std::fill_n(memory.begin(), 64, std::byte{7});
  std::fill_n(memory.begin() + 64, 64, std::byte{9});
  const std::array<CopyOp, 2> copies = {CopyOp{memory.data(), memory.data() + 128, 64},
                                        CopyOp{memory.data() + 64, memory.data() + 192, 64}};
  const FlightId first = device.Submit(copies);
  const FlightId second = device.Submit({});
  EXPECT_LT(first, second);
  device.Wait(first);
  EXPECT_TRUE(device.Landed(first));
  EXPECT_EQ(memory[128], std::byte{7});
  EXPECT_EQ(memory[255], std::byte{9});
}

}  // namespace
}  // namespace kvrm
