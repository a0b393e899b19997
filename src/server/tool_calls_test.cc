// SPDX-License-Identifier: Apache-2.0
#include "server/tool_calls.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/rng.h"

namespace kvrm {
namespace {

struct Call {
  std::string name;
  std::string arguments = {};
  friend bool operator==(const Call&, const Call&) = default;
};

struct Parsed {
  std::string content;
  std::vector<Call> calls = {};
  std::string reasoning = {};
  friend bool operator==(const Parsed&, const Parsed&) = default;
};

void Add(const OutputDelta& delta, Parsed& parsed) {
  parsed.content += delta.content;
  parsed.reasoning += delta.reasoning;
  for (const ToolCallDelta& call : delta.calls) {
    if (call.begins) parsed.calls.push_back({.name = call.name});
    ASSERT_EQ(call.call_idx + 1, parsed.calls.size());
    parsed.calls.back().arguments += call.arguments;
  }
}

const std::vector<std::string> kNames = {"get_weather", "add"};

ToolParserOptions Options(ToolFormat format) {
  static const json::array kTools = {
      {{"function",
        {{"name", "add"}, {"parameters", {{"properties", {{"a", {{"type", "integer"}}}}}}}}}}};
  return {.format = format, .names = kNames, .tools = kTools};
}

// In pieces of `piece_bytes`; 0: at once.
Parsed Parse(const ToolParserOptions& options, std::string_view text, std::size_t piece_bytes = 0) {
  ToolCallParser parser(options);
  Parsed parsed;
  const std::size_t step = piece_bytes == 0 ? std::max<std::size_t>(text.size(), 1) : piece_bytes;
  for (std::size_t at = 0; at < text.size(); at += step)
    Add(parser.Push(text.substr(at, step)), parsed);
  Add(parser.Finish(), parsed);
  EXPECT_EQ(parser.num_calls(), parsed.calls.size());
  return parsed;
}

Parsed Parse(ToolFormat format, std::string_view text, std::size_t piece_bytes = 0) {
  return Parse(Options(format), text, piece_bytes);
}

// In two pieces.
Parsed ParseCutAt(ToolFormat format, std::string_view text, std::size_t cut) {
  ToolCallParser parser(Options(format));
  Parsed parsed;
  Add(parser.Push(text.substr(0, cut)), parsed);
  Add(parser.Push(text.substr(cut)), parsed);
  Add(parser.Finish(), parsed);
  return parsed;
}

struct Case {
  ToolFormat format;
  std::string text;
  Parsed parsed;
};

const Call kWeather = {"get_weather", R"({"city": "Paris"})"};
const Call kAdd = {"add", R"({"a": [1, {"b": "}"}], "c": "\""})"};

// Calls that are no JSON, and channels.
std::vector<Case> CasesOfOtherNotations() {
  return {
      {ToolFormat::kGlm,
       "I look.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
       "</tool_call>\n<tool_call>add<arg_key>a</arg_key><arg_value>12</arg_value>"
       "<arg_key>b</arg_key><arg_value>12</arg_value></tool_call>",
       {"I look.", {{"get_weather", R"({"city":"Paris"})"}, {"add", R"({"a":12,"b":"12"})"}}}},
      {ToolFormat::kGlm,
       "<tool_call>add\n</tool_call><tool_call>get_weather<arg_key>city</arg_key><arg_value>\n"
       "</tool_call> \"é\" </arg_value></tool_call>",
       {"", {{"add", "{}"}, {"get_weather", R"({"city":"\n</tool_call> \"é\" "})"}}}},
      {ToolFormat::kGlm,
       R"(<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call> Done.)",
       {" Done.", {kWeather}}},
      {ToolFormat::kLfm,
       R"(I look.<|tool_call_start|>[get_weather(city="Paris"), add(a=[1, {"b": ") "}, -2.5e+1],)"
       R"( c='"é\'', d=None, e=True)]<|tool_call_end|>)",
       {"I look.",
        {{"get_weather", R"({"city":"Paris"})"},
         {"add", R"({"a":[1,{"b":") "},-2.5E1],"c":"\"é'","d":null,"e":true})"}}}},
      {ToolFormat::kLfm,
       "<|tool_call_start|>[add()]<|tool_call_end|>Done.",
       {"Done.", {{"add", "{}"}}}},
      {ToolFormat::kLfm,
       R"(<|tool_call_start|>[{"name": "get_weather", "arguments": {"city": "Paris"}}])"
       R"(<|tool_call_end|>)",
       {"", {kWeather}}},
      {ToolFormat::kHarmony,
       "<|channel|>analysis<|message|>Weather <|first.<|end|><|start|>assistant<|channel|>"
       "commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary "
       "to=functions.get_weather <|constrain|>json<|message|>{\"city\": \"Paris\"}<|call|>",
       {"I look.", {kWeather}, "Weather <|first."}},
      {ToolFormat::kHarmony,
       " to=functions.add<|channel|>commentary json<|message|>\n"
       R"({"a": [1, {"b": "}"}], "c": "\""}<|call|>)",
       {"", {kAdd}}},
      {ToolFormat::kHarmony,
       "<|channel|>analysis<|message|>One.<|end|><|start|>assistant<|channel|>analysis<|message|>"
       "Two.<|end|>\n<|start|>assistant<|channel|>final<|message|>Both.\n <|return|>",
       {"Both.\n ", {}, "One.\nTwo."}},
  };
}

std::vector<Case> GoodCases() {
  std::vector<Case> cases = {
      {ToolFormat::kHermes,
       "I look.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n"
       "</tool_call>\n<tool_call>{\"arguments\": {\"a\": [1, {\"b\": \"}\"}], \"c\": \"\\\"\"}, "
       "\"name\": \"add\"}</tool_call>",
       {"I look.", {kWeather, kAdd}}},
      {ToolFormat::kHermes,
       "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}</tool_call> "
       "Done.",
       {" Done.", {kWeather}}},
      {ToolFormat::kHermes,
       "I look.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
       "</function>\n</tool_call>\n<tool_call><function=add><parameter=a>12</parameter>"
       "<parameter=b>12</parameter></function></tool_call>",
       {"I look.", {{"get_weather", R"({"city":"Paris"})"}, {"add", R"({"a":12,"b":"12"})"}}}},
      {ToolFormat::kNemotron,
       R"(<TOOLCALL>[{"name": "get_weather", "arguments": {"city": "Paris"}}]</TOOLCALL>)",
       {"", {kWeather}}},
      {ToolFormat::kMiniMax,
       "<tool_calls>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n"
       "</tool_calls>",
       {"", {kWeather}}},
      {ToolFormat::kLlama,
       R"({"name": "get_weather", "parameters": {"city": "Paris"}}; {"name":"add","parameters":)"
       R"({"a": [1, {"b": "}"}], "c": "\""}})",
       {"", {kWeather, kAdd}}},
      {ToolFormat::kLlama,
       R"(<|python_tag|>{"type": "function", "name": "get_weather", "parameters": {"city": "Paris"}})",
       {"", {kWeather}}},
      {ToolFormat::kMistral,
       R"([TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "abc"},)"
       R"({"name": "add", "arguments": {"a": [1, {"b": "}"}], "c": "\""}}])",
       {"", {kWeather, kAdd}}},
      {ToolFormat::kMistral,
       R"(Yes.[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]add[CALL_ID]x1[ARGS])"
       R"({"a": [1, {"b": "}"}], "c": "\""})",
       {"Yes.", {kWeather, kAdd}}},
      {ToolFormat::kDeepSeek,
       "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
       "{\"city\": "
       "\"Paris\"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>add"
       "\n```json\n{\"a\": [1, {\"b\": \"}\"}], \"c\": \"\\\"\"}\n```<｜tool▁call▁end｜>"
       "<｜tool▁calls▁end｜>",
       {"", {kWeather, kAdd}}},
      {ToolFormat::kDeepSeek,
       "Wait.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": "
       "\"Paris\"}"
       "<｜tool▁call▁end｜>",
       {"Wait.", {kWeather}}},
      {ToolFormat::kFunctionary,
       R"(<function=get_weather>{"city": "Paris"}</function><function=add>)"
       R"({"a": [1, {"b": "}"}], "c": "\""}</function>)",
       {"", {kWeather, kAdd}}},
      {ToolFormat::kFunctionary32,
       "all\nOf course.>>>get_weather\n{\"city\": \"Paris\"}>>>add\n"
       R"({"a": [1, {"b": "}"}], "c": "\""})",
       {"Of course.", {kWeather, kAdd}}},
      {ToolFormat::kFunctionary32, "get_weather\n{\"city\": \"Paris\"}", {"", {kWeather}}},
      {ToolFormat::kFirefunction,
       R"( functools[{"name": "get_weather", "arguments": {"city": "Paris"}}, {"name": "add",)"
       R"("arguments": {"a": [1, {"b": "}"}], "c": "\""}}])",
       {"", {kWeather, kAdd}}},
      {ToolFormat::kGranite,
       R"(<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}])",
       {"", {kWeather}}},
      {ToolFormat::kCommandR,
       "Action: ```json\n[\n    {\n        \"tool_name\": \"get_weather\",\n        "
       "\"parameters\": "
       "{\"city\": \"Paris\"}\n    }\n]```",
       {"", {kWeather}}},
      {ToolFormat::kCommandR,
       R"(<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "get_weather", "parameters": )"
       R"({"city": "Paris"}}]<|END_ACTION|>)",
       {"", {kWeather}}},
      {ToolFormat::kKimi,
       R"(<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0)"
       R"(<|tool_call_argument_begin|>{"city": "Paris"}<|tool_call_end|><|tool_call_begin|>)"
       R"(functions.add:1<|tool_call_argument_begin|>{"a": [1, {"b": "}"}], "c": "\""})"
       R"(<|tool_call_end|><|tool_calls_section_end|>)",
       {"", {kWeather, kAdd}}},
      {ToolFormat::kJson,
       R"([{"name": "get_weather", "arguments": {"city": "Paris"}}, {"type": "function",)"
       R"("function": {"name": "add", "arguments": "{\"a\": 1}"}}])",
       {"", {kWeather, {"add", R"({"a": 1})"}}}},
      {ToolFormat::kJson,
       "```json\n",  // a fence alone is no call
       {"```json\n", {}}},
      {ToolFormat::kNamed, R"( {"city": "Paris"})", {"", {kWeather}}},
  };
  std::vector<Case> others = CasesOfOtherNotations();
  std::move(others.begin(), others.end(), std::back_inserter(cases));
  return cases;
}

TEST(ToolCalls, AreFoundInEveryFormat) {
  for (const Case& c : GoodCases()) {
    const Parsed parsed = Parse(c.format, c.text);
    EXPECT_EQ(parsed.content, c.parsed.content) << c.text;
    EXPECT_EQ(parsed.reasoning, c.parsed.reasoning) << c.text;
    ASSERT_EQ(parsed.calls.size(), c.parsed.calls.size()) << c.text;
    for (std::size_t i = 0; i < parsed.calls.size(); ++i) {
      EXPECT_EQ(parsed.calls[i].name, c.parsed.calls[i].name) << c.text;
      EXPECT_EQ(parsed.calls[i].arguments, c.parsed.calls[i].arguments) << c.text;
    }
  }
}

TEST(ToolCalls, DoNotDependOnHowTheTextIsCut) {
  for (const Case& c : GoodCases()) {
    const Parsed whole = Parse(c.format, c.text);
    for (std::size_t piece_bytes = 1; piece_bytes < 12; ++piece_bytes)
      EXPECT_EQ(Parse(c.format, c.text, piece_bytes), whole) << c.text;
    for (std::size_t cut = 0; cut <= c.text.size(); ++cut)
      EXPECT_EQ(ParseCutAt(c.format, c.text, cut), whole) << c.text.substr(0, cut);
  }
}

TEST(ToolCalls, OtherTextIsContent) {
  const std::vector<std::string> texts = {
      "Plain text.",
      " with space around \n",
      "<tool_call",
      "<tool_call>no object</tool_call> and more",
      "Action: think about it",
      "functools is a module",
      R"({"name": "unknown", "parameters": {}})",
      R"({"answer": 42})",
      R"([1, 2, 3])",
      "{ broken",
      ">>> import os",
      "all the same",
      "<function=two words>{}",
      "[TOOL_CALLS] is a mark of theirs.",
      "<|tool_call|>[not json]",
      "<tool_call><function=add><parameter=a>1</parameter>",
      "<tool_call><function=add>text</function></tool_call>",
      "<tool_call>add<arg_key>a</arg_key>1</tool_call>",
      "<tool_call>add<arg_key>a</arg_key><arg_value>1</tool_call>",
      "<tool_call>add<arg_key>a</arg_key><arg_value>1</arg_value>",
      "<|tool_call_start|>[add(1)]<|tool_call_end|>",
      "<|tool_call_start|>[add(a=b)]<|tool_call_end|>",
      "<|tool_call_start|>[add(a='it's')]<|tool_call_end|>",
      "<|tool_call_start|>[add(a=\"\\ud800\")]<|tool_call_end|>",
      "<|tool_call_start|>[add(a=1",
      "<|tool_call_start|>no list<|tool_call_end|>",
      "to=functions",
      "",
  };
  for (int format = 0; format < kNumToolFormats; ++format) {
    for (const std::string& text : texts) {
      const auto tool_format = static_cast<ToolFormat>(format);
      if (tool_format == ToolFormat::kNamed) continue;  // There every object is the call.
      const Parsed parsed = Parse(tool_format, text);
      EXPECT_TRUE(parsed.calls.empty()) << ToolFormatName(tool_format) << ": " << text;
      EXPECT_EQ(parsed.content, text) << ToolFormatName(tool_format);
    }
  }
}

TEST(ToolCalls, GoOutAsTheyComeAndStayAsFarAsTheyCame) {
  ToolCallParser parser({.format = ToolFormat::kHermes, .names = kNames});
  EXPECT_TRUE(parser.Push("<tool_call>{\"name\": \"add").calls.empty());
  OutputDelta delta = parser.Push("\", \"arguments\": {\"a");
  ASSERT_EQ(delta.calls.size(), 1u);
  EXPECT_TRUE(delta.calls[0].begins);
  EXPECT_EQ(delta.calls[0].name, "add");
  EXPECT_EQ(delta.calls[0].arguments, "{\"a");
  delta = parser.Push("\": 1");
  ASSERT_EQ(delta.calls.size(), 1u);
  EXPECT_FALSE(delta.calls[0].begins);
  EXPECT_EQ(delta.calls[0].arguments, "\": 1");
  delta = parser.Finish();
  EXPECT_TRUE(delta.calls.empty());
  EXPECT_EQ(delta.content, "");
}

TEST(ToolCalls, OneCallIsEnoughWhereOnlyOneIsWanted) {
  ToolCallParser parser({.format = ToolFormat::kHermes, .names = kNames, .max_calls = 1});
  const std::string call = R"(<tool_call>{"name": "add", "arguments": {}}</tool_call>)";
  Parsed parsed;
  Add(parser.Push(call + call), parsed);
  Add(parser.Finish(), parsed);
  EXPECT_EQ(parsed.calls.size(), 1u);
  EXPECT_EQ(parsed.content, call);
}

TEST(ToolCalls, OfALimitTheFirstCount) {
  ToolParserOptions options = Options(ToolFormat::kLfm);
  options.max_calls = 1;
  EXPECT_EQ(Parse(options, "<|tool_call_start|>[add(a=1), add(a=2)]<|tool_call_end|>"),
            (Parsed{"add(a=2)]<|tool_call_end|>", {{"add", R"({"a":1})"}}}));
  options = Options(ToolFormat::kGlm);
  options.max_calls = 1;
  EXPECT_EQ(Parse(options, "<tool_call>add</tool_call><tool_call>add</tool_call>"),
            (Parsed{"<tool_call>add</tool_call>", {{"add", "{}"}}}));
  options = Options(ToolFormat::kHarmony);
  options.max_calls = 0;
  const std::string call = "<|channel|>commentary to=functions.add json<|message|>{}<|call|>";
  EXPECT_EQ(Parse(options, call), Parsed{call});
}

TEST(ToolCalls, OfChannelsWhatIsNoCallKeepsItsMarks) {
  const std::string thought = "<|channel|>analysis<|message|>Hm.<|end|>";
  const std::string final_text = "<|start|>assistant<|channel|>final<|message|>Yes.";
  ToolParserOptions options = Options(ToolFormat::kHarmony);
  EXPECT_EQ(Parse(options, thought + final_text), (Parsed{"Yes.", {}, "Hm."}));
  options.split_reasoning = false;
  EXPECT_EQ(Parse(options, thought + final_text), (Parsed{thought + "\nYes."}));
  options = Options(ToolFormat::kHarmony);
  options.starts_in_reasoning = true;
  EXPECT_EQ(Parse(options, "Hm.<|end|>" + final_text), (Parsed{"Yes.", {}, "Hm."}));

  const std::vector<std::string> others = {
      "<|channel|>commentary to=python code<|message|>print(1)<|call|>",
      "<|channel|>commentary to=functions.add json<|message|>1, 2<|call|>",
      "<|channel|>commentary to=functions. json<|message|>{}<|call|>",
      R"({"answer": "<|end|><|start|>"})", "<|channel|>" + std::string(600, 'x') + "<|message|>"};
  for (const std::string& text : others) {
    EXPECT_EQ(Parse(ToolFormat::kHarmony, text), Parsed{text});
  }
  // A header that is cut off is no text.
  EXPECT_EQ(Parse(ToolFormat::kHarmony, thought + "<|start|>assistant<|chan"),
            (Parsed{"", {}, "Hm."}));
}

const std::vector<std::string> kPieces = {
    "<tool_call>",
    "</tool_call>",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\",
    ",",
    ":",
    "\n",
    " ",
    "name",
    "\"name\":",
    "\"add\"",
    "\"arguments\":",
    "<function=",
    "add>",
    ">>>",
    "all\n",
    "functools",
    "[TOOL_CALLS]",
    "[ARGS]",
    "add",
    "Action:",
    "```json",
    "null",
    "1",
    "\"function\":{",
    "<|python_tag|>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "</function>",
    "<parameter=a>",
    "</parameter>",
    "<TOOLCALL>",
    "<tool_calls>",
    "<|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>",
    "<arg_key>a</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "<|tool_call_start|>[",
    "add(a=",
    "'",
    ")",
    "<|channel|>commentary to=functions.add",
    "<|channel|>analysis",
    "<|message|>",
    "<|start|>",
    "<|end|>",
    "<|call|>",
    "é"};

// Pieces of all formats in any order: every byte ends somewhere, and cuts change nothing.
TEST(ToolCalls, AnyTextGoesIn) {
  const std::vector<Case> cases = GoodCases();
  Rng rng(1);
  std::size_t num_calls = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string text;
    for (std::size_t i = 1 + rng.Below(30); i > 0; --i)
      text += kPieces[rng.Below(kPieces.size())];
    const auto format = static_cast<ToolFormat>(rng.Below(kNumToolFormats));
    // Now and then a good answer with something put into it.
    if (const Case& good = cases[rng.Below(cases.size())]; good.format == format) {
      const std::size_t at = rng.Below(good.text.size());
      text = good.text.substr(0, at) + text.substr(0, rng.Below(4)) + good.text.substr(at);
    }
    const Parsed whole = Parse(format, text);
    ASSERT_EQ(Parse(format, text, 1 + rng.Below(7)), whole) << text;
    num_calls += whole.calls.size();
    // Their marks are no content.
    if (format == ToolFormat::kFunctionary32 || format == ToolFormat::kHarmony) continue;
    ASSERT_TRUE(!whole.calls.empty() || whole.content == text) << ToolFormatName(format) << text;
  }
  EXPECT_GT(num_calls, 1000u);
}

TEST(ToolCalls, DepthIsBounded) {
  const std::string deep = R"(<tool_call>{"name": "add", "arguments": )" + std::string(100000, '[');
  const Parsed parsed = Parse(ToolFormat::kHermes, deep);
  ASSERT_EQ(parsed.calls.size(), 1u);
  EXPECT_LT(parsed.calls[0].arguments.size(), 100u);
}

TEST(ToolCalls, FormatIsReadFromTheTemplate) {
  EXPECT_EQ(DetectToolFormat("... <tool_call>\n ..."), ToolFormat::kHermes);
  EXPECT_EQ(DetectToolFormat("... [TOOL_CALLS] ..."), ToolFormat::kMistral);
  EXPECT_EQ(DetectToolFormat("<|start_header_id|> {\"name\": ..., \"parameters\": ...}"),
            ToolFormat::kLlama);
  EXPECT_EQ(DetectToolFormat("<｜tool▁call▁begin｜>"), ToolFormat::kDeepSeek);
  EXPECT_EQ(DetectToolFormat("<function=x></function>"), ToolFormat::kFunctionary);
  EXPECT_EQ(DetectToolFormat(">>>all\n"), ToolFormat::kFunctionary32);
  EXPECT_EQ(DetectToolFormat("<tool_call>{name}\n<arg_key>{key}</arg_key>"), ToolFormat::kGlm);
  EXPECT_EQ(DetectToolFormat("List of tools: <|tool_list_start|>["), ToolFormat::kLfm);
  EXPECT_EQ(DetectToolFormat("<|start|>assistant<|channel|>final<|message|>"),
            ToolFormat::kHarmony);
  EXPECT_EQ(DetectToolFormat("<|tool_call_begin|>"), ToolFormat::kKimi);
  EXPECT_EQ(DetectToolFormat(" functools[{\"name\""), ToolFormat::kFirefunction);
  EXPECT_EQ(DetectToolFormat("<|START_ACTION|>["), ToolFormat::kCommandR);
  EXPECT_EQ(DetectToolFormat("<|tool_call|>["), ToolFormat::kGranite);
  EXPECT_EQ(DetectToolFormat("<TOOLCALL>["), ToolFormat::kNemotron);
  EXPECT_EQ(DetectToolFormat("<tool_calls>\n{"), ToolFormat::kMiniMax);
  EXPECT_EQ(DetectToolFormat("List of tools: [{}]"), ToolFormat::kLfm);
  EXPECT_EQ(DetectToolFormat("<tool_call>\n<function=x>\n<parameter=a>"), ToolFormat::kHermes);
  EXPECT_EQ(DetectToolFormat("{{ messages }}"), ToolFormat::kJson);
}

}  // namespace
}  // namespace kvrm
