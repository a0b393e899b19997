// SPDX-License-Identifier: Apache-2.0
#include "server/reasoning.h"

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

namespace kvrm {
namespace {

TEST(Reasoning, IsWhatStandsBetweenTheMarksAtTheBeginning) {
  struct Example {
    bool inside;
    std::string text;
    std::string reasoning;
    std::string content;
  };
  const std::vector<Example> examples = {
      {false, "<think>\nhm\n</think>\n\nYes.", "\nhm\n", "Yes."},
      {false, "\n<think>a</think>b", "a", "b"},
      {true, "hm</think>Yes. </think>", "hm", "Yes. </think>"},
      {true, "never ends </thin", "never ends </thin", ""},
      {false, "Yes <think>no</think>", "", "Yes <think>no</think>"},
      {false, " <thi", "", " <thi"},
      {false, "", "", ""},
  };
  for (const Example& example : examples) {
    for (std::size_t step = 1; step < 10; ++step) {
      ReasoningSplitter splitter(example.inside);
      ReasoningSplitter::Parts all;
      const auto add = [&](const ReasoningSplitter::Parts& parts) {
        all.reasoning += parts.reasoning;
        all.content += parts.content;
      };
      for (std::size_t at = 0; at < example.text.size(); at += step)
        add(splitter.Push(std::string_view(example.text).substr(at, step)));
      add(splitter.Finish());
      EXPECT_EQ(all.reasoning, example.reasoning) << example.text;
      EXPECT_EQ(all.content, example.content) << example.text;
    }
  }
  EXPECT_TRUE(EndsInReasoning("<|assistant|><think>\n"));
  EXPECT_FALSE(EndsInReasoning("<think></think>"));
}

}  // namespace
}  // namespace kvrm
