// SPDX-License-Identifier: Apache-2.0
#include "device/host_device.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <limits>
#include <span>
#include <string>
#include <utility>

#include "base/result.h"

namespace kvrm {
namespace {

std::size_t OsPageBytes() {
  return static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

// What `reserve` says when it refuses to start; empty when it does not.
template <typename Reserve>
std::string Refusal(Reserve reserve) {
  try {
    reserve();
  } catch (const StartError& error) {
    return error.what();
  }
  return "";
}

bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

bool AllAre(std::span<const std::byte> bytes, int value) {
  return std::all_of(bytes.begin(), bytes.end(),
                     [value](std::byte b) { return b == std::byte(value); });
}

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

TEST(HostDevice, StridedCopiesMoveTheirPiecesAndNothingBetween) {
  HostDevice device;
  const std::span<std::byte> memory = device.Reserve(1024, "blocks");
  for (std::size_t i = 0; i < 512; ++i)
    memory[i] = static_cast<std::byte>(i / 32);
  std::fill(memory.begin() + 512, memory.end(), std::byte{0xee});
  // Five pieces of 24 bytes, 96 bytes apart, to places 40 bytes apart; one whole copy beside them.
  const std::array<CopyOp, 2> copies = {CopyOp{.source = memory.data() + 32,
                                               .target = memory.data() + 512,
                                               .bytes = 24,
                                               .num_pieces = 5,
                                               .source_stride = 96,
                                               .target_stride = 40},
                                        CopyOp{memory.data(), memory.data() + 800, 32}};
  device.Wait(device.Submit(copies));
  for (std::size_t piece = 0; piece < 5; ++piece) {
    const std::span<std::byte> target = memory.subspan(512 + piece * 40, 40);
    EXPECT_TRUE(AllAre(target.first(24), static_cast<int>(1 + 3 * piece))) << piece;
    EXPECT_TRUE(AllAre(target.subspan(24), 0xee)) << piece;
  }
  EXPECT_TRUE(AllAre(memory.subspan(712, 88), 0xee));
  EXPECT_TRUE(AllAre(memory.subspan(800, 32), 0));
  EXPECT_TRUE(AllAre(memory.subspan(832), 0xee));
}

// Each deadline by itself, and flight after flight over the same memory.
TEST(HostDevice, ACopyThreadLandsCopiesByTheirDeadlines) {
  HostDevice device({.copy_thread = true});
  EXPECT_TRUE(device.has_deadlines());
  EXPECT_FALSE(HostDevice().has_deadlines());
  constexpr std::size_t kBytes = 1 << 16;
  constexpr std::uint32_t kLayers = 6;
  const std::span<std::byte> memory = device.Reserve(2 * kLayers * kBytes, "blocks");
  const auto target = [&](std::uint32_t layer) {
    return memory.subspan((kLayers + layer) * kBytes, kBytes);
  };
  std::array<CopyOp, kLayers> copies;
  for (std::uint32_t layer = 0; layer < kLayers; ++layer) {
    copies[layer] = {.source = memory.data() + layer * kBytes,
                     .target = target(layer).data(),
                     .bytes = kBytes,
                     .before_layer = layer};
  }
  for (int value = 1; value < 100; ++value) {
    std::fill_n(memory.begin(), kLayers * kBytes, static_cast<std::byte>(value));
    const FlightId flight = device.Submit(copies);
    EXPECT_TRUE(AllAre(target(0), value));  // The step waits for it anyhow.
    for (std::uint32_t layer = 1; layer < kLayers - 1; ++layer) {
      device.WaitLayer(layer);
      EXPECT_TRUE(AllAre(target(layer), value)) << layer;
    }
    // The next flight waits, too.
    if (value % 3 == 0) continue;
    device.Wait(flight);
    EXPECT_TRUE(device.Landed(flight));
    EXPECT_TRUE(AllAre(target(kLayers - 1), value));
  }
}

TEST(HostDevice, WindowsWithoutMappingAreMemoryBehindThePool) {
  HostDevice device;
  const PoolMemory memory = device.ReservePool(1000, 500, false, 100);
  EXPECT_EQ(memory.pool.size(), 1000u);
  EXPECT_EQ(memory.windows.size(), 500u);
  EXPECT_EQ(memory.windows.data(), memory.pool.data() + 1000);
  EXPECT_EQ(device.reserved_bytes(), 1500u);
  memory.windows[499] = std::byte{1};
}

class MappedPool : public ::testing::Test {
 protected:
  static constexpr std::size_t kPoolBlocks = 8;
  static constexpr std::size_t kWindowBlocks = 6;

  // A block is two pages, and block b of the pool is full of b + 1.
  void SetUp() override {
    memory_ = device_.ReservePool(kPoolBlocks * unit_, kWindowBlocks * unit_, true, unit_);
    ASSERT_EQ(memory_.windows.data(), memory_.pool.data() + memory_.pool.size());
    ASSERT_EQ(memory_.windows.size(), kWindowBlocks * unit_);
    ASSERT_TRUE(AllAre(memory_.pool, 0));
    for (std::size_t b = 0; b < kPoolBlocks; ++b)
      std::fill_n(memory_.pool.begin() + static_cast<std::ptrdiff_t>(b * unit_), unit_,
                  static_cast<std::byte>(b + 1));
  }

  bool Map(std::size_t window_block, std::size_t pool_block, std::size_t num_blocks) {
    return device_.Map(window_block * unit_, pool_block * unit_, num_blocks * unit_);
  }
  std::span<const std::byte> Window(std::size_t block) const {
    return memory_.windows.subspan(block * unit_, unit_);
  }

  const std::size_t unit_ = 2 * OsPageBytes();
  HostDevice device_;
  PoolMemory memory_;
};

TEST_F(MappedPool, WindowsTakeNoMemory) {
  ASSERT_EQ(device_.reservations().size(), 1u);
  EXPECT_EQ(device_.reserved_bytes(), kPoolBlocks * unit_);
}

TEST_F(MappedPool, ShowsTheSameBytesAtBothAddresses) {
  ASSERT_TRUE(Map(0, 5, 1));
  ASSERT_TRUE(Map(1, 2, 3));
  ASSERT_TRUE(Map(4, 5, 1));  // The same block in another window.
  for (const auto& [window, pool] : {std::pair{0, 5}, {1, 2}, {2, 3}, {3, 4}, {4, 5}})
    EXPECT_TRUE(AllAre(Window(static_cast<std::size_t>(window)), pool + 1)) << window;
  // What is written later shows as well.
  std::fill_n(memory_.pool.begin() + static_cast<std::ptrdiff_t>(5 * unit_), unit_,
              std::byte{0x77});
  EXPECT_TRUE(AllAre(Window(0), 0x77));
  EXPECT_TRUE(AllAre(Window(4), 0x77));
  EXPECT_TRUE(AllAre(Window(3), 5));
}

TEST_F(MappedPool, ShowsAnotherBlockInPlaceOfWhatWasShown) {
  ASSERT_TRUE(Map(0, 0, 6));
  ASSERT_TRUE(Map(2, 7, 1));
  ASSERT_TRUE(Map(3, 6, 2));
  const int expected[] = {1, 2, 8, 7, 8, 6};
  for (std::size_t w = 0; w < kWindowBlocks; ++w)
    EXPECT_TRUE(AllAre(Window(w), expected[w])) << w;
  for (std::size_t b = 0; b < kPoolBlocks; ++b)
    EXPECT_TRUE(AllAre(memory_.pool.subspan(b * unit_, unit_), static_cast<int>(b + 1))) << b;
}

TEST_F(MappedPool, IsCopiedInto) {
  ASSERT_TRUE(Map(0, 1, 1));
  const CopyOp copy = {memory_.pool.data(), memory_.pool.data() + unit_, unit_};
  device_.Wait(device_.Submit({&copy, 1}));
  EXPECT_TRUE(AllAre(Window(0), 1));
}

// Uses up the mappings of the process: a refusal is a value, and passes.
TEST_F(MappedPool, TellsWhenTheSystemRefuses) {
  std::size_t max_mappings = 0;
  std::ifstream("/proc/sys/vm/max_map_count") >> max_mappings;
  ASSERT_GT(max_mappings, 0u);
  ASSERT_TRUE(Map(0, 0, 6));
  // Every second page made readable is a mapping of its own, and so is the page before it.
  const std::size_t num_pages = max_mappings + 2;
  const std::size_t bytes = num_pages * OsPageBytes();
  void* const range =
      mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(range, MAP_FAILED);
  bool exhausted = false;
  for (std::size_t page = 1; page < num_pages && !exhausted; page += 2) {
    exhausted = mprotect(static_cast<std::byte*>(range) + page * OsPageBytes(), OsPageBytes(),
                         PROT_READ) != 0;
  }
  const bool mapped = Map(2, 7, 1);  // Would be two mappings more.
  ASSERT_EQ(munmap(range, bytes), 0);
  ASSERT_TRUE(exhausted);
  EXPECT_FALSE(mapped);
  EXPECT_TRUE(Map(2, 7, 1));
  EXPECT_TRUE(AllAre(Window(2), 8));
  EXPECT_TRUE(AllAre(Window(1), 2));
}

using MappedPoolDeathTest = MappedPool;

TEST_F(MappedPoolDeathTest, ChecksWhatIsMapped) {
  EXPECT_DEATH(Map(6, 0, 1), "check failed");
  EXPECT_DEATH(Map(0, 8, 1), "check failed");
  EXPECT_DEATH(Map(5, 0, 2), "check failed");
  EXPECT_DEATH(Map(0, 7, 2), "check failed");
  EXPECT_DEATH(Map(0, 0, 0), "check failed");
  EXPECT_DEATH(device_.Map(OsPageBytes(), 0, unit_), "check failed");
}

TEST_F(MappedPoolDeathTest, WindowsAreReadOnlyAndEmptyOnesAreNotReadable) {
  ASSERT_TRUE(Map(0, 0, 1));
  EXPECT_DEATH(*const_cast<volatile std::byte*>(&memory_.windows[0]) = std::byte{1}, "");
  EXPECT_DEATH(static_cast<void>(*const_cast<volatile std::byte*>(&memory_.windows[unit_])), "");
}

TEST(HostDeviceDeathTest, MapsNothingWithoutAMappedPool) {
  HostDevice device;
  device.ReservePool(4096, 4096, false, 4096);
  EXPECT_DEATH(device.Map(0, 0, 4096), "check failed");
}

TEST(HostDevice, RefusesToMapBlocksThatAreNotWholePages) {
  const std::size_t page = OsPageBytes();
  HostDevice device;
  const std::string message =
      Refusal([&] { device.ReservePool(6 * page, 3 * page, true, page * 3 / 2); });
  EXPECT_TRUE(Contains(message, "whole pages of " + std::to_string(page) + " bytes")) << message;
  EXPECT_TRUE(Contains(message, "has " + std::to_string(page * 3 / 2) + " bytes")) << message;
  EXPECT_TRUE(Contains(message, "2 times as many tokens")) << message;
  EXPECT_TRUE(device.reservations().empty());
}

TEST(HostDevice, RefusesMoreWindowsThanTheSystemAllowsMappings) {
  const std::size_t page = OsPageBytes();
  HostDevice device({.max_mappings = 2000});
  const std::string message =
      Refusal([&] { device.ReservePool(4 * page, 2000 * page, true, page); });
  EXPECT_TRUE(Contains(message, "2000 blocks of windows")) << message;
  EXPECT_TRUE(Contains(message, "allows 2000 ")) << message;
  EXPECT_TRUE(Contains(message, "vm.max_map_count")) << message;
  // Larger blocks, fewer mappings.
  EXPECT_EQ(Refusal([&] { device.ReservePool(40 * page, 2000 * page, true, 20 * page); }), "");
}

TEST(HostDevice, RefusesAMappedPoolThatTheSystemDoesNotHave) {
  const std::size_t page = OsPageBytes();
  const std::size_t bytes = (std::size_t{1} << 60) / page * page;
  HostDevice device;
  device.Reserve(4096, "first");
  std::string message = Refusal([&] { device.ReservePool(bytes, page, true, page); });
  EXPECT_TRUE(Contains(message, std::to_string(bytes) + " bytes for a mapped kv pool")) << message;
  EXPECT_TRUE(Contains(message, "4096 bytes are reserved")) << message;
  // Addresses end, too.
  const std::size_t unit = 1024 * page;
  HostDevice many({.max_mappings = bytes});
  message = Refusal([&] { many.ReservePool(unit, bytes, true, unit); });
  EXPECT_TRUE(Contains(message, std::to_string(bytes) + " bytes of addresses")) << message;
  EXPECT_TRUE(Contains(message, std::strerror(ENOMEM))) << message;
}

}  // namespace
}  // namespace kvrm
