// SPDX-License-Identifier: Apache-2.0
#include "grammar/json_parts.h"

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <boost/json/string.hpp>

#include "grammar/regex.h"

namespace kvrm::grammar {
namespace {

// Exact in a double, as all integers below 2^53 are.
constexpr std::int64_t kMostInteger = 999'999'999'999'999;
// With six digits behind the point 15 in all, which a double keeps apart from the bound beside it.
constexpr std::int64_t kMostWithFraction = 999'999'999;
constexpr std::uint32_t kMaxIndent = 20;

CodePointSet DigitsFrom(char low, char high) {
  return CodePointSet::Of(static_cast<char32_t>(low), static_cast<char32_t>(high));
}

// Whole days of the Gregorian calendar.
constexpr std::string_view kDate =
    "(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]"
    "|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]"
    "|[13579][26])00)-02-29)";
constexpr std::string_view kTime =
    "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-"
    "5]"
    "[0-9])";
constexpr std::string_view kByte = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
constexpr std::string_view kLabel = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?";

std::string FormatRegex(std::string_view format) {
  const std::string date(kDate);
  const std::string time(kTime);
  const std::string byte(kByte);
  const std::string label(kLabel);
  const std::string host = label + "(?:\\." + label + "){0,3}";
  if (format == "date") return date;
  if (format == "time") return time;
  if (format == "date-time") return date + "T" + time;
  if (format == "uuid") return "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}";
  if (format == "ipv4") return byte + "(?:\\." + byte + "){3}";
  if (format == "ipv6") return "(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}";
  if (format == "hostname") return host;
  if (format == "email") return "[a-zA-Z0-9_+-]{1,16}(?:\\.[a-zA-Z0-9_+-]{1,16}){0,3}@" + host;
  if (format == "uri") {
    return "https?://" + host +
           "(?::[1-9][0-9]{0,3})?(?:/[a-zA-Z0-9._~-]*)*(?:\\?[a-zA-Z0-9._~=&-]*)?";
  }
  if (format == "duration") {
    return "P(?:[0-9]{1,4}W|[0-9]{1,4}D(?:T[0-9]{1,4}H(?:[0-9]{1,4}M(?:[0-9]{1,4}S)?)?)?"
           "|T[0-9]{1,4}(?:H|M|S))";
  }
  return {};
}

std::string KeyOf(const NumberBounds& bounds) {
  return (bounds.low ? std::to_string(*bounds.low) : "") + (bounds.excludes_low ? "<" : "<=") +
         (bounds.high ? std::to_string(*bounds.high) : "") + (bounds.excludes_high ? ">" : ">=");
}

}  // namespace

JsonParts::JsonParts(Ast& ast)
    : ast_(ast),
      string_(ast.AddRule("(string)")),
      integer_(ast.AddRule("(integer)")),
      number_(ast.AddRule("(number)")),
      object_(ast.AddRule("(object)")),
      array_(ast.AddRule("(array)")),
      value_(ast.AddRule("(value)")) {
  const RuleId indent = ast.AddRule("(indent)");
  CodePointSet blank = CodePointSet::Of(' ', ' ');
  blank.Add('\t', '\t');
  ast.Define(indent, ast.Repeat(ast.Class(blank), 0, kMaxIndent));
  ast.Share(indent);
  space_ = ast.Alternate(
      {ast.Empty(), ast.Literal(" "), ast.Concat({ast.Literal("\n"), ast.Call(indent)})});
  DefineString();
  DefineNumbers();
  DefineValues();
}

void JsonParts::DefineString() {
  char_ = JsonChar(ast_);
  ast_.Define(string_, Quoted(ast_.Repeat(char_, 0, kUnbounded)));
  ast_.Share(string_);
}

void JsonParts::DefineNumbers() {
  const NodeId sign = ast_.Optional(ast_.Literal("-"));
  const NodeId natural = ast_.Alternate(
      {ast_.Literal("0"), ast_.Concat({ast_.Class(DigitsFrom('1', '9')), Digits(0, 14)})});
  ast_.Define(integer_, ast_.Concat({sign, natural}));
  ast_.Share(integer_);
  CodePointSet e = CodePointSet::Of('e', 'e');
  e.Add('E', 'E');
  CodePointSet plus_minus = CodePointSet::Of('+', '+');
  plus_minus.Add('-', '-');
  const NodeId fraction = ast_.Concat({ast_.Literal("."), Digits(1, 16)});
  const NodeId exponent =
      ast_.Concat({ast_.Class(e), ast_.Optional(ast_.Class(plus_minus)), Digits(1, 2)});
  ast_.Define(number_,
              ast_.Concat({sign, natural, ast_.Optional(fraction), ast_.Optional(exponent)}));
  ast_.Share(number_);
}

void JsonParts::DefineValues() {
  const NodeId member = Member(String(), Value());
  ast_.Define(object_, Braces(ast_.List(Comma(), member, {}, "")));
  ast_.Share(object_);
  ast_.Define(array_, Brackets(ast_.List(Comma(), Value(), {}, "")));
  ast_.Share(array_);
  ast_.Define(value_, ast_.Alternate({String(), Number(), Object(), Array(), Boolean(), Null()}));
  ast_.Share(value_);
}

NodeId JsonParts::Quoted(NodeId content) {
  return ast_.Concat({ast_.Literal("\""), content, ast_.Literal("\"")});
}

NodeId JsonParts::StringOfLength(std::uint32_t min, std::uint32_t max) {
  if (min == 0 && max == kUnbounded) return String();
  return Once("(string " + std::to_string(min) + " " + std::to_string(max) + ")",
              [&] { return Quoted(ast_.Repeat(char_, min, max)); });
}

NodeId JsonParts::Member(NodeId key, NodeId value) {
  return ast_.Concat({key, ast_.Literal(":"), space_, value});
}

NodeId JsonParts::Key(std::string_view key) {
  return ast_.Literal(boost::json::serialize(boost::json::string(key)));
}

NodeId JsonParts::KeyOtherThan(std::vector<std::u32string> keys) {
  return Quoted(ast_.OtherThan(PlainJsonChars(), std::move(keys)));
}

NodeId JsonParts::Braces(NodeId members) {
  return ast_.Concat({ast_.Literal("{"), space_, members, space_, ast_.Literal("}")});
}

NodeId JsonParts::Brackets(NodeId items) {
  return ast_.Concat({ast_.Literal("["), space_, items, space_, ast_.Literal("]")});
}

NodeId JsonParts::AtLeast(std::string_view digits) {
  if (digits.find_first_not_of('0') == std::string_view::npos) {
    const auto count = static_cast<std::uint32_t>(digits.size());
    return Digits(count, count);
  }
  const auto rest = static_cast<std::uint32_t>(digits.size() - 1);
  std::vector<NodeId> kids = {
      ast_.Concat({ast_.Literal(digits.substr(0, 1)), AtLeast(digits.substr(1))})};
  if (digits[0] < '9') {
    kids.push_back(ast_.Concat(
        {ast_.Class(DigitsFrom(static_cast<char>(digits[0] + 1), '9')), Digits(rest, rest)}));
  }
  return ast_.Alternate(std::move(kids));
}

NodeId JsonParts::AtMost(std::string_view digits) {
  if (digits.find_first_not_of('9') == std::string_view::npos) {
    const auto count = static_cast<std::uint32_t>(digits.size());
    return Digits(count, count);
  }
  const auto rest = static_cast<std::uint32_t>(digits.size() - 1);
  std::vector<NodeId> kids = {
      ast_.Concat({ast_.Literal(digits.substr(0, 1)), AtMost(digits.substr(1))})};
  if (digits[0] > '0') {
    kids.push_back(ast_.Concat(
        {ast_.Class(DigitsFrom('0', static_cast<char>(digits[0] - 1))), Digits(rest, rest)}));
  }
  return ast_.Alternate(std::move(kids));
}

NodeId JsonParts::SameLength(std::string_view low, std::string_view high) {
  std::size_t common = 0;
  while (common < low.size() && low[common] == high[common])
    ++common;
  const NodeId prefix = ast_.Literal(low.substr(0, common));
  if (common == low.size()) return prefix;
  low.remove_prefix(common);
  high.remove_prefix(common);
  const auto rest = static_cast<std::uint32_t>(low.size() - 1);
  std::vector<NodeId> kids = {
      ast_.Concat({ast_.Literal(low.substr(0, 1)), AtLeast(low.substr(1))}),
      ast_.Concat({ast_.Literal(high.substr(0, 1)), AtMost(high.substr(1))})};
  if (low[0] + 1 < high[0]) {
    kids.push_back(ast_.Concat(
        {ast_.Class(DigitsFrom(static_cast<char>(low[0] + 1), static_cast<char>(high[0] - 1))),
         Digits(rest, rest)}));
  }
  return ast_.Concat({prefix, ast_.Alternate(std::move(kids))});
}

// Whole numbers of [low, high] without leading zeros, by their length. Requires: 0 <= low.
NodeId JsonParts::Natural(std::int64_t low, std::int64_t high) {
  std::vector<NodeId> kids;
  std::int64_t least = 0;
  for (std::int64_t most = 9; least <= high; least = most + 1, most = most * 10 + 9) {
    const std::int64_t from = std::max(least, low);
    const std::int64_t to = std::min(most, high);
    if (from <= to) kids.push_back(SameLength(std::to_string(from), std::to_string(to)));
  }
  return ast_.Alternate(std::move(kids));
}

NodeId JsonParts::IntegerWithin(const NumberBounds& bounds) {
  return Once("(integer " + KeyOf(bounds) + ")", [&] { return MakeInteger(bounds); });
}

NodeId JsonParts::NumberWithin(const NumberBounds& bounds) {
  return Once("(number " + KeyOf(bounds) + ")", [&] { return MakeNumber(bounds); });
}

NodeId JsonParts::MakeInteger(const NumberBounds& bounds) {
  const std::int64_t low = bounds.low.value_or(-kMostInteger) + (bounds.excludes_low ? 1 : 0);
  const std::int64_t high = bounds.high.value_or(kMostInteger) - (bounds.excludes_high ? 1 : 0);
  std::vector<NodeId> kids;
  if (high >= std::max<std::int64_t>(low, 0))
    kids.push_back(Natural(std::max<std::int64_t>(low, 0), high));
  if (low <= std::min<std::int64_t>(high, -1)) {
    kids.push_back(
        ast_.Concat({ast_.Literal("-"), Natural(-std::min<std::int64_t>(high, -1), -low)}));
  }
  return ast_.Alternate(std::move(kids));
}

// 0 <= low.
NodeId JsonParts::PositiveWithin(std::int64_t low, std::int64_t high, bool excludes_low,
                                 bool excludes_high) {
  if (low > high || (low == high && (excludes_low || excludes_high))) return ast_.Nothing();
  const bool has_fraction = high <= kMostWithFraction;
  const NodeId any = ast_.Optional(ast_.Concat({ast_.Literal("."), Digits(1, 6)}));
  const NodeId zero =
      ast_.Optional(ast_.Concat({ast_.Literal("."), ast_.Repeat(ast_.Literal("0"), 1, 6)}));
  const NodeId above_zero =
      ast_.Concat({ast_.Literal("."), Digits(0, 5), ast_.Class(DigitsFrom('1', '9'))});
  std::vector<NodeId> kids;
  const auto add = [&](NodeId whole, NodeId fraction) {
    kids.push_back(has_fraction ? ast_.Concat({whole, fraction}) : whole);
  };
  if (low == high) {
    add(Natural(low, low), zero);
  } else {
    if (!excludes_low || has_fraction) add(Natural(low, low), excludes_low ? above_zero : any);
    if (low + 1 <= high - 1) add(Natural(low + 1, high - 1), any);
    if (!excludes_high) add(Natural(high, high), zero);
  }
  return ast_.Alternate(std::move(kids));
}

NodeId JsonParts::MakeNumber(const NumberBounds& bounds) {
  const auto limit = [](std::int64_t bound) {
    return std::abs(bound) < kMostWithFraction ? kMostWithFraction : kMostInteger;
  };
  const std::int64_t low = bounds.low.value_or(-limit(bounds.high.value_or(0)));
  const std::int64_t high = bounds.high.value_or(limit(bounds.low.value_or(0)));
  std::vector<NodeId> kids;
  if (high >= 0) {
    kids.push_back(PositiveWithin(std::max<std::int64_t>(low, 0), high,
                                  low >= 0 && bounds.excludes_low, bounds.excludes_high));
  }
  // Zero is among the positive ones.
  if (low < 0) {
    kids.push_back(
        ast_.Concat({ast_.Literal("-"),
                     PositiveWithin(std::max<std::int64_t>(-high, 0), -low,
                                    high >= 0 || bounds.excludes_high, bounds.excludes_low)}));
  }
  return ast_.Alternate(std::move(kids));
}

Result<NodeId> JsonParts::Format(std::string_view format) {
  const std::string regex = FormatRegex(format);
  if (regex.empty()) {
    return Error{ErrorCode::kUnsupported,
                 "the format '" + std::string(format.substr(0, 64)) + "' is not supported"};
  }
  Result<NodeId> content = ParseRegex(regex, RegexUse::kWholeText, ast_);
  if (!content) return content.error();
  return Quoted(*content);
}

}  // namespace kvrm::grammar
