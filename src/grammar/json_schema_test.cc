// SPDX-License-Identifier: Apache-2.0
// JSON schemas: what the compiled grammar takes, and what is refused by name.
#include "grammar/json_schema.h"

#include <gtest/gtest.h>

#include "grammar/grammar_for_test.h"

namespace kvrm {
namespace {

struct Case {
  const char* schema;
  std::vector<std::string> good;
  std::vector<std::string> bad;
};

void Check(const Case& c) {
  SCOPED_TRACE(c.schema);
  const SharedGrammar grammar = Compiled(GrammarKind::kJsonSchema, c.schema);
  for (const std::string& text : c.good)
    EXPECT_TRUE(Matches(grammar, text)) << text;
  for (const std::string& text : c.bad)
    EXPECT_FALSE(Matches(grammar, text)) << text;
}

std::string SchemaError(std::string schema) {
  return CompileError(GrammarKind::kJsonSchema, std::move(schema));
}

TEST(JsonSchema, Scalars) {
  Check({R"({"type":"string"})",
         {R"("")", R"("a\"\\\/\b\u00e9")", "\"\xC3\xA9\""},
         {R"(")", R"("\x")", "\"\n\"", R"("\ud800")", "1", "\"\xC3\""}});
  Check({R"({"type":"boolean"})", {"true", "false"}, {"null", "tru", "True"}});
  Check({R"({"type":"null"})", {"null"}, {"", "nil"}});
  Check({R"({"type":"integer"})", {"0", "-1", "123456789012345"}, {"01", "1.0", "-", "+1", "1e3"}});
  Check({R"({"type":"number"})", {"0", "-1.5", "1e10", "2.5E-3"}, {".5", "1.", "1e", "NaN"}});
  Check({R"({"type":["string","null"]})", {R"("a")", "null"}, {"1"}});
  Check({R"({})", {"1", "[]", R"({"a":[null]})"}, {"", "x"}});
  Check({"true", {"1", "\"a\""}, {"tru"}});
}

TEST(JsonSchema, StringBounds) {
  Check({R"({"type":"string","minLength":2,"maxLength":3})",
         {R"("ab")", R"("abc")", R"("\n\u00e9")", "\"\xF0\x9F\x98\x80\xC3\xA9\""},
         {R"("a")", R"("abcd")", R"("")"}});
  Check({R"({"type":"string","maxLength":0})", {R"("")"}, {R"("a")"}});
  const SharedGrammar grammar = Compiled(GrammarKind::kJsonSchema, R"({"maxLength":1000})");
  for (const std::size_t n : {0u, 63u, 64u, 65u, 640u, 999u, 1000u, 1001u})
    EXPECT_EQ(Matches(grammar, "\"" + std::string(n, 'x') + "\""), n <= 1000) << n;
}

TEST(JsonSchema, PatternsAreSearchedForInTheContent) {
  Check({R"({"pattern":"^[a-z]{2,3}$"})", {R"("ab")", R"("abc")"}, {R"("a")", R"("abcd")"}});
  Check({R"({"pattern":"ab+c"})", {R"("xxabbcx")", R"("abc")"}, {R"("ac")"}});
  Check({R"({"pattern":"^a|b$"})", {R"("axx")", R"("xxb")"}, {R"("xa")", R"("bx")"}});
  Check({R"({"pattern":"^\\d+\"\\\\\\s$"})",
         {R"("12\"\\\n")", R"("1\"\\ ")"},
         {R"("1")", "\"1\"\\ \""}});
}

TEST(JsonSchema, Formats) {
  Check({R"({"format":"date"})",
         {R"("2024-02-29")", R"("2000-02-29")", R"("1999-12-31")"},
         {R"("2023-02-29")", R"("1900-02-29")", R"("2024-04-31")", R"("2024-13-01")", R"("x")"}});
  Check({R"({"format":"date-time"})",
         {R"("2024-05-06T07:08:09Z")", R"("2024-05-06T23:59:59.123+02:00")"},
         {R"("2024-05-06 07:08:09Z")", R"("2024-05-06T24:00:00Z")"}});
  Check({R"({"format":"time"})", {R"("07:08:09Z")"}, {R"("7:08:09Z")"}});
  Check({R"({"format":"uuid"})",
         {R"("123e4567-e89b-12d3-a456-426614174000")"},
         {R"("123e4567e89b12d3a456426614174000")"}});
  Check({R"({"format":"ipv4"})", {R"("127.0.0.1")", R"("255.255.255.0")"}, {R"("256.1.1.1")"}});
  Check({R"({"format":"email"})", {R"("a.b@example.org")"}, {R"("a@")", R"("@b")"}});
  Check({R"({"format":"uri"})", {R"("https://example.org/a/b?c=d")"}, {R"("example")"}});
  EXPECT_EQ(SchemaError(R"({"format":"regex"})"),
            "json_schema: the format 'regex' is not supported");
}

TEST(JsonSchema, IntegerBoundsExhaustively) {
  for (const auto& [low, high] : std::vector<std::pair<int, int>>{{0, 9},
                                                                  {-5, 5},
                                                                  {7, 123},
                                                                  {-120, -8},
                                                                  {99, 101},
                                                                  {-1, 0},
                                                                  {10, 10},
                                                                  {0, 1000},
                                                                  {-999, 1}}) {
    const SharedGrammar grammar =
        Compiled(GrammarKind::kJsonSchema, R"({"type":"integer","minimum":)" + std::to_string(low) +
                                               R"(,"maximum":)" + std::to_string(high) + "}");
    for (int n = -1300; n <= 1300; ++n)
      ASSERT_EQ(Matches(grammar, std::to_string(n)), low <= n && n <= high)
          << n << " in " << low << ".." << high;
  }
  Check({R"({"type":"integer","exclusiveMinimum":3})", {"4", "99999"}, {"3", "-4", "04"}});
  Check({R"({"type":"integer","maximum":2.5})", {"2", "-7"}, {"3"}});
  Check({R"({"type":"integer","exclusiveMinimum":2.5,"exclusiveMaximum":4})", {"3"}, {"2", "4"}});
}

TEST(JsonSchema, NumberBounds) {
  Check({R"({"type":"number","minimum":0,"maximum":1})",
         {"0", "1", "0.25", "1.0", "0.999999"},
         {"-0.1", "1.1", "1.000001", "2", "-1"}});
  Check({R"({"type":"number","exclusiveMinimum":-2,"exclusiveMaximum":3})",
         {"-1.5", "-1", "0", "2.999", "-0.5"},
         {"-2", "-2.5", "3", "3.0", "-2.0"}});
  Check({R"({"type":"number","exclusiveMinimum":0})", {"0.5", "7"}, {"0", "0.0", "-1"}});
  Check({R"({"type":"number","minimum":-3,"maximum":-1})",
         {"-1", "-3.0", "-2.7"},
         {"0", "-0.9", "-3.1"}});
  EXPECT_EQ(SchemaError(R"({"type":"number","minimum":0.5})"),
            "json_schema: 'minimum' of a number must be whole; '5E-1' is not supported");
}

TEST(JsonSchema, Objects) {
  const char* schema = R"({"type":"object","properties":{"a":{"type":"integer"},
      "b":{"type":"string"},"c":{"type":"null"}},"required":["b"],"additionalProperties":false})";
  Check({schema,
         {R"({"b":"x"})", R"({"a":1,"b":"x"})", R"({"a": 1, "b": "x", "c": null})",
          R"({"b":"x","c":null})", "{\n  \"b\": \"x\"\n}"},
         {R"({})", R"({"a":1})", R"({"b":"x","a":1})", R"({"b":"x","b":"y"})", R"({"b":"x",})",
          R"({"b":"x","d":1})", R"({"b":1})"}});
  Check({R"({"properties":{"a":{},"b":{}}})",
         {"{}", R"({"a":1})", R"({"b":[]})", R"({"a":1,"b":2})"},
         {R"({"c":1})", "[]"}});
  Check({R"({"type":"object","properties":{"ab":{"type":"null"}},
             "additionalProperties":{"type":"integer"}})",
         {"{}", R"({"ab":null})", R"({"x":1,"abc":2})", R"({"ab":null,"a":1,"":2})"},
         {R"({"ab":1})", R"({"x":1,"ab":2})", R"({"x":null})"}});
  Check({R"({"type":"object","required":["z"]})", {R"({"z":[1]})"}, {"{}"}});
  Check({R"({"type":"object"})", {"{}", R"({"a":{"b":1}})"}, {"[]"}});
  Check({R"({"type":"object","properties":{"é\"\n":{"type":"null"}},"required":["é\"\n"]})",
         {"{\"\xC3\xA9\\\"\\n\":null}"},
         {"{}"}});
  EXPECT_EQ(
      SchemaError(
          R"({"type":"object","properties":{},"required":["q"],"additionalProperties":false})"),
      "no text matches the grammar: rule 'the schema' cannot end");
}

TEST(JsonSchema, ManyOptionalPropertiesStaySmall) {
  std::string schema = R"({"type":"object","properties":{)";
  for (int i = 0; i < 400; ++i)
    schema += (i ? ",\"p" : "\"p") + std::to_string(i) + R"(":{"type":"integer"})";
  const SharedGrammar grammar = Compiled(GrammarKind::kJsonSchema, schema + "}}");
  EXPECT_TRUE(Matches(grammar, R"({"p3":1,"p77":2,"p399":3})"));
  EXPECT_FALSE(Matches(grammar, R"({"p77":2,"p3":1})"));
  EXPECT_LT(grammar->automaton().num_states(), 10'000u);
}

TEST(JsonSchema, Arrays) {
  Check({R"({"type":"array","items":{"type":"integer"},"minItems":1,"maxItems":3})",
         {"[1]", "[1,2]", "[ 1, 2, 3 ]"},
         {"[]", "[1,2,3,4]", "[1,]", R"(["a"])"}});
  Check({R"({"type":"array"})", {"[]", R"([1,"a",[null]])"}, {"[", "{}"}});
  Check({R"({"maxItems":0})", {"[]"}, {"[1]"}});
  Check({R"({"prefixItems":[{"type":"integer"},{"type":"null"}],"items":false,"minItems":1})",
         {"[1]", "[1,null]"},
         {"[]", "[null]", "[1,null,1]", "[1,1]"}});
  Check({R"({"prefixItems":[{"type":"integer"}],"items":{"type":"null"}})",
         {"[]", "[1]", "[1,null,null]"},
         {"[null]", "[1,1]"}});
  const SharedGrammar grammar = Compiled(
      GrammarKind::kJsonSchema, R"({"type":"array","items":{"type":"string"},"maxItems":500})");
  const auto array_of = [](int n) {
    std::string text = "[";
    for (int i = 0; i < n; ++i)
      text += i ? ",\"x\"" : "\"x\"";
    return text + "]";
  };
  EXPECT_TRUE(Matches(grammar, array_of(500)));
  EXPECT_FALSE(Matches(grammar, array_of(501)));
}

TEST(JsonSchema, EnumsAndUnions) {
  Check({R"({"enum":["a",1,null,{"x":[1]}]})",
         {R"("a")", "1", "null", R"({"x":[1]})"},
         {"2", R"("b")"}});
  Check({R"({"const":"hi"})", {R"("hi")"}, {R"("h")"}});
  Check({R"({"type":"string","enum":["a",1]})", {R"("a")"}, {"1"}});
  Check({R"({"anyOf":[{"type":"integer"},{"type":"string"}]})", {"1", R"("x")"}, {"null"}});
  Check({R"({"oneOf":[{"const":1},{"const":2}]})", {"1", "2"}, {"3"}});
  Check({R"({"type":"object","properties":{"k":{"const":"a"}},"required":["k"],
             "anyOf":[{"properties":{"v":{"type":"integer"}},"required":["v"]},
                      {"properties":{"w":{"type":"null"}},"required":["w"]}]})",
         {R"({"k":"a","v":1})", R"({"k":"a","w":null})"},
         {R"({"k":"a"})", R"({"v":1})"}});
  Check({R"({"allOf":[{"properties":{"a":{"type":"integer"}},"required":["a"]},
                      {"properties":{"a":{"minimum":3},"b":{}}}]})",
         {R"({"a":3})", R"({"a":4,"b":1})"},
         {R"({"a":2})", "{}"}});
  Check({R"({"allOf":[{"type":"integer","minimum":2},{"maximum":5},{"minimum":4}]})",
         {"4", "5"},
         {"3", "6", "2"}});
}

TEST(JsonSchema, References) {
  Check({R"({"$defs":{"n":{"type":"object","properties":{"v":{"type":"integer"},
             "next":{"anyOf":[{"$ref":"#/$defs/n"},{"type":"null"}]}},
             "required":["v","next"],"additionalProperties":false}},"$ref":"#/$defs/n"})",
         {R"({"v":1,"next":null})", R"({"v":1,"next":{"v":2,"next":null}})"},
         {R"({"v":1})", R"({"v":1,"next":{}})"}});
  Check({R"({"type":"object","properties":{"c":{"type":"array","items":{"$ref":"#"}}}})",
         {"{}", R"({"c":[{},{"c":[]}]})"},
         {R"({"c":[1]})"}});
  Check({R"({"definitions":{"a/b":{"$ref":"#/definitions/c"},"c":{"type":"null"}},
             "properties":{"x":{"$ref":"#/definitions/a~1b","description":"d"}}})",
         {R"({"x":null})"},
         {R"({"x":1})"}});
  EXPECT_EQ(
      SchemaError(R"({"$ref":"http://example.org/a"})"),
      "json_schema: $ref 'http://example.org/a' leads out of the schema; only '#...' is supported");
  EXPECT_EQ(SchemaError(R"({"$ref":"#/$defs/none"})"),
            "json_schema: $ref '#/$defs/none' leads nowhere");
  EXPECT_EQ(
      SchemaError(
          R"({"$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"})"),
      "rule '#/$defs/a' calls itself before it matches anything (left recursion)");
}

TEST(JsonSchema, MergesOnlyWhatStaysTrue) {
  const std::string both = "json_schema: allOf, anyOf or $ref would have to merge two of '";
  EXPECT_EQ(
      SchemaError(R"({"allOf":[{"prefixItems":[{"type":"integer"}]},{"items":{"minimum":3}}]})"),
      both + "prefixItems'");
  EXPECT_EQ(SchemaError(R"({"allOf":[{"pattern":"a"},{"pattern":"b"}]})"), both + "pattern'");
  EXPECT_EQ(SchemaError(R"({"allOf":[{"anyOf":[{},true]},{"anyOf":[{"const":1}]}]})"),
            both + "anyOf'");
  EXPECT_EQ(SchemaError(R"({"allOf":[{"const":1},{"const":2}]})"),
            "no text matches the grammar: rule 'the schema' cannot end");
  Check({R"({"allOf":[{"properties":{"a":{}},"additionalProperties":{"type":"integer"}},
                      {"properties":{"b":{"minimum":5}}}]})",
         {R"({"a":null,"b":7,"c":1})", R"({"b":5})"},
         {R"({"b":4})", R"({"b":"x"})"}});
  Check({R"({"required":["z","z"]})", {R"({"z":1})"}, {R"({"z":1,"z":2})"}});
}

TEST(JsonSchema, RefusesWhatItDoesNotUnderstand) {
  for (const char* keyword : {"not", "if", "then", "else", "dependentRequired", "dependentSchemas",
                              "patternProperties", "propertyNames", "contains", "minContains",
                              "maxContains", "maxProperties", "unevaluatedItems", "$dynamicRef"}) {
    const std::string schema =
        std::string(R"({"type":"object","properties":{"a":{}},")") + keyword + R"(":{}})";
    EXPECT_EQ(SchemaError(schema), std::string("json_schema: '") + keyword + "' is not supported");
  }
  EXPECT_EQ(SchemaError(R"({"type":"integer","multipleOf":3})"),
            "json_schema: 'multipleOf' is not supported");
  EXPECT_EQ(SchemaError(R"({"type":"array","uniqueItems":true})"),
            "json_schema: 'uniqueItems' is not supported");
  EXPECT_EQ(SchemaError(R"({"type":"text"})"), "json_schema: type 'text' does not exist");
  EXPECT_EQ(SchemaError(R"({"type":"string","pattern":"a","maxLength":3})"),
            "json_schema: of 'pattern', 'format' and 'minLength' or 'maxLength' only one at a time "
            "is supported");
  EXPECT_EQ(SchemaError(R"s({"pattern":"(?=a)"})s"),
            "json_schema: regex: look-around is not supported at byte 2");
  EXPECT_EQ(SchemaError("[]"), "json_schema: a schema must be an object or a boolean");
  EXPECT_EQ(SchemaError("{"), "json_schema: invalid JSON at byte 1: incomplete JSON");
}

TEST(JsonObject, TakesAnyObjectAndNothingElse) {
  const SharedGrammar grammar = Compiled(GrammarKind::kJsonObject, "");
  for (const char* good : {"{}", R"({"a":[1,2,{"b":"c"}],"d":null})", "{\n  \"a\": 1.5e3\n}"})
    EXPECT_TRUE(Matches(grammar, good)) << good;
  for (const char* bad : {"", "[]", "1", R"({"a"})", R"({"a":1,})", R"({a:1})", "{} ", " {}"})
    EXPECT_FALSE(Matches(grammar, bad)) << bad;
}

}  // namespace
}  // namespace kvrm
