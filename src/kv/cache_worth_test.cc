// SPDX-License-Identifier: Apache-2.0
#include "kv/cache_worth.h"

#include <gtest/gtest.h>

#include <cstring>

namespace kvrm {
namespace {

PrefixKey KeyOf(std::uint64_t number) {
  PrefixKey key;
  const std::uint64_t word = Mix64(number);
  std::memcpy(key.bytes.data(), &word, sizeof word);
  return key;
}

constexpr std::uint32_t kMostHeld = 100;

// So many blocks that nobody asks for again.
void GoUnused(CacheWorth& worth, std::uint32_t num_blocks, std::uint64_t first_key = 1000) {
  for (std::uint32_t i = 0; i < num_blocks; ++i)
    worth.Gone(KeyOf(first_key + i), /*beyond=*/true, kMostHeld);
}

TEST(CacheWorth, IsAllThatWasHeldAtFirst) {
  CacheWorth worth(64);
  EXPECT_EQ(worth.Bound(kMostHeld), kMostHeld);
  EXPECT_EQ(worth.Bound(0), 0u);
}

TEST(CacheWorth, AnEighthIsLeftOfWhatNobodyAsksForAgain) {
  CacheWorth worth(64);
  GoUnused(worth, 50);
  EXPECT_EQ(worth.Bound(kMostHeld), kMostHeld - 25);
  GoUnused(worth, 1000);
  EXPECT_EQ(worth.Bound(kMostHeld), kMostHeld / 8);
  EXPECT_EQ(worth.Bound(2 * kMostHeld), kMostHeld + kMostHeld / 8) << "what was held since as well";
  EXPECT_EQ(worth.Bound(20), 8u) << "and no less than 8 blocks";
  EXPECT_EQ(worth.Bound(5), 5u) << "of as many";
}

// One conversation that goes on after the cache was given up has it back at once.
TEST(CacheWorth, WhatIsAskedForAgainGivesItBack) {
  CacheWorth worth(1024);
  GoUnused(worth, 200);
  ASSERT_EQ(worth.Bound(kMostHeld), kMostHeld / 8);
  EXPECT_FALSE(worth.Missed(KeyOf(1))) << "it has never been there";
  EXPECT_EQ(worth.Bound(kMostHeld), kMostHeld / 8);
  EXPECT_TRUE(worth.Missed(KeyOf(1199)));
  EXPECT_EQ(worth.Bound(kMostHeld), kMostHeld / 8 + 16);
  EXPECT_FALSE(worth.Missed(KeyOf(1199))) << "counted once";
  worth.Found(6);
  EXPECT_EQ(worth.Bound(kMostHeld), kMostHeld);
}

TEST(CacheWorth, OneInThirtyTwoKeepsItAsItIs) {
  CacheWorth worth(1024);
  std::uint64_t key = 1;
  for (int round = 0; round < 1000; ++round) {
    GoUnused(worth, 30, key);
    key += 30;
    worth.Found(1);
  }
  EXPECT_GE(worth.Bound(kMostHeld), kMostHeld - 16);
}

TEST(CacheWorth, RoomThatSomebodyNeedsSaysNothing) {
  CacheWorth worth(64);
  for (std::uint64_t key = 0; key < 1000; ++key)
    worth.Gone(KeyOf(key), /*beyond=*/false, kMostHeld);
  EXPECT_EQ(worth.Bound(kMostHeld), kMostHeld);
}

TEST(CacheWorth, OffItIsAllThatWasHeld) {
  CacheWorth worth(0);
  GoUnused(worth, 1000);
  EXPECT_FALSE(worth.Missed(KeyOf(1000)));
  EXPECT_EQ(worth.Bound(kMostHeld), kMostHeld);
}

}  // namespace
}  // namespace kvrm
