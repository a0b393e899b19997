// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <limits>

#include "base/bounded_queue.h"
#include "base/checked_math.h"
#include "base/file.h"
#include "base/float16.h"
#include "base/json.h"
#include "base/rng.h"

namespace kvrm {
namespace {

TEST(Float16, EveryHalfSurvivesTheRoundTrip) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float value = F16ToFloat(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(F16ToFloat(FloatToF16(value))));
    } else {
      EXPECT_EQ(FloatToF16(value), half) << bits;
    }
  }
}

#ifndef __clang__  // clang 14 has no _Float16 on this processor.
TEST(Float16, RoundingAgreesWithTheCompilersConversion) {
  Rng rng(1);
  for (int i = 0; i < 200000; ++i) {
    const float value = std::bit_cast<float>(static_cast<std::uint32_t>(rng.Next()));
    if (std::isnan(value)) continue;
    EXPECT_EQ(FloatToF16(value), std::bit_cast<std::uint16_t>(static_cast<_Float16>(value)))
        << value;
  }
}
#endif

TEST(Float16, Bf16RoundsToNearestEven) {
  EXPECT_EQ(FloatToBf16(1.0f), 0x3f80);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f808000u)), 0x3f80);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f818000u)), 0x3f82);
  EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(CheckedMath, RefusesWhatDoesNotFit) {
  EXPECT_EQ(CheckedMul(1u << 31, 2), std::uint64_t{1} << 32);
  EXPECT_FALSE(CheckedMul(std::uint64_t{1} << 63, 2));
  EXPECT_FALSE(CheckedAdd(~std::uint64_t{0}, 1));
  EXPECT_EQ(CheckedAlignUp(33, 32), 64u);
  EXPECT_FALSE(CheckedAlignUp(~std::uint64_t{0} - 3, 32));
  EXPECT_FALSE(CheckedAlignUp(33, 24));
}

TEST(BoundedQueue, RefusesWhenFullAndKeepsOrder) {
  BoundedQueue<int> queue(4);
  for (int i = 0; i < 4; ++i)
    EXPECT_TRUE(queue.TryPush(int{i}));
  EXPECT_FALSE(queue.TryPush(9));
  for (int i = 0; i < 4; ++i)
    EXPECT_EQ(queue.TryPop(), i);
  EXPECT_EQ(queue.TryPop(), std::nullopt);
}

TEST(WriteFile, NeverReplacesADevice) {
  const Status full = WriteFile("/dev/full", "text");
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().code, ErrorCode::kIo);
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/full"));
  EXPECT_TRUE(WriteFile("/dev/null", "text"));
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
}

TEST(WriteFile, ReplacesAFileAsAWhole) {
  const std::string path = testing::TempDir() + "write_file_test";
  EXPECT_TRUE(WriteFile(path, "one"));
  EXPECT_TRUE(WriteFile(path, "two"));
  EXPECT_EQ(OrThrow(ReadFile(path, 100)), "two");
  EXPECT_FALSE(ReadFile(path, 2));
  EXPECT_FALSE(std::filesystem::exists(path + ".partial"));
  EXPECT_FALSE(WriteFile("/nowhere/at/all", "x"));
}

TEST(Json, NamesTheByteAndRefusesDepthAndTails) {
  EXPECT_TRUE(ParseJson(R"({"a":[1,2,{"b":null}]})"
                        " \n"));
  EXPECT_FALSE(ParseJson("{} x"));
  EXPECT_FALSE(ParseJson("{\"a\":"));
  EXPECT_FALSE(ParseJson(std::string(100, '[')));
  EXPECT_FALSE(ParseJson(std::string(100, ' '), {.max_bytes = 99}));
}

}  // namespace
}  // namespace kvrm
