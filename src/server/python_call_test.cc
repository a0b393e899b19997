// SPDX-License-Identifier: Apache-2.0
#include "server/python_call.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kvrm {
namespace {

std::string ArgumentsOf(std::string_view text) {
  const std::optional<ToolCall> call = ReadPythonCall(text);
  return call ? call->arguments : "malformed";
}

TEST(PythonCall, LiteralsBecomeJson) {
  const std::vector<std::pair<std::string_view, std::string_view>> values = {
      {"1", "1"},
      {"-0.5", "-5E-1"},
      {"2e+3", "2E3"},
      {"18446744073709551615", "18446744073709551615"},
      {"True", "true"},
      {"false", "false"},
      {"None", "null"},
      {"[]", "[]"},
      {"[1, [2,],]", "[1,[2]]"},
      {R"({"a": 'b', 'c': {},})", R"({"a":"b","c":{}})"},
      {R"("a\n\t\\\"\'")", R"("a\n\t\\\"'")"},
      {R"('\d\x41\u00e9\U0001F600')", R"("\\dA)"
                                      "\u00e9\U0001F600\""},
      {R"("\ud83d\ude00")", "\"\U0001F600\""},
      {"'a\\\nb'", R"("ab")"},
      {"'(['", R"("([")"},
  };
  for (const auto& [python, json] : values)
    EXPECT_EQ(ArgumentsOf("f(a=" + std::string(python) + ")"), "{\"a\":" + std::string(json) + "}");
  EXPECT_EQ(ArgumentsOf("f( a = 1 , b=2, )"), R"({"a":1,"b":2})");
  EXPECT_EQ(ReadPythonCall("a.b-c_1()")->name, "a.b-c_1");
}

TEST(PythonCall, OtherTextIsMalformed) {
  const std::vector<std::string_view> texts = {"f",
                                               "f(",
                                               "f(1)",
                                               "f(a)",
                                               "f(a=)",
                                               "f(a=1 b=2)",
                                               "f(a=1,,)",
                                               "f(,)",
                                               "(a=1)",
                                               "f(a=1) ",
                                               "f(a=b)",
                                               "f(a=1_000)",
                                               "f(a=[1)",
                                               "f(a=[1 2])",
                                               "f(a={1:2})",
                                               "f(a={'a' 1})",
                                               "f(a='\\x4')",
                                               "f(a='\\ud800')",
                                               "f(a='b)",
                                               "f(a='\\",
                                               "f(a=(1,))",
                                               "f(a='x' 'y')",
                                               "f(a=[,])",
                                               "f(a='\\U00110000')",
                                               "f(a=+1)",
                                               "f(a=nan)",
                                               "f(a=1.)",
                                               "f(a='\\ude00')",
                                               "f(a={[]: 1})",
                                               "f(a='\\ud83d\\u0041')"};
  for (const std::string_view text : texts)
    EXPECT_FALSE(ReadPythonCall(text)) << text;
}

// As deep as JSON may be, the object of the arguments counted; and no stack for what is deeper.
TEST(PythonCall, DepthIsBounded) {
  const auto nested = [](std::size_t depth) {
    return "f(a=" + std::string(depth, '[') + std::string(depth, ']') + ")";
  };
  EXPECT_NE(ArgumentsOf(nested(63)), "malformed");
  EXPECT_EQ(ArgumentsOf(nested(64)), "malformed");
  EXPECT_EQ(ArgumentsOf(nested(1000000)), "malformed");
}

TEST(PythonCall, TheScannerFindsTheEnd) {
  using Scan = PythonCallScanner::Status;
  for (const std::string_view text :
       {"f()", R"x(f(a=")", b='\')', c=[{"(": 1}]))x", "get_weather(city=\"a)b\")"}) {
    PythonCallScanner scanner;
    for (std::size_t i = 0; i < text.size(); ++i)
      ASSERT_EQ(scanner.Push(text[i]), i + 1 < text.size() ? Scan::kMore : Scan::kDone) << text;
  }
  PythonCallScanner scanner;
  EXPECT_EQ(scanner.Push('f'), Scan::kMore);
  EXPECT_EQ(scanner.Push(' '), Scan::kBad);
}

}  // namespace
}  // namespace kvrm
