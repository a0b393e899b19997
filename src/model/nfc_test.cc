// SPDX-License-Identifier: Apache-2.0
#include "model/nfc.h"

#include <gtest/gtest.h>

#include "base/utf8.h"

namespace kvrm {
namespace {

std::string Text(std::initializer_list<char32_t> code_points) {
  std::string text;
  for (const char32_t c : code_points) {
    AppendUtf8(text, c);
  }
  return text;
}

TEST(Nfc, ComposesReordersAndLeavesAlone) {
  struct Case {
    std::string given, composed;
  };
  const Case cases[] = {
      {"plain", "plain"},
      {Text({'e', 0x301}), Text({0xE9})},
      {Text({0xE9}), Text({0xE9})},
      // A dot below goes before a dot above, and composes first.
      {Text({'d', 0x307, 0x323}), Text({0x1E0D, 0x307})},
      {Text({'s', 0x323, 0x307}), Text({0x1E69})},
      {Text({0x1E9B, 0x323}), Text({0x1E9B, 0x323})},
      // A mark of the same class blocks the one after it.
      {Text({'a', 0x300, 0x301}), Text({0xE0, 0x301})},
      // Singletons decompose, composition exclusions stay decomposed.
      {Text({0x212B}), Text({0xC5})},
      {Text({0x958}), Text({0x915, 0x93C})},
      // Hangul by arithmetic.
      {Text({0x1112, 0x1161, 0x11AB}), Text({0xD55C})},
      {Text({0xD558, 0x11AB}), Text({0xD55C})},
      {Text({0x301, 'a'}), Text({0x301, 'a'})},
      // Bytes that are no text are kept and compose with nothing.
      {"e\xFF" + Text({0x301}), "e\xFF" + Text({0x301})},
      {Text({'e', 0x301}) + "\xC3", Text({0xE9}) + "\xC3"},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(ComposeNfc(c.given), c.composed);
    EXPECT_EQ(ComposeNfc(c.composed), c.composed);
  }
}

TEST(Nfc, LongRunsOfMarksAreNotQuadratic) {
  std::string text = "a";
  for (int i = 0; i < 200'000; ++i) {
    AppendUtf8(text, i % 2 == 0 ? 0x315 : 0x323);
  }
  EXPECT_EQ(ComposeNfc(text).substr(0, 3), Text({0x1EA1}));
}

}  // namespace
}  // namespace kvrm
