// SPDX-License-Identifier: Apache-2.0
#include "base/utf8.h"

#include <gtest/gtest.h>

namespace kvrm {
namespace {

TEST(Utf8, EveryCodePointRoundTrips) {
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string text;
    AppendUtf8(text, c);
    const Utf8Char decoded = DecodeUtf8(text, 0);
    ASSERT_EQ(decoded.state, Utf8State::kValid) << static_cast<std::uint32_t>(c);
    ASSERT_TRUE(decoded.code_point == c);
    ASSERT_EQ(decoded.size, text.size());
    for (std::size_t size = 1; size < text.size(); ++size) {
      ASSERT_EQ(DecodeUtf8(text.substr(0, size), 0).state, Utf8State::kTruncated)
          << static_cast<std::uint32_t>(c);
      ASSERT_EQ(TruncatedUtf8Tail("x" + text.substr(0, size)), size)
          << static_cast<std::uint32_t>(c);
    }
    ASSERT_EQ(TruncatedUtf8Tail(text), 0u);
  }
}

TEST(Utf8, RefusesOverlongSurrogateAndPastTheEnd) {
  for (const std::string text :
       {"\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF",
        "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\x80", "\xFF"}) {
    EXPECT_FALSE(IsValidUtf8(text));
    EXPECT_EQ(DecodeUtf8(text, 0).state, Utf8State::kInvalid);
  }
}

TEST(Utf8, ReplacesMaximalSubparts) {
  const std::string kReplacement = "\xEF\xBF\xBD";
  const auto valid = [](std::string_view text) {
    std::string out;
    AppendValidUtf8(out, text);
    return out;
  };
  EXPECT_EQ(valid("a\xE2\x82z"), "a" + kReplacement + "z");
  EXPECT_EQ(valid("\xED\xA0\x80"), kReplacement + kReplacement + kReplacement);
  EXPECT_EQ(valid("\xF0\x9F\x98\xE2\x82\xAC\xF0"), kReplacement + "\xE2\x82\xAC" + kReplacement);
  EXPECT_EQ(valid("plain"), "plain");
}

}  // namespace
}  // namespace kvrm
