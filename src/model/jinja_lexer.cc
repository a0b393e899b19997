// SPDX-License-Identifier: Apache-2.0
#include "model/jinja_lexer.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

#include "model/jinja_text.h"

namespace kvrm::jinja {
namespace {

bool IsDigit(char c) {
  return c >= '0' && c <= '9';
}
bool IsNameStart(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (c & 0x80) != 0;
}
bool IsNameChar(char c) {
  return IsNameStart(c) || IsDigit(c);
}

// \r\n and \r become \n; one newline at the end is dropped.
std::string NormalizeNewlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out.push_back(source[i]);
      continue;
    }
    out.push_back('\n');
    if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)), view_(source_) {}

  Result<std::vector<Token>> Run() {
    while (!failed_ && pos_ < view_.size())
      Root();
    if (failed_) {
      return Error{ErrorCode::kInvalidArgument,
                   "line " + std::to_string(error_line_) + ": " + error_};
    }
    Emit(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  void Fail(std::string message) {
    if (failed_) return;
    failed_ = true;
    error_ = std::move(message);
    error_line_ = LineAt(pos_);
  }

  // Lines are counted as the position moves forward, so the whole scan is linear.
  std::uint32_t LineAt(std::size_t pos) {
    if (pos > line_pos_) {
      line_ += static_cast<std::uint32_t>(
          std::count(view_.begin() + static_cast<std::ptrdiff_t>(line_pos_),
                     view_.begin() + static_cast<std::ptrdiff_t>(pos), '\n'));
      line_pos_ = pos;
    }
    return line_;
  }

  Token& Emit(TokenKind kind, std::string text) {
    Token& token = tokens_.emplace_back();
    token.kind = kind;
    token.line = LineAt(pos_);
    token.text = std::move(text);
    return token;
  }

  bool At(std::size_t pos, std::string_view what) const {
    return pos <= view_.size() && view_.substr(pos, what.size()) == what;
  }

  std::size_t SkipSpace(std::size_t pos) const {
    while (pos < view_.size()) {
      const CodePoint c = DecodeAt(view_, pos);
      if (!IsSpace(c.value)) break;
      pos += c.size;
    }
    return pos;
  }

  // Template text up to the next tag, then the tag.
  void Root() {
    std::size_t tag = pos_;
    for (;;) {
      tag = view_.find('{', tag);
      if (tag == std::string_view::npos || tag + 1 >= view_.size()) {
        Emit(TokenKind::kData, std::string(view_.substr(pos_)));
        pos_ = view_.size();
        return;
      }
      const char next = view_[tag + 1];
      if (next == '{' || next == '%' || next == '#') break;
      ++tag;
    }
    const char kind = view_[tag + 1];
    std::size_t after = tag + 2;
    char sign = 0;
    if (after < view_.size() && (view_[after] == '-' || view_[after] == '+')) sign = view_[after++];
    EmitDataBefore(tag, sign, kind);
    pos_ = after;
    if (kind == '#') {
      Comment();
    } else if (kind == '{') {
      Emit(TokenKind::kVariableBegin, "");
      Tag(TokenKind::kVariableEnd);
    } else if (!Raw()) {
      Emit(TokenKind::kBlockBegin, "");
      Tag(TokenKind::kBlockEnd);
    }
  }

  void EmitDataBefore(std::size_t tag, char sign, char kind) {
    std::string_view text = view_.substr(pos_, tag - pos_);
    const bool line_starting = pos_ == 0 || view_[pos_ - 1] == '\n';
    text = StripBefore(text, sign, kind != '{', line_starting);
    if (!text.empty()) Emit(TokenKind::kData, std::string(text));
  }

  static std::string_view StripBefore(std::string_view text, char sign, bool lstrip,
                                      bool line_starting) {
    if (sign == '-') return StripRight(text);
    if (sign == '+' || !lstrip) return text;
    const std::size_t newline = text.rfind('\n');
    const std::size_t begin = newline == std::string_view::npos ? 0 : newline + 1;
    if (begin == 0 && !line_starting) return text;
    if (StripRight(text.substr(begin)).empty()) return text.substr(0, begin);
    return text;
  }

  // Moves behind a closing delimiter of two characters at `close`; `sign` is what stood before it.
  void CloseTag(std::size_t close, char sign, bool trim) {
    std::size_t end = close + 2;
    if (sign == '-') {
      end = SkipSpace(end);
    } else if (sign != '+' && trim && end < view_.size() && view_[end] == '\n') {
      ++end;
    }
    pos_ = end;
  }

  void Comment() {
    const std::size_t close = view_.find("#}", pos_);
    if (close == std::string_view::npos) return Fail("a comment is not closed");
    const char sign = close > pos_ ? view_[close - 1] : '\0';
    CloseTag(close, sign, true);
  }

  // {% raw %}: everything up to {% endraw %} is data. False: this block is not a raw block.
  bool Raw() {
    std::size_t pos = SkipSpace(pos_);
    if (!At(pos, "raw")) return false;
    pos = SkipSpace(pos + 3);
    if (At(pos, "-%}")) {
      pos = SkipSpace(pos + 3);
    } else if (At(pos, "%}")) {
      pos += 2;
    } else {
      return false;
    }
    for (std::size_t tag = view_.find("{%", pos); tag != std::string_view::npos;
         tag = view_.find("{%", tag + 2)) {
      std::size_t inner = tag + 2;
      char open_sign = 0;
      if (inner < view_.size() && (view_[inner] == '-' || view_[inner] == '+')) {
        open_sign = view_[inner++];
      }
      inner = SkipSpace(inner);
      if (!At(inner, "endraw")) continue;
      inner = SkipSpace(inner + 6);
      char close_sign = 0;
      if (inner < view_.size() && (view_[inner] == '-' || view_[inner] == '+')) {
        close_sign = view_[inner++];
      }
      if (!At(inner, "%}")) continue;
      const bool line_starting = pos == 0 || view_[pos - 1] == '\n';
      const std::string_view text =
          StripBefore(view_.substr(pos, tag - pos), open_sign, true, line_starting);
      if (!text.empty()) Emit(TokenKind::kData, std::string(text));
      CloseTag(inner, close_sign, true);
      return true;
    }
    Fail("a raw block is not closed");
    return true;
  }

  // The inside of {{ }} or {% %}. A delimiter counts only where all brackets are closed.
  void Tag(TokenKind end) {
    const std::string_view close = end == TokenKind::kVariableEnd ? "}}" : "%}";
    std::string open_brackets;
    while (!failed_) {
      pos_ = SkipSpace(pos_);
      if (pos_ >= view_.size()) return Fail("a tag is not closed");
      if (open_brackets.empty()) {
        const char c = view_[pos_];
        const bool signed_close =
            (c == '-' || (c == '+' && end == TokenKind::kBlockEnd)) && At(pos_ + 1, close);
        if (signed_close || At(pos_, close)) {
          Emit(end, "");
          CloseTag(signed_close ? pos_ + 1 : pos_, signed_close ? c : '\0',
                   end == TokenKind::kBlockEnd);
          return;
        }
      }
      OneToken(open_brackets);
    }
  }

  void OneToken(std::string& open_brackets) {
    const char c = view_[pos_];
    if (IsDigit(c)) return Number();
    if (IsNameStart(c)) {
      std::size_t end = pos_ + 1;
      while (end < view_.size() && IsNameChar(view_[end]))
        ++end;
      Emit(TokenKind::kName, std::string(view_.substr(pos_, end - pos_)));
      pos_ = end;
      return;
    }
    if (c == '"' || c == '\'') return String();
    static constexpr std::string_view kTwo[] = {"//", "**", "==", "!=", ">=", "<="};
    for (const std::string_view op : kTwo) {
      if (!At(pos_, op)) continue;
      Emit(TokenKind::kOperator, std::string(op));
      pos_ += 2;
      return;
    }
    static constexpr std::string_view kOne = "+-/*%~[](){}><=.:|,;";
    if (kOne.find(c) == std::string_view::npos) return Fail("unexpected character");
    if (!Balance(c, open_brackets)) return;
    Emit(TokenKind::kOperator, std::string(1, c));
    ++pos_;
  }

  bool Balance(char c, std::string& open_brackets) {
    if (c == '(') open_brackets.push_back(')');
    if (c == '[') open_brackets.push_back(']');
    if (c == '{') open_brackets.push_back('}');
    if (c != ')' && c != ']' && c != '}') return true;
    if (open_brackets.empty() || open_brackets.back() != c) {
      Fail(std::string("unexpected '") + c + "'");
      return false;
    }
    open_brackets.pop_back();
    return true;
  }

  std::size_t Digits(std::size_t pos) const {
    while (pos < view_.size() &&
           (IsDigit(view_[pos]) ||
            (view_[pos] == '_' && pos + 1 < view_.size() && IsDigit(view_[pos + 1])))) {
      ++pos;
    }
    return pos;
  }

  void Number() {
    const char second = pos_ + 1 < view_.size() ? view_[pos_ + 1] : '\0';
    if (view_[pos_] == '0' && second != '\0' &&
        std::string_view("xXoObB").find(second) != std::string_view::npos) {
      const int base = (second == 'x' || second == 'X')   ? 16
                       : (second == 'o' || second == 'O') ? 8
                                                          : 2;
      std::size_t end = pos_ + 2;
      while (end < view_.size() && (IsNameChar(view_[end]) && (view_[end] & 0x80) == 0))
        ++end;
      return Integer(pos_ + 2, end, base);
    }
    std::size_t end = Digits(pos_);
    bool real = false;
    const bool after_dot = pos_ > 0 && view_[pos_ - 1] == '.';
    if (!after_dot && end + 1 < view_.size() && view_[end] == '.' && IsDigit(view_[end + 1])) {
      end = Digits(end + 1);
      real = true;
    }
    if (!after_dot && end < view_.size() && (view_[end] == 'e' || view_[end] == 'E')) {
      std::size_t digits = end + 1;
      if (digits < view_.size() && (view_[digits] == '+' || view_[digits] == '-')) ++digits;
      if (digits < view_.size() && IsDigit(view_[digits])) {
        end = Digits(digits);
        real = true;
      }
    }
    if (!real) return Integer(pos_, end, 10);
    std::string digits(view_.substr(pos_, end - pos_));
    digits.erase(std::remove(digits.begin(), digits.end(), '_'), digits.end());
    double value = 0;
    const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (parsed.ec != std::errc() || !std::isfinite(value)) return Fail("number out of range");
    Emit(TokenKind::kFloat, "").real = value;
    pos_ = end;
  }

  void Integer(std::size_t begin, std::size_t end, int base) {
    std::string digits(view_.substr(begin, end - begin));
    digits.erase(std::remove(digits.begin(), digits.end(), '_'), digits.end());
    std::int64_t value = 0;
    const char* last = digits.data() + digits.size();
    const auto parsed = std::from_chars(digits.data(), last, value, base);
    if (parsed.ec != std::errc() || parsed.ptr != last) return Fail("invalid or too large integer");
    Emit(TokenKind::kInteger, "").integer = value;
    pos_ = end;
  }

  void String() {
    const char quote = view_[pos_];
    std::string out;
    std::size_t pos = pos_ + 1;
    while (pos < view_.size() && view_[pos] != quote) {
      if (view_[pos] != '\\') {
        out.push_back(view_[pos++]);
        continue;
      }
      if (pos + 1 >= view_.size()) break;
      if (!Escape(pos, out)) return Fail("invalid escape in a string");
    }
    if (pos >= view_.size()) return Fail("a string is not closed");
    Emit(TokenKind::kString, std::move(out));
    pos_ = pos + 1;
  }

  // `pos` is at a backslash with a character behind it; moves it past the escape. An escape Python
  // does not know stands for itself.
  bool Escape(std::size_t& pos, std::string& out) const {
    const char c = view_[pos + 1];
    static constexpr std::string_view kNames = "abfnrtv\\'\"";
    static constexpr std::string_view kValues = "\a\b\f\n\r\t\v\\'\"";
    const std::size_t simple = kNames.find(c);
    if (simple != std::string_view::npos) {
      out.push_back(kValues[simple]);
      pos += 2;
      return true;
    }
    if (c == '\n') {
      pos += 2;
      return true;
    }
    if (c == 'N') return false;
    std::size_t begin = pos + 2;
    std::size_t max_digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    int base = 16;
    if (c >= '0' && c <= '7') {
      begin = pos + 1;
      max_digits = 3;
      base = 8;
    }
    if (max_digits == 0) {
      out.push_back('\\');
      ++pos;
      return true;
    }
    const std::string_view digits = view_.substr(begin, max_digits);
    std::uint32_t value = 0;
    const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
    const std::size_t used = static_cast<std::size_t>(parsed.ptr - digits.data());
    if (parsed.ec != std::errc() || (base == 16 && used != max_digits)) return false;
    // A surrogate can never be written out as UTF-8, so a template that asks for one is broken.
    if (value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) return false;
    AppendUtf8(value, out);
    pos = begin + used;
    return true;
  }

  const std::string source_;
  const std::string_view view_;
  std::size_t pos_ = 0;
  std::uint32_t line_ = 1;
  std::size_t line_pos_ = 0;
  std::vector<Token> tokens_;
  bool failed_ = false;
  std::string error_;
  std::uint32_t error_line_ = 1;
};

}  // namespace

Result<std::vector<Token>> Tokenize(std::string_view source) {
  return Lexer(NormalizeNewlines(source)).Run();
}

}  // namespace kvrm::jinja
