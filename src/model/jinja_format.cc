// SPDX-License-Identifier: Apache-2.0
// Text forms of values: JSON, %-formatting, {}-formatting and dates.
#include <algorithm>
#include <charconv>
#include <cmath>

#include "model/jinja_eval.h"
#include "model/jinja_text.h"

namespace kvrm::jinja {
namespace {

constexpr int kMaxJsonDepth = 150;

// What stands between a % or a colon and the letter of a conversion.
struct Spec {
  std::string fill = " ";
  char align = 0;  // < > ^ =
  char sign = 0;   // + or space
  bool alternate = false;
  bool zero = false;
  bool comma = false;
  std::size_t width = 0;
  int precision = -1;
  char type = 0;
};

std::size_t ReadNumber(std::string_view text, std::size_t& pos) {
  std::size_t value = 0;
  while (pos < text.size() && text[pos] >= '0' && text[pos] <= '9') {
    value = std::min<std::size_t>(value * 10 + static_cast<std::size_t>(text[pos] - '0'), 1u << 24);
    ++pos;
  }
  return value;
}

std::string FixedDigits(double value, int precision, char type) {
  // 320 digits before the point is the most a double has; the precision is bounded by the caller.
  std::string buffer(400 + static_cast<std::size_t>(precision), '\0');
  const std::chars_format format = (type == 'e' || type == 'E')   ? std::chars_format::scientific
                                   : (type == 'g' || type == 'G') ? std::chars_format::general
                                                                  : std::chars_format::fixed;
  const int digits = format == std::chars_format::general ? std::max(precision, 1) : precision;
  const auto end =
      std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, format, digits);
  buffer.resize(static_cast<std::size_t>(end.ptr - buffer.data()));
  if (type == 'E' || type == 'G') {
    std::transform(buffer.begin(), buffer.end(), buffer.begin(),
                   [](char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c; });
  }
  return buffer;
}

void AddCommas(std::string& digits) {
  std::size_t whole = digits.find_first_not_of("0123456789");
  if (whole == std::string::npos) whole = digits.size();
  for (std::size_t i = whole; i > 3; i -= 3)
    digits.insert(i - 3, ",");
}

// The digits of |value| in the notation asked for, or nothing where the letter is not known.
bool NumberDigits(const Value& value, const Spec& spec, std::string& out) {
  if (spec.precision > 100) return false;
  const char type = spec.type;
  if (value.IsInteger() && (type == 0 || type == 'd' || type == 'i' || type == 'u')) {
    out = std::to_string(value.AsInt());
    if (out[0] == '-') out.erase(0, 1);
  } else if (value.IsInteger() && (type == 'x' || type == 'X' || type == 'o' || type == 'b')) {
    char buffer[70];
    const std::int64_t number = value.AsInt();
    const std::uint64_t magnitude =
        number < 0 ? 0 - static_cast<std::uint64_t>(number) : static_cast<std::uint64_t>(number);
    const int base = type == 'o' ? 8 : type == 'b' ? 2 : 16;
    const auto end = std::to_chars(buffer, buffer + sizeof buffer, magnitude, base);
    out.assign(buffer, end.ptr);
    if (type == 'X') {
      std::transform(out.begin(), out.end(), out.begin(),
                     [](char c) { return c >= 'a' ? static_cast<char>(c - 32) : c; });
    }
    if (spec.alternate) out.insert(0, {'0', type});
  } else if (type == 0) {
    out = FloatRepr(std::fabs(value.AsDouble()));
    if (spec.precision >= 0) out = FixedDigits(std::fabs(value.AsDouble()), spec.precision, 'g');
  } else if (std::string_view("eEfFgG%").find(type) != std::string_view::npos) {
    const double scaled = std::fabs(value.AsDouble()) * (type == '%' ? 100 : 1);
    out = FixedDigits(scaled, spec.precision < 0 ? 6 : spec.precision, type);
    if (type == '%') out += '%';
  } else {
    return false;
  }
  if (spec.comma) AddCommas(out);
  return true;
}

bool IsNegative(const Value& value) {
  return value.IsInteger() ? value.AsInt() < 0 : std::signbit(value.AsDouble());
}

}  // namespace

// ---- JSON ----

namespace {

void AppendJsonString(const Text& text, bool ensure_ascii, TextBuilder& out) {
  static constexpr char kHex[] = "0123456789abcdef";
  const auto unicode = [](std::uint32_t unit) {
    std::string escaped = "\\u";
    for (int shift = 12; shift >= 0; shift -= 4)
      escaped += kHex[unit >> shift & 0xF];
    return escaped;
  };
  out.Append("\"", true);
  for (std::size_t pos = 0; pos < text.size && !out.full();) {
    const CodePoint c = DecodeAt(text.view(), pos);
    std::string escaped;
    switch (c.value) {
      case '"':
        escaped = "\\\"";
        break;
      case '\\':
        escaped = "\\\\";
        break;
      case '\n':
        escaped = "\\n";
        break;
      case '\r':
        escaped = "\\r";
        break;
      case '\t':
        escaped = "\\t";
        break;
      case '\f':
        escaped = "\\f";
        break;
      case '\b':
        escaped = "\\b";
        break;
      default:
        if (c.value < 0x20 || (ensure_ascii && c.value >= 0x7F && c.value < 0x10000)) {
          if (c.value != 0x7F) escaped = unicode(c.value);
        } else if (ensure_ascii && c.value >= 0x10000) {
          escaped = unicode(0xD800 + ((c.value - 0x10000) >> 10)) +
                    unicode(0xDC00 + ((c.value - 0x10000) & 0x3FF));
        }
    }
    if (escaped.empty()) {
      out.Append(text, pos, c.size);
    } else {
      out.Append(escaped, text.TrustedAt(pos));
    }
    pos += c.size;
  }
  out.Append("\"", true);
}

std::string JsonNumber(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  return FloatRepr(value);
}

}  // namespace

void Interpreter::AppendJson(const Value& value, const JsonStyle& style, TextBuilder& out,
                             int depth) {
  if (depth > kMaxJsonDepth) {
    Fail("value is nested too deeply for JSON", ErrorCode::kTooLarge);
    return;
  }
  if (!Step() || out.full()) return;
  const auto line_break = [&](int level) {
    if (!style.pretty) return;
    out.Append("\n", true);
    for (int i = 0; i < level; ++i)
      out.Append(style.indent, true);
  };
  switch (value.kind) {
    case Kind::kNone:
      out.Append("null", true);
      break;
    case Kind::kBool:
      out.Append(value.boolean ? "true" : "false", true);
      break;
    case Kind::kInt:
      out.Append(std::to_string(value.integer), true);
      break;
    case Kind::kFloat:
      out.Append(JsonNumber(value.real), true);
      break;
    case Kind::kString:
      StepBytes(value.text->size);
      AppendJsonString(*value.text, style.ensure_ascii, out);
      break;
    case Kind::kList:
    case Kind::kTuple: {
      out.Append("[", true);
      const std::vector<Value>& items = value.list->items;
      for (std::size_t i = 0; i < items.size() && !failed_; ++i) {
        if (i > 0) out.Append(style.item_separator, true);
        line_break(depth + 1);
        AppendJson(items[i], style, out, depth + 1);
      }
      if (!items.empty()) line_break(depth);
      out.Append("]", true);
      break;
    }
    case Kind::kDict: {
      std::vector<const std::pair<Value, Value>*> items;
      for (const auto& item : value.dict->items)
        items.push_back(&item);
      if (style.sort_keys) {
        std::stable_sort(items.begin(), items.end(), [this](const auto* a, const auto* b) {
          return Step() && Less(a->first, b->first);
        });
      }
      out.Append("{", true);
      for (std::size_t i = 0; i < items.size() && !failed_; ++i) {
        if (i > 0) out.Append(style.item_separator, true);
        line_break(depth + 1);
        const Value& key = items[i]->first;
        if (key.Is(Kind::kString)) {
          AppendJsonString(*key.text, style.ensure_ascii, out);
        } else if (key.IsNumber() || key.Is(Kind::kNone)) {
          out.Append("\"", true);
          AppendJson(key, style, out, depth + 1);
          out.Append("\"", true);
        } else {
          Fail(std::string("JSON keys must be strings, not ") + KindName(key));
        }
        out.Append(style.key_separator, true);
        AppendJson(items[i]->second, style, out, depth + 1);
      }
      if (!items.empty()) line_break(depth);
      out.Append("}", true);
      break;
    }
    default:
      Fail(std::string("object of type ") + KindName(value) + " is not JSON serializable");
      break;
  }
}

// ---- padding ----

namespace {

// Writes `body` (with `sign` before it) padded to the width of the specification.
void AppendPadded(const Spec& spec, std::string_view sign, const Text& body, char default_align,
                  TextBuilder& out) {
  const std::size_t length = CountCodePoints(sign) + CountCodePoints(body.view());
  const std::size_t padding = spec.width > length ? spec.width - length : 0;
  const char align = spec.align != 0 ? spec.align : default_align;
  const std::size_t before = align == '<' ? 0 : align == '^' ? padding / 2 : padding;
  const auto pad = [&](std::size_t count) {
    for (std::size_t i = 0; i < count && !out.full(); ++i)
      out.Append(spec.fill, true);
  };
  if (align == '=') out.Append(sign, true);
  pad(before);
  if (align != '=') out.Append(sign, true);
  out.Append(body);
  pad(padding - before);
}

Text Borrow(std::string_view text, bool trusted) {
  Text borrowed;
  borrowed.data = text.data();
  borrowed.size = text.size();
  borrowed.trusted = trusted;
  return borrowed;
}

bool AppendNumber(const Value& value, Spec spec, TextBuilder& out) {
  std::string digits;
  if (!NumberDigits(value, spec, digits)) return false;
  const std::string_view sign = IsNegative(value)  ? "-"
                                : spec.sign == '+' ? "+"
                                : spec.sign == ' ' ? " "
                                                   : "";
  if (spec.zero && spec.align == 0) {
    spec.align = '=';
    spec.fill = "0";
  }
  AppendPadded(spec, sign, Borrow(digits, true), '>', out);
  return true;
}

// The first `precision` code points of a text, where a precision is given.
Text Cut(const Text& text, int precision) {
  Text cut = text;
  if (precision < 0) return cut;
  std::size_t end = 0;
  for (int i = 0; i < precision && end < text.size; ++i)
    end += DecodeAt(text.view(), end).size;
  cut.size = end;
  return cut;
}

}  // namespace

// ---- %-formatting ----

Value Interpreter::PercentFormat(const Text& format, const Value& arguments) {
  const std::string_view view = format.view();
  std::vector<Value> values;
  if (arguments.Is(Kind::kTuple)) {
    values = arguments.list->items;
  } else {
    values.push_back(arguments);
  }
  std::size_t next = 0;
  bool named = false;
  TextBuilder out = NewBuilder();
  StepBytes(format.size);
  for (std::size_t pos = 0; pos < view.size() && Step(0);) {
    if (view[pos] != '%') {
      const std::size_t end = std::min(view.find('%', pos), view.size());
      out.Append(format, pos, end - pos);
      pos = end;
      continue;
    }
    if (!Step()) break;
    ++pos;
    Value value = Value::Missing();
    if (pos < view.size() && view[pos] == '(') {
      const std::size_t close = view.find(')', pos);
      if (close == std::string_view::npos || !arguments.Is(Kind::kDict)) {
        return Fail("format requires a mapping");
      }
      const Value* found = arguments.dict->FindText(view.substr(pos + 1, close - pos - 1));
      if (found == nullptr) return Fail("format names a missing key");
      value = *found;
      named = true;
      pos = close + 1;
    }
    Spec spec;
    for (; pos < view.size() && std::string_view("-+ #0").find(view[pos]) != std::string_view::npos;
         ++pos) {
      if (view[pos] == '-') spec.align = '<';
      if (view[pos] == '+' || (view[pos] == ' ' && spec.sign == 0)) spec.sign = view[pos];
      if (view[pos] == '#') spec.alternate = true;
      if (view[pos] == '0') spec.zero = true;
    }
    spec.width = ReadNumber(view, pos);
    if (pos < view.size() && view[pos] == '.') {
      ++pos;
      spec.precision = static_cast<int>(ReadNumber(view, pos));
    }
    if (pos >= view.size()) return Fail("incomplete format");
    spec.type = view[pos++];
    if (spec.type == '%') {
      out.Append("%", format.TrustedAt(pos - 1));
      continue;
    }
    if (value.Is(Kind::kMissing)) {
      if (next >= values.size()) return Fail("not enough arguments for format string");
      value = values[next++];
    }
    if (spec.type == 's' || spec.type == 'r') {
      TextBuilder repr = NewBuilder();
      if (spec.type == 'r') AppendRepr(value, repr, 0);
      const Value text = spec.type == 'r' ? Finish(repr) : OfText(&ToText(value));
      if (failed_) return Value();
      AppendPadded(spec, "", Cut(*text.text, spec.precision), '>', out);
      continue;
    }
    if (!value.IsNumber()) return Fail("a number is required for a numeric format");
    if (value.Is(Kind::kFloat) && (spec.type == 'd' || spec.type == 'i')) {
      if (!(std::fabs(value.real) < 9e18)) return Fail("integer out of range");
      value = Value::Int(static_cast<std::int64_t>(value.real));
    }
    if (!AppendNumber(value, spec, out)) return Fail("unsupported format");
  }
  if (!named && next < values.size() && !arguments.Is(Kind::kDict)) {
    return Fail("not all arguments converted during string formatting");
  }
  return Finish(out);
}

// ---- {}-formatting ----

namespace {

bool ParseBraceSpec(std::string_view text, Spec& spec) {
  std::size_t pos = 0;
  const auto is_align = [](char c) { return c == '<' || c == '>' || c == '^' || c == '='; };
  if (!text.empty()) {
    const std::size_t first = DecodeAt(text, 0).size;
    if (first < text.size() && is_align(text[first])) {
      spec.fill = std::string(text.substr(0, first));
      spec.align = text[first];
      pos = first + 1;
    } else if (is_align(text[0])) {
      spec.align = text[0];
      pos = 1;
    }
  }
  if (pos < text.size() && (text[pos] == '+' || text[pos] == '-' || text[pos] == ' ')) {
    spec.sign = text[pos++];
  }
  if (pos < text.size() && text[pos] == '#') {
    spec.alternate = true;
    ++pos;
  }
  if (pos < text.size() && text[pos] == '0') {
    spec.zero = true;
    ++pos;
  }
  spec.width = ReadNumber(text, pos);
  if (pos < text.size() && text[pos] == ',') {
    spec.comma = true;
    ++pos;
  }
  if (pos < text.size() && text[pos] == '.') {
    ++pos;
    spec.precision = static_cast<int>(ReadNumber(text, pos));
  }
  if (pos < text.size()) spec.type = text[pos++];
  return pos == text.size();
}

}  // namespace

Value Interpreter::BraceFormat(const Text& format, const Arguments& arguments) {
  const std::string_view view = format.view();
  TextBuilder out = NewBuilder();
  std::size_t next = 0;
  StepBytes(format.size);
  for (std::size_t pos = 0; pos < view.size() && Step(0);) {
    const char c = view[pos];
    if (c != '{' && c != '}') {
      const std::size_t end = std::min(view.find_first_of("{}", pos), view.size());
      out.Append(format, pos, end - pos);
      pos = end;
      continue;
    }
    if (!Step()) break;
    if (pos + 1 < view.size() && view[pos + 1] == c) {
      out.Append(format, pos, 1);
      pos += 2;
      continue;
    }
    const std::size_t close = view.find('}', pos);
    if (c == '}' || close == std::string_view::npos) return Fail("single brace in format string");
    std::string_view field = view.substr(pos + 1, close - pos - 1);
    pos = close + 1;
    if (field.find('{') != std::string_view::npos) {
      return Fail("nested format fields are not supported", ErrorCode::kUnsupported);
    }
    Spec spec;
    if (const std::size_t colon = field.find(':'); colon != std::string_view::npos) {
      if (!ParseBraceSpec(field.substr(colon + 1), spec)) return Fail("invalid format specifier");
      field = field.substr(0, colon);
    }
    char conversion = 0;
    if (const std::size_t bang = field.find('!'); bang != std::string_view::npos) {
      if (bang + 2 != field.size()) return Fail("invalid format conversion");
      conversion = field[bang + 1];
      field = field.substr(0, bang);
    }
    const std::size_t name_end = std::min(field.find_first_of(".["), field.size());
    const std::string_view name = field.substr(0, name_end);
    Value value = Value::Missing();
    if (name.empty() || (name[0] >= '0' && name[0] <= '9')) {
      std::size_t at = 0;
      const std::size_t index = name.empty() ? next++ : ReadNumber(name, at);
      if (index < arguments.positional.size()) value = arguments.positional[index];
    } else {
      for (const auto& [keyword, item] : arguments.keyword) {
        if (keyword == name) value = item;
      }
    }
    if (value.Is(Kind::kMissing)) return Fail("format names a missing argument");
    for (std::size_t at = name_end; at < field.size() && !failed_;) {
      if (field[at] == '.') {
        const std::size_t end = std::min(field.find_first_of(".[", at + 1), field.size());
        value = GetAttribute(value, field.substr(at + 1, end - at - 1));
        at = end;
      } else {
        const std::size_t end = field.find(']', at);
        if (end == std::string_view::npos) return Fail("missing ']' in format string");
        const std::string_view key = field.substr(at + 1, end - at - 1);
        std::size_t digits = 0;
        const std::size_t index = ReadNumber(key, digits);
        value = GetItem(value, digits == key.size() && !key.empty()
                                   ? Value::Int(static_cast<std::int64_t>(index))
                                   : MakeText(key, true));
        at = end + 1;
      }
    }
    if (failed_) return Value();
    if (conversion == 'r') {
      TextBuilder repr = NewBuilder();
      AppendRepr(value, repr, 0);
      value = Finish(repr);
    } else if (conversion == 's') {
      value = OfText(&ToText(value));
    } else if (conversion != 0) {
      return Fail("unsupported format conversion", ErrorCode::kUnsupported);
    }
    if (value.Is(Kind::kInt) || value.Is(Kind::kFloat)) {
      if (!AppendNumber(value, spec, out)) return Fail("unsupported format");
    } else {
      if (spec.type != 0 && spec.type != 's') return Fail("unsupported format for text");
      AppendPadded(spec, "", Cut(ToText(value), spec.precision), '<', out);
    }
  }
  return Finish(out);
}

// ---- dates ----

Value Interpreter::Strftime(const Text& format) {
  static constexpr const char* kMonths[] = {"January",   "February", "March",    "April",
                                            "May",       "June",     "July",     "August",
                                            "September", "October",  "November", "December"};
  static constexpr const char* kDays[] = {"Sunday",   "Monday", "Tuesday", "Wednesday",
                                          "Thursday", "Friday", "Saturday"};
  std::int64_t days = now_unix_ / 86'400;
  std::int64_t second = now_unix_ % 86'400;
  if (second < 0) {
    second += 86'400;
    --days;
  }
  // Civil date from days, in years that begin in March so that the leap day comes last.
  const std::int64_t shifted = days + 719'468;
  const std::int64_t era = (shifted >= 0 ? shifted : shifted - 146'096) / 146'097;
  const std::int64_t day_of_era = shifted - era * 146'097;
  const std::int64_t year_of_era =
      (day_of_era - day_of_era / 1'460 + day_of_era / 36'524 - day_of_era / 146'096) / 365;
  const std::int64_t march_day =
      day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
  const std::int64_t march_month = (5 * march_day + 2) / 153;
  const std::int64_t day = march_day - (153 * march_month + 2) / 5 + 1;
  const std::int64_t month = march_month < 10 ? march_month + 3 : march_month - 9;
  const std::int64_t year = year_of_era + era * 400 + (month <= 2 ? 1 : 0);
  const bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
  const std::int64_t year_day = month <= 2 ? march_day - 305 : march_day + 60 + (leap ? 1 : 0);
  const std::int64_t week_day = ((days % 7) + 11) % 7;
  const auto number = [](std::int64_t n, std::size_t width, char pad) {
    std::string text = std::to_string(n);
    if (text.size() < width) text.insert(0, width - text.size(), pad);
    return text;
  };
  const std::int64_t hour = second / 3'600;
  const std::int64_t hour12 = hour % 12 == 0 ? 12 : hour % 12;
  std::string out;
  const std::string_view view = format.view();
  for (std::size_t i = 0; i < view.size() && Step(); ++i) {
    if (view[i] != '%' || i + 1 == view.size()) {
      out.push_back(view[i]);
      continue;
    }
    char code = view[++i];
    const bool bare = code == '-' && i + 1 < view.size();
    if (bare) code = view[++i];
    const std::size_t two = bare ? 0 : 2;
    switch (code) {
      case 'Y':
        out += std::to_string(year);
        break;
      case 'y':
        out += number(year % 100, two, '0');
        break;
      case 'm':
        out += number(month, two, '0');
        break;
      case 'd':
        out += number(day, two, '0');
        break;
      case 'e':
        out += number(day, two, ' ');
        break;
      case 'H':
        out += number(hour, two, '0');
        break;
      case 'I':
        out += number(hour12, two, '0');
        break;
      case 'M':
        out += number(second / 60 % 60, two, '0');
        break;
      case 'S':
        out += number(second % 60, two, '0');
        break;
      case 'f':
        out += "000000";
        break;
      case 'j':
        out += number(year_day, bare ? 0 : 3, '0');
        break;
      case 'p':
        out += hour < 12 ? "AM" : "PM";
        break;
      case 'B':
        out += kMonths[month - 1];
        break;
      case 'b':
      case 'h':
        out += std::string_view(kMonths[month - 1]).substr(0, 3);
        break;
      case 'A':
        out += kDays[week_day];
        break;
      case 'a':
        out += std::string_view(kDays[week_day]).substr(0, 3);
        break;
      case 'w':
        out += std::to_string(week_day);
        break;
      case 'F':
        out += number(year, 4, '0') + "-" + number(month, 2, '0') + "-" + number(day, 2, '0');
        break;
      case 'T':
        out += number(hour, 2, '0') + ":" + number(second / 60 % 60, 2, '0') + ":" +
               number(second % 60, 2, '0');
        break;
      case 'Z':
        out += "UTC";
        break;
      case 'z':
        out += "+0000";
        break;
      case '%':
        out += '%';
        break;
      default:
        return Fail("strftime_now does not know this conversion", ErrorCode::kUnsupported);
    }
  }
  TextBuilder builder = NewBuilder();
  builder.Append(out, format.AllTrusted());
  return Finish(builder);
}

}  // namespace kvrm::jinja
