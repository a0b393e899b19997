// SPDX-License-Identifier: Apache-2.0
// GBNF: every construct, what matches, and what is refused.
#include <gtest/gtest.h>

#include "grammar/grammar_for_test.h"

namespace kvrm {
namespace {

struct Case {
  const char* grammar;
  std::vector<std::string> good;
  std::vector<std::string> bad;
};

void Check(const Case& c) {
  SCOPED_TRACE(c.grammar);
  const auto grammar = Compiled(GrammarKind::kGbnf, c.grammar);
  for (const std::string& text : c.good)
    EXPECT_TRUE(Matches(grammar, text)) << "'" << text << "'";
  for (const std::string& text : c.bad)
    EXPECT_FALSE(Matches(grammar, text)) << "'" << text << "'";
}

TEST(Gbnf, LiteralsAlternativesAndGroups) {
  Check({R"(root ::= "yes" | "no")", {"yes", "no"}, {"", "ye", "yesno", "y"}});
  Check({R"(root ::= ("a" | "b") "c" | )", {"ac", "bc", ""}, {"a", "abc"}});
  Check({"root ::= (\n  \"a\" |\n  # or else\n  \"b\"\n)\n", {"a", "b"}, {"ab"}});
  Check({"# first\nroot ::=\n  a b # why\na ::= \"x\"\nb ::= \"y\"", {"xy"}, {"x", "y"}});
}

TEST(Gbnf, ClassesAndEscapes) {
  Check({R"(root ::= [a-c0-2_-]+)", {"a1-", "___"}, {"d", "", "a d"}});
  Check({R"(root ::= [^"\\]*)", {"", "h\xC3\xA9llo", "\xF0\x9F\x98\x80"}, {"\"", "a\\"}});
  Check({R"(root ::= "\x41\u00e9\U0001F600\n\t\r\\\"\[\]")",
         {"A\xC3\xA9\xF0\x9F\x98\x80\n\t\r\\\"[]"},
         {"A"}});
  Check({R"(root ::= [\x00-\x1F] [\]\[])", {"\x01]", "\x1f["}, {"a]"}});
  Check({R"(root ::= .)", {"a", "\n", "\xE2\x82\xAC"}, {"", "ab", "\x80", "\xE2\x82"}});
  Check({R"(root ::= [あ-ん]+)", {"\xE3\x81\x82\xE3\x81\x84"}, {"a", "\xE3\x81"}});
}

TEST(Gbnf, Repeats) {
  Check({R"(root ::= "a"? "b"* "c"+)", {"c", "abbcc", "ac"}, {"", "a", "aac"}});
  Check({R"(root ::= "a"{2})", {"aa"}, {"a", "aaa"}});
  Check({R"(root ::= "a"{2,})", {"aa", "aaaaa"}, {"a"}});
  Check({R"(root ::= "a"{1,3} "b"{,2})", {"a", "aaab", "abb"}, {"", "aaaa", "abbb"}});
  Check({R"(root ::= ("ab" | "c"){2,3})", {"abab", "cc", "cabc"}, {"c", "cccc"}});
}

TEST(Gbnf, LongRepeatsCountExactly) {
  const auto grammar =
      Compiled(GrammarKind::kGbnf, R"(root ::= [a-z]{100,300} "." ("x" [0-9]+ ";"){0,500})");
  for (const std::size_t n : {99u, 100u, 127u, 128u, 191u, 192u, 255u, 299u, 300u, 301u}) {
    EXPECT_EQ(Matches(grammar, std::string(n, 'q') + "."), n >= 100 && n <= 300) << n;
  }
  std::string many;
  for (int i = 0; i < 500; ++i)
    many += "x" + std::to_string(i) + ";";
  EXPECT_TRUE(Matches(grammar, std::string(100, 'q') + "." + many));
  EXPECT_FALSE(Matches(grammar, std::string(100, 'q') + "." + many + "x1;"));
}

TEST(Gbnf, RecursionAndAmbiguity) {
  Check({R"g(root ::= "(" root ")" | "")g", {"", "()", "((()))"}, {"(", ")", "(()"}});
  Check({R"g(root ::= e
e ::= t (("+" | "-") t)*
t ::= f ("*" f)*
f ::= [0-9]+ | "(" e ")")g",
         {"1", "1+2*3", "(1+2)*(3-4)"},
         {"1+", "()", "(1", "1)"}});
  // Right recursion takes no stack.
  const auto list = Compiled(GrammarKind::kGbnf, "root ::= \"a\" root | \"b\"");
  EXPECT_TRUE(Matches(list, std::string(5000, 'a') + "b"));
  Check({R"(root ::= a | b
a ::= "x" a "1" | "x1"
b ::= "x" b "2" | "x2")",
         {"xx11", "xxx222"},
         {"xx12", "x"}});
}

// llama.cpp's grammars for JSON and for chess, by their constructs.
TEST(Gbnf, WellKnownGrammars) {
  Check({R"gbnf(root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws

# Optional space: by convention, applied in this grammar after literal chars when allowed
ws ::= | " " | "\n" [ \t]{0,20}
)gbnf",
         {R"({})", R"({"a": [1, -2.5e3, "x\n", {"b": null}], "c": true})",
          "{\n  \"a\": \"\\u00e9\"}"},
         {R"([])", R"({"a"})", R"({"a": 01})", R"({"a": "
"})"}});
  Check({R"gbnf(root ::= "1. " move " " move "\n" ([1-9] [0-9]? ". " move " " move "\n")+
move ::= (pawn | nonpawn | castle) [+#]?
nonpawn ::= [NBKQR] [a-h]? [1-8]? "x"? [a-h] [1-8]
pawn ::= ([a-h] "x")? [a-h] [1-8] ("=" [NBKQR])?
castle ::= "O-O" "-O"?
)gbnf",
         {"1. e4 e5\n2. Nf3 Nc6\n", "1. d4 d5\n2. O-O-O Qxd8+\n"},
         {"1. e4\n", "1. e4 e5\n"}});
}

TEST(Gbnf, RefusesByName) {
  const auto error = [](const char* text) { return CompileError(GrammarKind::kGbnf, text); };
  EXPECT_EQ(error("a ::= \"x\""), "grammar: line 1: there is no rule 'root'");
  EXPECT_EQ(error("root ::= \"x\"\n\nroot ::= b"), "grammar: line 3: rule 'root' is defined twice");
  EXPECT_EQ(error("root ::= \"x\" \n  b\nb ::= \"\""),
            "grammar: line 2: '::=' is expected behind 'b'");
  EXPECT_EQ(error("root ::= a\n"), "grammar: line 1: rule 'a' is not defined");
  EXPECT_EQ(error("root ::= \"abc"), "grammar: line 1: a literal does not end");
  EXPECT_EQ(error("root ::= [abc"), "grammar: line 1: '[' without ']'");
  EXPECT_EQ(error("root ::= (\"a\""), "grammar: line 1: ')' is expected");
  EXPECT_EQ(error("root ::= \"a\")"), "grammar: line 1: ')' is not expected here");
  EXPECT_EQ(error("root ::= <think>"), "grammar: line 1: tokens (<...>) are not supported");
  EXPECT_EQ(error("root ::= \"a\"{3,2}"),
            "grammar: line 1: a repeat whose end is before its beginning");
  EXPECT_EQ(error("root ::= \"a\"{1,9999}"), "grammar: line 1: a repeat of more than 2000");
  EXPECT_EQ(error("root ::= \"\\q\""), "grammar: line 1: the escape '\\q' is not known");
  EXPECT_EQ(error("root ::= root \"a\" | \"b\""),
            "rule 'root' calls itself before it matches anything (left recursion)");
  EXPECT_EQ(error("root ::= n root | \"b\"\nn ::= \"\" | \"x\""),
            "rule 'root' calls itself before it matches anything (left recursion)");
  EXPECT_EQ(error("root ::= \"a\" root"), "no text matches the grammar: rule 'root' cannot end");
}

}  // namespace
}  // namespace kvrm
