// SPDX-License-Identifier: Apache-2.0
#include "server/stop_matcher.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/rng.h"

namespace kvrm {
namespace {

TEST(StopMatcher, WithoutStopsEverythingPassesAtOnce) {
  StopMatcher matcher({});
  EXPECT_EQ(matcher.Push("abc"), "abc");
  EXPECT_EQ(matcher.Finish(), "");
  EXPECT_FALSE(matcher.matched());
}

TEST(StopMatcher, HoldsBackWhatMayBecomeAStop) {
  StopMatcher matcher({"END"});
  EXPECT_EQ(matcher.Push("xE"), "x");
  EXPECT_EQ(matcher.Push("N"), "");
  EXPECT_EQ(matcher.Push("EN"), "EN");
  EXPECT_EQ(matcher.Push("Dtail"), "");
  EXPECT_TRUE(matcher.matched());
  EXPECT_EQ(matcher.Push("more"), "");
  EXPECT_EQ(matcher.Finish(), "");
}

TEST(StopMatcher, GivesBackWhatWasNoStop) {
  StopMatcher matcher({"END"});
  EXPECT_EQ(matcher.Push("EN"), "");
  EXPECT_EQ(matcher.Finish(), "EN");
  EXPECT_FALSE(matcher.matched());
}

TEST(StopMatcher, TheStopCompleteFirstWins) {
  StopMatcher matcher({"abcd", "bc"});
  EXPECT_EQ(matcher.Push("xabcd"), "xa");
  StopMatcher same_end({"c", "abc"});
  EXPECT_EQ(same_end.Push("xabc"), "x");
}

TEST(StopMatcher, KeepsUtf8Whole) {
  StopMatcher matcher({"\xE2\x82\xAC!"});  // a euro sign and an exclamation mark
  EXPECT_EQ(matcher.Push("1\xE2\x82\xAC"), "1");
  EXPECT_EQ(matcher.Push("?"), "\xE2\x82\xAC?");
}

// The slow model: extend the text byte by byte; the first byte that completes a stop ends it.
std::string CutAtFirstStop(const std::string& text, const std::vector<std::string>& stops) {
  for (std::size_t end = 1; end <= text.size(); ++end) {
    const std::string_view seen(text.data(), end);
    std::size_t longest = 0;
    for (const std::string& stop : stops) {
      if (seen.ends_with(stop)) longest = std::max(longest, stop.size());
    }
    if (longest > 0) return text.substr(0, end - longest);
  }
  return text;
}

// Small alphabets make matches, overlaps and near misses common.
TEST(StopMatcher, OutputIsTheWholeTextCutAtTheFirstStop) {
  Rng rng(11);
  const auto word = [&](std::size_t max_length) {
    std::string text;
    const std::size_t length = rng.Between(1, max_length);
    while (text.size() < length)
      text += static_cast<char>('a' + rng.Below(3));
    return text;
  };
  int num_matched = 0;
  for (int i = 0; i < 20000; ++i) {
    std::vector<std::string> stops;
    for (std::uint64_t n = rng.Below(4); n > 0; --n)
      stops.push_back(word(5));
    const std::string text = word(24);
    StopMatcher matcher(stops);
    std::string output;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t size = rng.Between(1, 4);
      output += matcher.Push(std::string_view(text).substr(at, size));
      at += size;
      // Nothing that is out may have to be taken back.
      ASSERT_TRUE(CutAtFirstStop(text, stops).starts_with(output));
    }
    output += matcher.Finish();
    ASSERT_EQ(output, CutAtFirstStop(text, stops)) << text;
    ASSERT_EQ(matcher.matched(), output != text);
    num_matched += matcher.matched() ? 1 : 0;
  }
  EXPECT_GT(num_matched, 5000);
  EXPECT_LT(num_matched, 19000);
}

}  // namespace
}  // namespace kvrm
