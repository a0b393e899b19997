// SPDX-License-Identifier: Apache-2.0
#include "grammar/gbnf.h"

#include <algorithm>
#include <string>
#include <unordered_map>

#include "base/utf8.h"
#include "grammar/source_reader.h"

namespace kvrm::grammar {
namespace {

bool IsNameChar(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
         c == '_';
}

class Parser : private SourceReader {
 public:
  Parser(std::string_view source, Ast& ast) : SourceReader(source), ast_(ast) {}

  Status Run() {
    if (source_.size() > kMaxGbnfBytes) {
      return Error{ErrorCode::kTooLarge, "the grammar has " + std::to_string(source_.size()) +
                                             " bytes; the limit is " +
                                             std::to_string(kMaxGbnfBytes)};
    }
    if (!IsValidUtf8(source_)) return Error{ErrorCode::kInvalidArgument, "grammar: invalid UTF-8"};
    SkipSpace(true);
    while (!Fails() && !AtEnd())
      ParseRule();
    if (!Fails()) CheckNames();
    if (Fails()) {
      const auto line = std::count(source_.begin(),
                                   source_.begin() + static_cast<std::ptrdiff_t>(error_pos_), '\n');
      return Error{ErrorCode::kInvalidArgument,
                   "grammar: line " + std::to_string(line + 1) + ": " + error_};
    }
    return Done{};
  }

 private:
  void SkipSpace(bool newlines) {
    while (!AtEnd()) {
      const char c = Peek();
      if (c == '#') {
        while (!AtEnd() && Peek() != '\n' && Peek() != '\r')
          ++pos_;
      } else if (c == ' ' || c == '\t' || (newlines && (c == '\n' || c == '\r'))) {
        ++pos_;
      } else {
        return;
      }
    }
  }

  std::string_view Name() {
    const std::size_t begin = pos_;
    while (IsNameChar(Peek()))
      ++pos_;
    if (pos_ == begin)
      Fail("a name is expected, not '" + std::string(source_.substr(pos_, 1)) + "'");
    return Fails() ? std::string_view() : source_.substr(begin, pos_ - begin);
  }

  RuleId Named(std::string_view name) {
    const auto [slot, is_new] = rules_.try_emplace(std::string(name), RuleId{0});
    if (!is_new) return slot->second;
    if (rules_.size() > kMaxGbnfRules)
      return Fail("more than " + std::to_string(kMaxGbnfRules) + " rules"), RuleId{0};
    first_use_.push_back(pos_ - name.size());
    return slot->second = ast_.AddRule(std::string(name));
  }

  void ParseRule() {
    const std::string_view name = Name();
    if (Fails()) return;
    const RuleId rule = Named(name);
    SkipSpace(false);
    if (!Take("::="))
      return Fail("'::=' is expected behind '" + std::string(name.substr(0, 64)) + "'");
    SkipSpace(true);
    const NodeId root = Alternatives(0);
    if (Fails()) return;
    if (ast_.rules()[rule].root != kNoNode)
      return Fail("rule '" + std::string(name.substr(0, 64)) + "' is defined twice");
    ast_.Define(rule, root);
    if (!AtEnd() && Peek() != '\n' && Peek() != '\r')
      return Fail("'" + std::string(1, Peek()) + "' is not expected here");
    SkipSpace(true);
  }

  void CheckNames() {
    const auto root = rules_.find("root");
    if (root == rules_.end()) return FailAt("there is no rule 'root'", 0);
    ast_.root = root->second;
    for (RuleId rule = 0; rule < ast_.rules().size(); ++rule) {
      if (ast_.rules()[rule].root != kNoNode) continue;
      return FailAt("rule '" + ast_.rules()[rule].name.substr(0, 64) + "' is not defined",
                    first_use_[rule]);
    }
  }

  NodeId Alternatives(std::uint32_t depth) {
    std::vector<NodeId> kids = {Sequence(depth)};
    while (!Fails() && Take("|")) {
      SkipSpace(true);
      kids.push_back(Sequence(depth));
    }
    return ast_.Alternate(std::move(kids));
  }

  NodeId Sequence(std::uint32_t depth) {
    std::vector<NodeId> kids;
    while (!Fails() && !AtEnd()) {
      const char c = Peek();
      if (c == '|' || c == ')' || c == '\n' || c == '\r') break;
      NodeId kid = Element(depth);
      if (Fails()) break;
      kid = Repeats(kid);
      kids.push_back(kid);
      SkipSpace(depth > 0);
    }
    return ast_.Concat(std::move(kids));
  }

  NodeId Element(std::uint32_t depth) {
    const char c = Peek();
    if (c == '"') return Literal();
    if (c == '[') return Class();
    if (c == '(') return Group(depth);
    if (c == '.') return ++pos_, ast_.Class(CodePointSet::All());
    if (c == '<' || c == '!') return Fail("tokens (<...>) are not supported"), ast_.Empty();
    if (!IsNameChar(c))
      return Fail("'" + std::string(1, c) + "' is not expected here"), ast_.Empty();
    const std::string_view name = Name();
    const RuleId rule = Named(name);
    return ast_.Call(rule);
  }

  NodeId Group(std::uint32_t depth) {
    if (depth + 1 > kMaxGbnfNesting) {
      return Fail("nested deeper than " + std::to_string(kMaxGbnfNesting)), ast_.Empty();
    }
    ++pos_;
    SkipSpace(true);
    const NodeId node = Alternatives(depth + 1);
    if (!Fails() && !Take(")")) Fail("')' is expected");
    return node;
  }

  // Repeats of repeats are products, which llama.cpp takes too.
  NodeId Repeats(NodeId node) {
    for (std::uint32_t count = 0; !Fails(); ++count) {
      std::uint32_t min = 0;
      std::uint32_t max = kUnbounded;
      const std::size_t before = pos_;
      SkipSpace(false);
      if (Take("*")) {
      } else if (Take("+")) {
        min = 1;
      } else if (Take("?")) {
        max = 1;
      } else if (Take("{")) {
        Bounds(min, max);
      } else {
        pos_ = before;
        return node;
      }
      if (count == 8) return Fail("more than 8 repeats of repeats"), node;
      if (!Fails()) node = ast_.Repeat(node, min, max);
    }
    return node;
  }

  std::uint32_t Number() {
    std::uint32_t value = 0;
    if (Peek() < '0' || Peek() > '9') return Fail("a number is expected"), 0;
    while (Peek() >= '0' && Peek() <= '9') {
      value = std::min(value * 10 + static_cast<std::uint32_t>(Peek() - '0'), 1'000'000u);
      ++pos_;
    }
    if (value > kMaxGbnfRepeat) Fail("a repeat of more than " + std::to_string(kMaxGbnfRepeat));
    return value;
  }

  void Bounds(std::uint32_t& min, std::uint32_t& max) {
    SkipSpace(false);
    if (Peek() != ',') min = Number();
    SkipSpace(false);
    max = min;
    if (!Fails() && Take(",")) {
      SkipSpace(false);
      max = Peek() == '}' ? kUnbounded : Number();
      SkipSpace(false);
    }
    if (!Fails() && !Take("}")) Fail("'}' is expected");
    if (!Fails() && max < min) Fail("a repeat whose end is before its beginning");
  }

  NodeId Literal() {
    ++pos_;
    std::string text;
    while (!Fails() && Peek() != '"') {
      if (AtEnd()) return Fail("a literal does not end"), ast_.Empty();
      AppendUtf8(text, Char());
    }
    Take("\"");
    return Fails() ? ast_.Empty() : ast_.Literal(text);
  }

  NodeId Class() {
    ++pos_;
    const bool negated = Take("^");
    CodePointSet set;
    while (!Fails() && Peek() != ']') {
      if (AtEnd()) return Fail("'[' without ']'"), ast_.Empty();
      const char32_t first = Char();
      char32_t last = first;
      if (Peek() == '-' && pos_ + 1 < source_.size() && source_[pos_ + 1] != ']') {
        ++pos_;
        last = Char();
      }
      if (!Fails() && last < first) Fail("a range that has no order");
      if (!Fails()) set.Add(first, last);
    }
    Take("]");
    return Fails() ? ast_.Empty() : ast_.Class(negated ? set.Negated() : set);
  }

  char32_t Char() {
    if (AtEnd()) return Fail("the text ends too early"), U'\0';
    if (Peek() != '\\') {
      const Utf8Char c = DecodeUtf8(source_, pos_);
      pos_ += c.size;
      return c.code_point;
    }
    ++pos_;
    const char c = Peek();
    ++pos_;
    switch (c) {
      case 'x':
        return Hex(2);
      case 'u':
        return Hex(4);
      case 'U':
        return Hex(8);
      case 't':
        return '\t';
      case 'r':
        return '\r';
      case 'n':
        return '\n';
      case '\\':
      case '"':
      case '[':
      case ']':
        return static_cast<char32_t>(c);
      default:
        return Fail("the escape '\\" + std::string(1, c) + "' is not known"), U'\0';
    }
  }

  char32_t Hex(std::size_t digits) {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < digits; ++i, ++pos_) {
      const int digit = AtEnd() ? -1 : HexValue(Peek());
      if (digit < 0) return Fail("an escape lacks digits"), U'\0';
      value = value * 16 + static_cast<std::uint64_t>(digit);
    }
    if (value > kLastCodePoint || (value >= 0xD800 && value <= 0xDFFF))
      return Fail("an escape for no character"), U'\0';
    return static_cast<char32_t>(value);
  }

  Ast& ast_;
  std::unordered_map<std::string, RuleId> rules_;
  std::vector<std::size_t> first_use_;  // by rule
};

}  // namespace

Status ParseGbnf(std::string_view source, Ast& ast) {
  return Parser(source, ast).Run();
}

}  // namespace kvrm::grammar
