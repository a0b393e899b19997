// SPDX-License-Identifier: Apache-2.0
#include "grammar/regex.h"

#include <array>
#include <string>

#include "base/utf8.h"
#include "grammar/source_reader.h"

namespace kvrm::grammar {
namespace {

CodePointSet Digits() {
  return CodePointSet::Of('0', '9');
}

CodePointSet Words() {
  CodePointSet set = Digits();
  set.Add('a', 'z');
  set.Add('A', 'Z');
  set.Add('_', '_');
  return set;
}

CodePointSet Spaces(RegexUse use) {
  CodePointSet set = CodePointSet::Of('\t', '\r');
  set.Add(' ', ' ');
  if (use == RegexUse::kWholeText) set.Remove('\v', '\v');
  return set;
}

CodePointSet Dot(RegexUse use) {
  CodePointSet set = CodePointSet::All();
  set.Remove('\n', '\n');
  if (use == RegexUse::kJsonString) {
    set.Remove('\r', '\r');
    set.Remove(0x2028, 0x2029);
  }
  return set;
}

std::string JsonEscape(char32_t c) {
  switch (c) {
    case '"':
      return "\\\"";
    case '\\':
      return "\\\\";
    case '\b':
      return "\\b";
    case '\f':
      return "\\f";
    case '\n':
      return "\\n";
    case '\r':
      return "\\r";
    case '\t':
      return "\\t";
    default:
      break;
  }
  constexpr std::string_view kHex = "0123456789abcdef";
  return {'\\', 'u', '0', '0', kHex[c >> 4], kHex[c & 15]};
}

class Parser : private SourceReader {
 public:
  Parser(std::string_view source, RegexUse use, Ast& ast)
      : SourceReader(source), use_(use), ast_(ast) {}

  Result<NodeId> Run() {
    if (source_.size() > kMaxRegexBytes) {
      return Error{ErrorCode::kTooLarge,
                   "a regular expression has " + std::to_string(source_.size()) +
                       " bytes; the limit is " + std::to_string(kMaxRegexBytes)};
    }
    if (!IsValidUtf8(source_)) return Error{ErrorCode::kInvalidArgument, "regex: invalid UTF-8"};
    const NodeId root = Alternatives(0);
    if (error_.empty() && pos_ < source_.size()) Fail("')' without '('");
    if (!error_.empty()) {
      return Error{ErrorCode::kInvalidArgument,
                   "regex: " + error_ + " at byte " + std::to_string(error_pos_)};
    }
    return root;
  }

 private:
  NodeId Alternatives(std::uint32_t depth) {
    std::vector<NodeId> kids;
    do {
      kids.push_back(Sequence(depth));
    } while (!Fails() && Take("|"));
    return ast_.Alternate(std::move(kids));
  }

  NodeId Sequence(std::uint32_t depth) {
    std::vector<NodeId> kids;
    const bool may_anchor = depth == 0;
    bool open_begin = use_ == RegexUse::kJsonString && may_anchor;
    bool open_end = open_begin;
    if (may_anchor && Take("^")) open_begin = false;
    if (open_begin) kids.push_back(Anything());
    while (!AtEnd() && Peek() != '|' && Peek() != ')') {
      if (Peek() == '$') {
        const std::size_t after = pos_ + 1;
        if (!may_anchor || (after < source_.size() && source_[after] != '|'))
          return Fail("'$' that does not end an alternative of the whole"), ast_.Empty();
        ++pos_;
        open_end = false;
        break;
      }
      kids.push_back(Repeated(depth));
    }
    if (open_end) kids.push_back(Anything());
    return ast_.Concat(std::move(kids));
  }

  NodeId Anything() { return ast_.Repeat(JsonChar(ast_), 0, kUnbounded); }

  NodeId Repeated(std::uint32_t depth) {
    NodeId node = Atom(depth);
    bool repeated = false;
    while (!Fails() && !AtEnd()) {
      std::uint32_t min = 0;
      std::uint32_t max = kUnbounded;
      const char c = Peek();
      if (c == '*' || c == '+' || c == '?') {
        ++pos_;
        min = c == '+' ? 1 : 0;
        max = c == '?' ? 1 : kUnbounded;
      } else if (c != '{' || !Bounds(min, max)) {
        break;
      }
      if (repeated) return Fail("a repeat of a repeat"), node;
      if (Peek() == '+') return Fail("possessive repeats are not supported"), node;
      Take("?");
      repeated = true;
      node = ast_.Repeat(node, min, max);
    }
    return node;
  }

  bool Number(std::uint32_t& value) {
    if (Peek() < '0' || Peek() > '9') return false;
    value = 0;
    while (Peek() >= '0' && Peek() <= '9') {
      value = std::min(value * 10 + static_cast<std::uint32_t>(Peek() - '0'), 100'000u);
      ++pos_;
    }
    return true;
  }

  // False, and nothing is taken: a brace that is no repeat, which is a character.
  bool Bounds(std::uint32_t& min, std::uint32_t& max) {
    const std::size_t begin = pos_;
    ++pos_;
    bool good = Number(min);
    max = min;
    if (good && Take(",")) {
      max = kUnbounded;
      Number(max);
    }
    good = good && Take("}");
    if (!good) {
      pos_ = begin;
      return false;
    }
    if (min > kMaxRegexRepeat || (max != kUnbounded && max > kMaxRegexRepeat)) {
      Fail("a repeat of more than " + std::to_string(kMaxRegexRepeat));
    } else if (max < min) {
      Fail("a repeat whose end is before its beginning");
    }
    return true;
  }

  NodeId Atom(std::uint32_t depth) {
    const char c = Peek();
    if (c == '(') return Group(depth);
    if (c == '[') return Emit(Class());
    if (c == '\\') return Emit(Escape(false));
    if (c == '*' || c == '+' || c == '?') return Fail("a repeat of nothing"), ast_.Empty();
    if (c == '^') return Fail("'^' that does not begin an alternative of the whole"), ast_.Empty();
    if (c == '{' && LooksLikeBounds()) return Fail("a repeat of nothing"), ast_.Empty();
    if (c == '.') {
      ++pos_;
      return Emit(Dot(use_));
    }
    const char32_t code_point = Char();
    return Emit(CodePointSet::Of(code_point, code_point));
  }

  bool LooksLikeBounds() {
    const std::size_t begin = pos_;
    std::uint32_t min = 0;
    std::uint32_t max = 0;
    const bool is = Bounds(min, max);
    if (!Fails()) pos_ = begin;
    return is;
  }

  char32_t Char() {
    const Utf8Char c = DecodeUtf8(source_, pos_);
    pos_ += c.size;
    return c.code_point;
  }

  NodeId Group(std::uint32_t depth) {
    if (depth + 1 > kMaxRegexNesting) {
      return Fail("groups nested deeper than " + std::to_string(kMaxRegexNesting)), ast_.Empty();
    }
    ++pos_;
    if (Take("?")) {
      if (Peek() == '=' || Peek() == '!' || source_.substr(pos_, 2) == "<=" ||
          source_.substr(pos_, 2) == "<!") {
        return Fail("look-around is not supported"), ast_.Empty();
      }
      const bool named = Take("P<") || Take("<");
      if (named) {
        while (!AtEnd() && Peek() != '>')
          ++pos_;
        if (!Take(">")) return Fail("a group's name does not end"), ast_.Empty();
      } else if (!Take(":")) {
        return Fail("flags and special groups are not supported"), ast_.Empty();
      }
    }
    const NodeId node = Alternatives(depth + 1);
    if (!Fails() && !Take(")")) Fail("'(' without ')'");
    return node;
  }

  char32_t Hex(std::size_t digits) {
    char32_t value = 0;
    for (std::size_t i = 0; i < digits; ++i) {
      const int digit = AtEnd() ? -1 : HexValue(Peek());
      if (digit < 0) return Fail("an escape lacks digits"), U'\0';
      value = value * 16 + static_cast<char32_t>(digit);
      ++pos_;
    }
    return Checked(value);
  }

  char32_t Checked(char32_t value) {
    if (value > kLastCodePoint || (value >= 0xD800 && value <= 0xDFFF))
      return Fail("an escape for no character"), U'\0';
    return value;
  }

  char32_t BracedHex() {
    char32_t value = 0;
    std::size_t count = 0;
    for (; !AtEnd() && Peek() != '}' && count < 7; ++count, ++pos_) {
      const int digit = HexValue(Peek());
      if (digit < 0) return Fail("an escape lacks digits"), U'\0';
      value = value * 16 + static_cast<char32_t>(digit);
    }
    if (count == 0 || !Take("}")) return Fail("an escape lacks its end"), U'\0';
    return Checked(value);
  }

  CodePointSet Escape(bool in_class) {
    ++pos_;
    if (AtEnd()) return Fail("'\\' at the end"), CodePointSet();
    const char c = source_[pos_];
    const bool is_word = HexValue(c) >= 0 || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (!is_word) {
      const char32_t code_point = Char();
      return CodePointSet::Of(code_point, code_point);
    }
    ++pos_;
    switch (c) {
      case 'd':
        return Digits();
      case 'D':
        return Digits().Negated();
      case 'w':
        return Words();
      case 'W':
        return Words().Negated();
      case 's':
        return Spaces(use_);
      case 'S':
        return Spaces(use_).Negated();
      default:
        break;
    }
    const char32_t one = EscapedChar(c, in_class);
    return Fails() ? CodePointSet() : CodePointSet::Of(one, one);
  }

  char32_t EscapedChar(char c, bool in_class) {
    switch (c) {
      case 't':
        return '\t';
      case 'n':
        return '\n';
      case 'r':
        return '\r';
      case 'f':
        return '\f';
      case 'v':
        return '\v';
      case 'x':
        return Take("{") ? BracedHex() : Hex(2);
      case 'u':
        return Take("{") ? BracedHex() : Hex(4);
      case 'b':
        if (in_class) return '\b';
        break;
      case 'c':
        if ((Peek() | 0x20) >= 'a' && (Peek() | 0x20) <= 'z')
          return static_cast<char32_t>(source_[pos_++] & 31);
        break;
      case '0':
        if (Peek() < '0' || Peek() > '9') return U'\0';
        break;
      default:
        break;
    }
    if (c >= '1' && c <= '9') return Fail("back references are not supported"), U'\0';
    if (c == 'b' || c == 'B') return Fail("word boundaries are not supported"), U'\0';
    return Fail("the escape '\\" + std::string(1, c) + "' is not supported"), U'\0';
  }

  CodePointSet Class() {
    ++pos_;
    const bool negated = Take("^");
    CodePointSet set;
    for (bool first = true; !Fails(); first = false) {
      if (AtEnd()) return Fail("'[' without ']'"), set;
      if (Peek() == ']' && !(first && use_ == RegexUse::kWholeText)) break;
      if (source_.substr(pos_, 2) == "[:")
        return Fail("classes like [:alpha:] are not supported"), set;
      const CodePointSet low = ClassItem();
      const bool is_range = Peek() == '-' && pos_ + 1 < source_.size() && source_[pos_ + 1] != ']';
      if (!is_range) {
        set.Add(low);
        continue;
      }
      ++pos_;
      const CodePointSet high = ClassItem();
      if (Fails()) break;
      if (low.Count() != 1 || high.Count() != 1 || low.ranges()[0].first > high.ranges()[0].first) {
        return Fail("a range that has no order"), set;
      }
      set.Add(low.ranges()[0].first, high.ranges()[0].first);
    }
    ++pos_;
    return negated ? set.Negated() : set;
  }

  CodePointSet ClassItem() {
    if (AtEnd()) return Fail("'[' without ']'"), CodePointSet();
    if (Peek() == '\\') return Escape(true);
    const char32_t c = Char();
    return CodePointSet::Of(c, c);
  }

  // In a string of JSON what may not stand there as it is gets its escape. Of large classes the
  // control characters without a short one are left out: nobody means them.
  NodeId Emit(const CodePointSet& set) {
    if (Fails()) return ast_.Empty();
    if (use_ == RegexUse::kWholeText) return ast_.Class(set);
    CodePointSet plain = set;
    plain.Remove(0, 0x1F);
    plain.Remove('"', '"');
    plain.Remove('\\', '\\');
    std::vector<NodeId> kids;
    if (!plain.empty()) kids.push_back(ast_.Class(plain));
    const bool is_large = set.Count() > 64;
    for (char32_t c = 0; c <= '\\'; ++c) {
      if (c >= 0x20 && c != '"' && c != '\\') continue;
      if (!set.Contains(c)) continue;
      const std::string escape = JsonEscape(c);
      if (!is_large || escape.size() == 2) kids.push_back(ast_.Literal(escape));
    }
    return ast_.Alternate(std::move(kids));
  }

  const RegexUse use_;
  Ast& ast_;
};

}  // namespace

CodePointSet PlainJsonChars() {
  CodePointSet set = CodePointSet::All();
  set.Remove(0, 0x1F);
  set.Remove('"', '"');
  set.Remove('\\', '\\');
  return set;
}

NodeId JsonChar(Ast& ast) {
  CodePointSet short_escapes;
  for (const char32_t c : {U'"', U'\\', U'/', U'b', U'f', U'n', U'r', U't'})
    short_escapes.Add(c, c);
  CodePointSet hex = Digits();
  hex.Add('a', 'f');
  hex.Add('A', 'F');
  CodePointSet not_d = hex;
  not_d.Remove('d', 'd');
  not_d.Remove('D', 'D');
  CodePointSet d = CodePointSet::Of('d', 'd');
  d.Add('D', 'D');
  const NodeId any_hex = ast.Class(hex);
  const NodeId plane =
      ast.Alternate({ast.Concat({ast.Class(not_d), any_hex}),
                     ast.Concat({ast.Class(d), ast.Class(CodePointSet::Of('0', '7'))})});
  const NodeId code = ast.Concat({ast.Char('u'), plane, any_hex, any_hex});
  const NodeId escape =
      ast.Concat({ast.Char('\\'), ast.Alternate({ast.Class(short_escapes), code})});
  return ast.Alternate({ast.Class(PlainJsonChars()), escape});
}

Result<NodeId> ParseRegex(std::string_view source, RegexUse use, Ast& ast) {
  return Parser(source, use, ast).Run();
}

}  // namespace kvrm::grammar
