// SPDX-License-Identifier: Apache-2.0
// Filters and tests, by table. A name that is not in the tables does not exist.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <iterator>

#include "model/jinja_eval.h"
#include "model/jinja_text.h"

namespace kvrm::jinja {
namespace {

using Filter = Value (*)(Interpreter&, const Value&, const Arguments&);

bool Given(const Value& value) {
  return !value.Is(Kind::kMissing);
}
bool GivenNotNone(const Value& value) {
  return Given(value) && !value.Is(Kind::kNone);
}

// A filter that is a method of text under the same name.
template <const char* kName>
Value AsMethod(Interpreter& in, const Value& value, const Arguments& arguments) {
  return in.CallMethod(in.OfText(&in.ToText(value)), kName, arguments);
}
constexpr char kStrip[] = "strip";
constexpr char kLower[] = "lower";
constexpr char kUpper[] = "upper";
constexpr char kCapitalize[] = "capitalize";

// ---- attributes ----

// `a.b.0` as the attribute argument of map, selectattr, sort and others.
Value Attribute(Interpreter& in, Value item, const Value& attribute, const Value& fallback) {
  const auto step = [&](const Value& key) {
    item = in.GetItem(item, key);
    if (item.Is(Kind::kUndefined) && GivenNotNone(fallback)) item = fallback;
  };
  if (!attribute.Is(Kind::kString)) {
    step(attribute);
    return item;
  }
  const std::string_view path = attribute.text->view();
  for (std::size_t pos = 0; pos <= path.size() && in.Step();) {
    const std::size_t end = std::min(path.find('.', pos), path.size());
    const std::string_view part = path.substr(pos, end - pos);
    std::int64_t index = 0;
    const auto parsed = std::from_chars(part.data(), part.data() + part.size(), index);
    const bool digits = !part.empty() && part[0] != '-' && parsed.ec == std::errc() &&
                        parsed.ptr == part.data() + part.size();
    step(digits ? Value::Int(index) : in.Part(*attribute.text, pos, part.size()));
    pos = end + 1;
  }
  return item;
}

// What values are sorted and compared by.
Value SortKey(Interpreter& in, const Value& item, const Value& attribute, bool case_sensitive,
              const Value& fallback = Value::Missing()) {
  Value key = item;
  if (GivenNotNone(attribute)) key = Attribute(in, item, attribute, fallback);
  if (!case_sensitive && key.Is(Kind::kString)) return in.CallMethod(key, "lower", {});
  return key;
}

struct Keyed {
  Value key;
  Value item;
};

// Equal elements keep their order, also where the order is reversed.
void SortKeyed(Interpreter& in, std::vector<Keyed>& items, bool reverse) {
  std::stable_sort(items.begin(), items.end(), [&](const Keyed& a, const Keyed& b) {
    return in.Step() && (reverse ? in.Less(b.key, a.key) : in.Less(a.key, b.key));
  });
}

bool KeyAll(Interpreter& in, const Value& value, const Value& attribute, bool case_sensitive,
            std::vector<Keyed>& out) {
  std::vector<Value> items;
  if (!in.Iterate(value, items)) return false;
  for (const Value& item : items) {
    if (!in.Step()) return false;
    out.push_back({SortKey(in, item, attribute, case_sensitive), item});
  }
  return !in.failed();
}

// ---- text ----

Value Replace(Interpreter& in, const Value& value, const Arguments& arguments) {
  Value bound[3];
  if (!in.Bind("replace", arguments, {"old", "new", "count"}, bound)) return Value();
  if (!Given(bound[0]) || !Given(bound[1])) return in.Fail("replace takes two texts");
  Arguments texts;
  texts.positional = {in.OfText(&in.ToText(bound[0])), in.OfText(&in.ToText(bound[1]))};
  if (GivenNotNone(bound[2])) texts.positional.push_back(bound[2]);
  return in.CallMethod(in.OfText(&in.ToText(value)), "replace", texts);
}

Value Title(Interpreter& in, const Value& value, const Arguments&) {
  const Text& text = in.ToText(value);
  TextBuilder out = in.NewBuilder();
  bool start = true;
  for (std::size_t pos = 0; pos < text.size;) {
    const CodePoint c = DecodeAt(text.view(), pos);
    const std::uint32_t mapped = start ? ToUpper(c.value) : ToLower(c.value);
    std::string bytes;
    AppendUtf8(mapped, bytes);
    out.Append(bytes, text.TrustedAt(pos));
    start = IsSpace(c.value) ||
            (c.value < 0x80 &&
             std::string_view("-({[<").find(static_cast<char>(c.value)) != std::string_view::npos);
    pos += c.size;
  }
  return in.Finish(out);
}

Value Indent(Interpreter& in, const Value& value, const Arguments& arguments) {
  Value bound[3];
  if (!in.Bind("indent", arguments, {"width", "first", "blank"}, bound)) return Value();
  if (!value.Is(Kind::kString)) return in.Fail("indent takes a text");
  TextBuilder indent = in.NewBuilder();
  if (bound[0].Is(Kind::kString)) {
    indent.Append(*bound[0].text);
  } else {
    const std::int64_t width = bound[0].IsInteger() ? bound[0].AsInt() : 4;
    for (std::int64_t i = 0; i < width && !indent.full(); ++i)
      indent.Append(" ", true);
  }
  const Value with = in.Finish(indent);
  Text newline;
  newline.data = "\n";
  newline.size = 1;
  newline.trusted = value.text->AllTrusted();
  const Value lines = in.CallMethod(in.Join(*value.text, newline), "splitlines", {});
  if (in.failed()) return Value();
  TextBuilder out = in.NewBuilder();
  const std::vector<Value>& items = lines.list->items;
  if (in.Truthy(bound[1])) out.Append(*with.text);
  for (std::size_t i = 0; i < items.size() && in.Step() && !out.full(); ++i) {
    if (i > 0) out.Append(newline);
    if (i > 0 && (items[i].text->size > 0 || in.Truthy(bound[2]))) out.Append(*with.text);
    out.Append(*items[i].text);
  }
  return in.Finish(out);
}

Value Truncate(Interpreter& in, const Value& value, const Arguments& arguments) {
  Value bound[4];
  if (!in.Bind("truncate", arguments, {"length", "killwords", "end", "leeway"}, bound)) {
    return Value();
  }
  const Value end = Given(bound[2]) ? in.OfText(&in.ToText(bound[2])) : in.MakeText("...", true);
  const std::int64_t length = bound[0].IsInteger() ? bound[0].AsInt() : 255;
  const std::int64_t leeway = bound[3].IsInteger() ? bound[3].AsInt() : 5;
  const Value text = in.OfText(&in.ToText(value));
  const std::int64_t size = in.Length(text).AsInt();
  const std::int64_t end_size = in.Length(end).AsInt();
  if (length < end_size || leeway < 0) return in.Fail("truncate is given too short a length");
  if (size <= length || size - length <= leeway) return text;
  Value kept = in.GetSlice(text, Value::None(), Value::Int(length - end_size), Value::None());
  if (!in.Truthy(bound[1])) {
    const std::size_t space = kept.text->view().rfind(' ');
    if (space != std::string_view::npos) kept = in.Part(*kept.text, 0, space);
  }
  return in.Join(*kept.text, *end.text);
}

Value WordCount(Interpreter& in, const Value& value, const Arguments&) {
  const Text& text = in.ToText(value);
  std::int64_t words = 0;
  bool inside = false;
  for (std::size_t pos = 0; pos < text.size;) {
    const CodePoint c = DecodeAt(text.view(), pos);
    const bool word = IsAlpha(c.value) || IsDecimal(c.value) || c.value == '_';
    words += word && !inside ? 1 : 0;
    inside = word;
    pos += c.size;
  }
  in.StepBytes(text.size);
  return Value::Int(words);
}

Value UrlEncode(Interpreter& in, const Value& value, const Arguments&) {
  if (value.IsSequence() || value.Is(Kind::kDict)) {
    return in.Fail("urlencode of collections is not supported", ErrorCode::kUnsupported);
  }
  static constexpr char kHex[] = "0123456789ABCDEF";
  const Text& text = in.ToText(value);
  TextBuilder out = in.NewBuilder();
  for (std::size_t i = 0; i < text.size; ++i) {
    const unsigned char c = static_cast<unsigned char>(text.data[i]);
    const bool plain = IsDecimal(c) || (c < 0x80 && IsAlpha(c)) || c == '/' || c == '-' ||
                       c == '_' || c == '.' || c == '~';
    if (plain) {
      out.Append(text, i, 1);
    } else {
      const char escaped[] = {'%', kHex[c >> 4], kHex[c & 0xF]};
      out.Append({escaped, 3}, text.TrustedAt(i));
    }
  }
  return in.Finish(out);
}

Value Format(Interpreter& in, const Value& value, const Arguments& arguments) {
  if (!arguments.keyword.empty()) {
    if (!arguments.positional.empty()) return in.Fail("format takes values or keywords, not both");
    std::vector<std::pair<Value, Value>> items;
    for (const auto& [key, item] : arguments.keyword) {
      items.emplace_back(in.MakeText(key, false), item);
    }
    return in.PercentFormat(in.ToText(value), in.MakeDict(std::move(items)));
  }
  return in.PercentFormat(in.ToText(value), in.MakeTuple(arguments.positional));
}

Value String(Interpreter& in, const Value& value, const Arguments&) {
  return in.OfText(&in.ToText(value));
}

Value Safe(Interpreter& in, const Value& value, const Arguments&) {
  const Text& text = in.ToText(value);
  const Value marked = in.Part(text, 0, text.size);
  const_cast<Text*>(marked.text)->markup = true;  // Part made it a moment ago.
  return marked;
}

Value Escape(Interpreter& in, const Value& value, const Arguments&) {
  return in.EscapeHtml(value);
}

Value ToJson(Interpreter& in, const Value& value, const Arguments& arguments) {
  Value bound[4];
  if (!in.Bind("tojson", arguments, {"ensure_ascii", "indent", "separators", "sort_keys"}, bound)) {
    return Value();
  }
  JsonStyle style;
  style.ensure_ascii = in.Truthy(bound[0]);
  style.sort_keys = in.Truthy(bound[3]);
  if (GivenNotNone(bound[1])) {
    style.pretty = true;
    style.item_separator = ",";
    if (bound[1].Is(Kind::kString)) {
      style.indent = std::string(bound[1].text->view().substr(0, 64));
    } else if (bound[1].IsInteger()) {
      style.indent.assign(
          static_cast<std::size_t>(std::clamp<std::int64_t>(bound[1].AsInt(), 0, 64)), ' ');
    } else {
      return in.Fail("indent must be a number or a text");
    }
  }
  if (GivenNotNone(bound[2])) {
    std::vector<Value> separators;
    if (!in.Iterate(bound[2], separators) || separators.size() != 2 ||
        !separators[0].Is(Kind::kString) || !separators[1].Is(Kind::kString)) {
      return in.Fail("separators must be two texts");
    }
    style.item_separator = std::string(separators[0].text->view());
    style.key_separator = std::string(separators[1].text->view());
  }
  TextBuilder out = in.NewBuilder();
  in.AppendJson(value, style, out, 0);
  // Quotes and braces around a request's text are as little trusted as the text.
  out.LevelTrust();
  return in.Finish(out);
}

// ---- numbers ----

Value Int(Interpreter& in, const Value& value, const Arguments& arguments) {
  Value bound[2];
  if (!in.Bind("int", arguments, {"default", "base"}, bound)) return Value();
  const Value fallback = Given(bound[0]) ? bound[0] : Value::Int(0);
  if (value.Is(Kind::kUndefined)) return in.GetAttribute(value, "");
  if (value.IsInteger()) return Value::Int(value.AsInt());
  double number = 0;
  if (value.Is(Kind::kString)) {
    const Value stripped = in.CallMethod(value, "strip", {});
    std::string digits(stripped.text->view().substr(0, 400));
    digits.erase(std::remove(digits.begin(), digits.end(), '_'), digits.end());
    const std::size_t skip = !digits.empty() && digits[0] == '+' ? 1 : 0;
    const char* const end = digits.data() + digits.size();
    const int base = bound[1].IsInteger() ? static_cast<int>(bound[1].AsInt()) : 10;
    if (base < 2 || base > 36) return in.Fail("base must be between 2 and 36");
    std::int64_t result = 0;
    const auto whole = std::from_chars(digits.data() + skip, end, result, base);
    if (whole.ec == std::errc() && whole.ptr == end) return Value::Int(result);
    if (whole.ec == std::errc::result_out_of_range) return in.Fail("integer out of range");
    const auto real = std::from_chars(digits.data() + skip, end, number);
    if (real.ec != std::errc() || real.ptr != end) return fallback;
  } else if (value.Is(Kind::kFloat)) {
    number = value.real;
  } else {
    return fallback;
  }
  if (!(std::fabs(number) < 9.2e18)) return in.Fail("integer out of range");
  return Value::Int(static_cast<std::int64_t>(number));
}

Value Float(Interpreter& in, const Value& value, const Arguments& arguments) {
  Value bound[1];
  if (!in.Bind("float", arguments, {"default"}, bound)) return Value();
  if (value.Is(Kind::kUndefined)) return in.GetAttribute(value, "");
  if (value.IsNumber()) return Value::Float(value.AsDouble());
  if (value.Is(Kind::kString)) {
    const Value stripped = in.CallMethod(value, "strip", {});
    const std::string_view view = stripped.text->view();
    const std::size_t skip = !view.empty() && view[0] == '+' ? 1 : 0;
    double number = 0;
    const auto parsed = std::from_chars(view.data() + skip, view.data() + view.size(), number);
    if (parsed.ec == std::errc() && parsed.ptr == view.data() + view.size()) {
      return Value::Float(number);
    }
  }
  return Given(bound[0]) ? bound[0] : Value::Float(0);
}

Value Abs(Interpreter& in, const Value& value, const Arguments&) {
  if (value.Is(Kind::kFloat)) return Value::Float(std::fabs(value.real));
  if (!value.IsInteger()) return in.Fail("abs takes a number");
  return value.AsInt() < 0 ? in.Arithmetic(Operator::kSub, Value::Missing(), value)
                           : Value::Int(value.AsInt());
}

Value Round(Interpreter& in, const Value& value, const Arguments& arguments) {
  Value bound[2];
  if (!in.Bind("round", arguments, {"precision", "method"}, bound)) return Value();
  if (!value.IsNumber()) return in.Fail("round takes a number");
  const std::int64_t precision = bound[0].IsInteger() ? bound[0].AsInt() : 0;
  if (precision < -15 || precision > 15) return in.Fail("precision must be between -15 and 15");
  const std::string_view method = bound[1].Is(Kind::kString) ? bound[1].text->view() : "common";
  const double scale = std::pow(10.0, static_cast<double>(precision));
  if (method == "ceil") return Value::Float(std::ceil(value.AsDouble() * scale) / scale);
  if (method == "floor") return Value::Float(std::floor(value.AsDouble() * scale) / scale);
  if (method != "common") return in.Fail("method must be common, ceil or floor");
  if (value.IsInteger() && precision >= 0) return Value::Int(value.AsInt());
  // Half to even on the decimal digits of the exact value, as Python rounds.
  double rounded = std::nearbyint(value.AsDouble() * scale) / scale;
  if (precision > 0) {
    char digits[400];
    const auto end = std::to_chars(digits, digits + sizeof digits, value.AsDouble(),
                                   std::chars_format::fixed, static_cast<int>(precision));
    std::from_chars(digits, end.ptr, rounded);
  }
  if (value.IsInteger()) return Value::Int(static_cast<std::int64_t>(rounded));
  return Value::Float(rounded);
}

Value Sum(Interpreter& in, const Value& value, const Arguments& arguments) {
  Value bound[2];
  std::vector<Value> items;
  if (!in.Bind("sum", arguments, {"attribute", "start"}, bound) || !in.Iterate(value, items)) {
    return Value();
  }
  Value total = Given(bound[1]) ? bound[1] : Value::Int(0);
  for (const Value& item : items) {
    if (!in.Step()) break;
    const Value term =
        GivenNotNone(bound[0]) ? Attribute(in, item, bound[0], Value::Missing()) : item;
    if (term.Is(Kind::kString)) return in.Fail("sum takes numbers");
    total = in.Arithmetic(Operator::kAdd, total, term);
  }
  return total;
}

template <bool kMax>
Value Extreme(Interpreter& in, const Value& value, const Arguments& arguments) {
  Value bound[2];
  std::vector<Keyed> items;
  if (!in.Bind("min", arguments, {"case_sensitive", "attribute"}, bound) ||
      !KeyAll(in, value, bound[1], in.Truthy(bound[0]), items)) {
    return Value();
  }
  if (items.empty()) return in.MakeUndefined("no aggregated item, sequence was empty");
  const Keyed* best = &items[0];
  for (const Keyed& item : items) {
    if (!in.Step()) break;
    if (kMax ? in.Less(best->key, item.key) : in.Less(item.key, best->key)) best = &item;
  }
  return best->item;
}

// ---- collections ----

Value Default(Interpreter& in, const Value& value, const Arguments& arguments) {
  Value bound[2];
  if (!in.Bind("default", arguments, {"default_value", "boolean"}, bound)) return Value();
  const bool replaces = value.Is(Kind::kUndefined) || (in.Truthy(bound[1]) && !in.Truthy(value));
  if (!replaces) return value;
  return Given(bound[0]) ? bound[0] : in.MakeText("", true);
}

Value Length(Interpreter& in, const Value& value, const Arguments&) {
  return in.Length(value);
}

Value ListOf(Interpreter& in, const Value& value, const Arguments&) {
  std::vector<Value> items;
  in.Iterate(value, items);
  return in.MakeList(std::move(items));
}

Value First(Interpreter& in, const Value& value, const Arguments&) {
  if (value.Is(Kind::kIterator)) {
    Iterator& iterator = *value.iterator;
    if (iterator.next < iterator.items.size()) return iterator.items[iterator.next++];
    return in.MakeUndefined("no first item, sequence was empty");
  }
  if (value.Is(Kind::kString) && value.text->size > 0) {
    return in.Part(*value.text, 0, DecodeAt(value.text->view(), 0).size);
  }
  std::vector<Value> items;
  if (!in.Iterate(value, items)) return Value();
  return items.empty() ? in.MakeUndefined("no first item, sequence was empty") : items.front();
}

Value Last(Interpreter& in, const Value& value, const Arguments&) {
  if (value.Is(Kind::kIterator)) return in.Fail("'generator' object is not reversible");
  if (value.Is(Kind::kString)) return in.GetItem(value, Value::Int(-1));
  std::vector<Value> items;
  if (!in.Iterate(value, items)) return Value();
  return items.empty() ? in.MakeUndefined("no last item, sequence was empty") : items.back();
}

Value Join(Interpreter& in, const Value& value, const Arguments& arguments) {
  Value bound[2];
  std::vector<Value> items;
  if (!in.Bind("join", arguments, {"d", "attribute"}, bound) || !in.Iterate(value, items)) {
    return Value();
  }
  TextBuilder out = in.NewBuilder();
  for (std::size_t i = 0; i < items.size() && in.Step() && !out.full(); ++i) {
    if (i > 0 && Given(bound[0])) out.Append(in.ToText(bound[0]));
    in.AppendText(
        GivenNotNone(bound[1]) ? Attribute(in, items[i], bound[1], Value::Missing()) : items[i],
        out);
  }
  return in.Finish(out);
}

Value Items(Interpreter& in, const Value& value, const Arguments&) {
  if (value.Is(Kind::kUndefined)) return in.MakeIterator({});
  if (!value.Is(Kind::kDict)) return in.Fail("can only get item pairs from a mapping");
  std::vector<Value> items;
  in.Iterate(in.CallMethod(value, "items", {}), items);
  return in.MakeIterator(std::move(items));
}

Value DictSort(Interpreter& in, const Value& value, const Arguments& arguments) {
  Value bound[3];
  if (!in.Bind("dictsort", arguments, {"case_sensitive", "by", "reverse"}, bound)) return Value();
  if (value.Is(Kind::kUndefined)) return in.GetAttribute(value, "");
  if (!value.Is(Kind::kDict)) return in.Fail("dictsort takes a mapping");
  const std::string_view by = bound[1].Is(Kind::kString) ? bound[1].text->view() : "key";
  if (by != "key" && by != "value") return in.Fail("can only sort by key or value");
  std::vector<Keyed> items;
  for (const auto& [key, item] : value.dict->items) {
    if (!in.Step()) return Value();
    const Value pair = in.MakeTuple({key, item});
    items.push_back(
        {SortKey(in, by == "key" ? key : item, Value::Missing(), in.Truthy(bound[0])), pair});
  }
  SortKeyed(in, items, in.Truthy(bound[2]));
  std::vector<Value> sorted;
  for (const Keyed& item : items)
    sorted.push_back(item.item);
  return in.MakeList(std::move(sorted));
}

Value Sort(Interpreter& in, const Value& value, const Arguments& arguments) {
  Value bound[3];
  std::vector<Keyed> items;
  if (!in.Bind("sort", arguments, {"reverse", "case_sensitive", "attribute"}, bound)) {
    return Value();
  }
  if (bound[2].Is(Kind::kString) && bound[2].text->view().find(',') != std::string_view::npos) {
    return in.Fail("sort by several attributes is not supported", ErrorCode::kUnsupported);
  }
  if (!KeyAll(in, value, bound[2], in.Truthy(bound[1]), items)) return Value();
  SortKeyed(in, items, in.Truthy(bound[0]));
  std::vector<Value> sorted;
  for (const Keyed& item : items)
    sorted.push_back(item.item);
  return in.MakeList(std::move(sorted));
}

Value Unique(Interpreter& in, const Value& value, const Arguments& arguments) {
  Value bound[2];
  std::vector<Keyed> items;
  if (!in.Bind("unique", arguments, {"case_sensitive", "attribute"}, bound) ||
      !KeyAll(in, value, bound[1], in.Truthy(bound[0]), items)) {
    return Value();
  }
  std::vector<Keyed> kept;
  for (const Keyed& item : items) {
    const bool seen = std::any_of(kept.begin(), kept.end(), [&](const Keyed& old) {
      return in.Step() && in.Equal(old.key, item.key);
    });
    if (!seen) kept.push_back(item);
  }
  std::vector<Value> values;
  for (const Keyed& item : kept)
    values.push_back(item.item);
  return in.MakeIterator(std::move(values));
}

Value Reverse(Interpreter& in, const Value& value, const Arguments&) {
  if (value.Is(Kind::kString)) {
    return in.GetSlice(value, Value::None(), Value::None(), Value::Int(-1));
  }
  std::vector<Value> items;
  if (!in.Iterate(value, items)) return Value();
  std::reverse(items.begin(), items.end());
  return in.MakeIterator(std::move(items));
}

Value GroupBy(Interpreter& in, const Value& value, const Arguments& arguments) {
  Value bound[3];
  std::vector<Value> all;
  if (!in.Bind("groupby", arguments, {"attribute", "default", "case_sensitive"}, bound) ||
      !in.Iterate(value, all)) {
    return Value();
  }
  if (!Given(bound[0])) return in.Fail("groupby takes an attribute");
  std::vector<Keyed> items;
  for (const Value& item : all) {
    items.push_back({SortKey(in, item, bound[0], in.Truthy(bound[2]), bound[1]), item});
    if (!in.Step()) return Value();
  }
  SortKeyed(in, items, false);
  std::vector<Value> groups;
  for (std::size_t i = 0; i < items.size() && !in.failed();) {
    std::vector<Value> members;
    const std::size_t first = i;
    while (i < items.size() && in.Step() && in.Equal(items[i].key, items[first].key)) {
      members.push_back(items[i++].item);
    }
    const Value key = Attribute(in, items[first].item, bound[0], bound[1]);
    const Value group = in.MakeTuple({key, in.MakeList(std::move(members))});
    if (in.failed()) break;
    const_cast<List*>(group.list)->is_group = true;  // MakeTuple made it a moment ago.
    groups.push_back(group);
  }
  return in.MakeList(std::move(groups));
}

Value Batch(Interpreter& in, const Value& value, const Arguments& arguments) {
  Value bound[2];
  std::vector<Value> items;
  if (!in.Bind("batch", arguments, {"linecount", "fill_with"}, bound) ||
      !in.Iterate(value, items)) {
    return Value();
  }
  if (!bound[0].IsInteger() || bound[0].AsInt() < 1) return in.Fail("batch takes a positive count");
  if (bound[0].AsInt() > in.limits().max_range) return in.Fail("batch is too large");
  const std::size_t count = static_cast<std::size_t>(bound[0].AsInt());
  std::vector<Value> rows;
  for (std::size_t i = 0; i < items.size() && in.Step(); i += count) {
    std::vector<Value> row(
        items.begin() + static_cast<std::ptrdiff_t>(i),
        items.begin() + static_cast<std::ptrdiff_t>(std::min(i + count, items.size())));
    while (GivenNotNone(bound[1]) && row.size() < count && in.Step())
      row.push_back(bound[1]);
    rows.push_back(in.MakeList(std::move(row)));
  }
  return in.MakeIterator(std::move(rows));
}

Value Slice(Interpreter& in, const Value& value, const Arguments& arguments) {
  Value bound[2];
  std::vector<Value> items;
  if (!in.Bind("slice", arguments, {"slices", "fill_with"}, bound) || !in.Iterate(value, items)) {
    return Value();
  }
  if (!bound[0].IsInteger() || bound[0].AsInt() < 1) return in.Fail("slice takes a positive count");
  if (bound[0].AsInt() > in.limits().max_range) return in.Fail("slice is too large");
  const std::size_t slices = static_cast<std::size_t>(bound[0].AsInt());
  const std::size_t extra = items.size() % slices;
  std::size_t pos = 0;
  std::vector<Value> columns;
  for (std::size_t i = 0; i < slices && in.Step(); ++i) {
    const std::size_t size = items.size() / slices + (i < extra ? 1 : 0);
    std::vector<Value> column(items.begin() + static_cast<std::ptrdiff_t>(pos),
                              items.begin() + static_cast<std::ptrdiff_t>(pos + size));
    if (GivenNotNone(bound[1]) && i >= extra) column.push_back(bound[1]);
    columns.push_back(in.MakeList(std::move(column)));
    pos += size;
  }
  return in.MakeIterator(std::move(columns));
}

Value Map(Interpreter& in, const Value& value, const Arguments& arguments) {
  std::vector<Value> items;
  if (!in.Truthy(value)) return in.MakeIterator({});
  if (!in.Iterate(value, items)) return Value();
  std::vector<Value> mapped;
  if (arguments.positional.empty()) {
    Value bound[2];
    if (!in.Bind("map", arguments, {"attribute", "default"}, bound)) return Value();
    if (!Given(bound[0])) return in.Fail("map requires a filter argument");
    for (const Value& item : items) {
      if (!in.Step()) return Value();
      mapped.push_back(Attribute(in, item, bound[0], bound[1]));
    }
    return in.MakeIterator(std::move(mapped));
  }
  if (!arguments.positional[0].Is(Kind::kString)) return in.Fail("map takes the name of a filter");
  Arguments rest = arguments;
  rest.positional.erase(rest.positional.begin());
  for (const Value& item : items) {
    if (!in.Step()) return Value();
    mapped.push_back(in.CallFilter(arguments.positional[0].text->view(), item, rest));
  }
  return in.MakeIterator(std::move(mapped));
}

template <bool kKeep, bool kAttribute>
Value Select(Interpreter& in, const Value& value, const Arguments& arguments) {
  std::vector<Value> items;
  if (!in.Truthy(value)) return in.MakeIterator({});
  if (!in.Iterate(value, items)) return Value();
  Arguments rest = arguments;
  Value attribute;
  if (kAttribute) {
    if (rest.positional.empty()) return in.Fail("missing the name of an attribute");
    attribute = rest.positional[0];
    rest.positional.erase(rest.positional.begin());
  }
  Value test = Value::Missing();
  if (!rest.positional.empty()) {
    test = rest.positional[0];
    rest.positional.erase(rest.positional.begin());
    if (!test.Is(Kind::kString)) return in.Fail("expected the name of a test");
  }
  std::vector<Value> kept;
  for (const Value& item : items) {
    if (!in.Step()) return Value();
    const Value tested = kAttribute ? Attribute(in, item, attribute, Value::Missing()) : item;
    const bool passes =
        in.Truthy(Given(test) ? in.CallTest(test.text->view(), tested, rest) : tested);
    if (passes == kKeep) kept.push_back(item);
  }
  return in.MakeIterator(std::move(kept));
}

struct FilterRow {
  std::string_view name;
  Filter filter;
};

constexpr FilterRow kFilters[] = {
    {"abs", Abs},
    {"batch", Batch},
    {"capitalize", AsMethod<kCapitalize>},
    {"count", Length},
    {"d", Default},
    {"default", Default},
    {"dictsort", DictSort},
    {"e", Escape},
    {"escape", Escape},
    {"first", First},
    {"float", Float},
    {"format", Format},
    {"groupby", GroupBy},
    {"indent", Indent},
    {"int", Int},
    {"items", Items},
    {"join", Join},
    {"last", Last},
    {"length", Length},
    {"list", ListOf},
    {"lower", AsMethod<kLower>},
    {"map", Map},
    {"max", Extreme<true>},
    {"min", Extreme<false>},
    {"reject", Select<false, false>},
    {"rejectattr", Select<false, true>},
    {"replace", Replace},
    {"reverse", Reverse},
    {"round", Round},
    {"safe", Safe},
    {"select", Select<true, false>},
    {"selectattr", Select<true, true>},
    {"slice", Slice},
    {"sort", Sort},
    {"string", String},
    {"sum", Sum},
    {"title", Title},
    {"tojson", ToJson},
    {"trim", AsMethod<kStrip>},
    {"truncate", Truncate},
    {"unique", Unique},
    {"upper", AsMethod<kUpper>},
    {"urlencode", UrlEncode},
    {"wordcount", WordCount},
};

// ---- tests ----

// Tests of one value. `other` is the argument of those that compare.
using Test = bool (*)(Interpreter&, const Value&, const Value& other);

bool IsCallable(const Value& value) {
  return value.Is(Kind::kMacro) || value.Is(Kind::kMethod) || value.Is(Kind::kFunction) ||
         value.Is(Kind::kJoiner) || value.Is(Kind::kUndefined) || value.Is(Kind::kLoop);
}

bool IsIterable(const Value& value) {
  switch (value.kind) {
    case Kind::kUndefined:
    case Kind::kString:
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kDict:
    case Kind::kView:
    case Kind::kRange:
    case Kind::kIterator:
    case Kind::kLoop:
      return true;
    default:
      return false;
  }
}

bool SameAs(Interpreter&, const Value& a, const Value& b) {
  if (a.kind != b.kind) return false;
  switch (a.kind) {
    case Kind::kNone:
      return true;
    case Kind::kBool:
      return a.boolean == b.boolean;
    case Kind::kInt:
      return a.integer == b.integer;
    case Kind::kFloat:
      return false;
    case Kind::kFunction:
      return a.function == b.function;
    case Kind::kUndefined:
      return a.undefined != nullptr && a.undefined == b.undefined;
    default:
      return a.list == b.list;  // Identity: all the pointers share their place.
  }
}

bool Remainder(Interpreter& in, const Value& value, const Value& by, std::int64_t wanted) {
  const Value rest = in.Arithmetic(Operator::kMod, value, by);
  return !in.failed() && in.Equal(rest, Value::Int(wanted));
}

struct TestRow {
  std::string_view name;
  bool takes_other;
  Test test;
};

constexpr TestRow kTests[] = {
    {"defined", false,
     [](Interpreter&, const Value& v, const Value&) { return !v.Is(Kind::kUndefined); }},
    {"undefined", false,
     [](Interpreter&, const Value& v, const Value&) { return v.Is(Kind::kUndefined); }},
    {"none", false, [](Interpreter&, const Value& v, const Value&) { return v.Is(Kind::kNone); }},
    {"boolean", false,
     [](Interpreter&, const Value& v, const Value&) { return v.Is(Kind::kBool); }},
    {"true", false,
     [](Interpreter&, const Value& v, const Value&) { return v.Is(Kind::kBool) && v.boolean; }},
    {"false", false,
     [](Interpreter&, const Value& v, const Value&) { return v.Is(Kind::kBool) && !v.boolean; }},
    {"integer", false, [](Interpreter&, const Value& v, const Value&) { return v.Is(Kind::kInt); }},
    {"float", false, [](Interpreter&, const Value& v, const Value&) { return v.Is(Kind::kFloat); }},
    {"number", false, [](Interpreter&, const Value& v, const Value&) { return v.IsNumber(); }},
    {"string", false,
     [](Interpreter&, const Value& v, const Value&) { return v.Is(Kind::kString); }},
    {"mapping", false,
     [](Interpreter&, const Value& v, const Value&) { return v.Is(Kind::kDict); }},
    {"sequence", false,
     [](Interpreter&, const Value& v, const Value&) {
       return v.IsSequence() || v.Is(Kind::kString) || v.Is(Kind::kDict) || v.Is(Kind::kRange) ||
              v.Is(Kind::kUndefined);
     }},
    {"iterable", false, [](Interpreter&, const Value& v, const Value&) { return IsIterable(v); }},
    {"callable", false, [](Interpreter&, const Value& v, const Value&) { return IsCallable(v); }},
    {"lower", false,
     [](Interpreter& in, const Value& v, const Value&) {
       return in.Truthy(in.CallMethod(in.OfText(&in.ToText(v)), "islower", {}));
     }},
    {"upper", false,
     [](Interpreter& in, const Value& v, const Value&) {
       return in.Truthy(in.CallMethod(in.OfText(&in.ToText(v)), "isupper", {}));
     }},
    {"escaped", false,
     [](Interpreter&, const Value& v, const Value&) {
       return v.Is(Kind::kString) && v.text->markup;
     }},
    {"filter", false,
     [](Interpreter&, const Value& v, const Value&) {
       return v.Is(Kind::kString) && IsKnownFilter(v.text->view());
     }},
    {"test", false,
     [](Interpreter&, const Value& v, const Value&) {
       return v.Is(Kind::kString) && IsKnownTest(v.text->view());
     }},
    {"odd", false,
     [](Interpreter& in, const Value& v, const Value&) {
       return Remainder(in, v, Value::Int(2), 1);
     }},
    {"even", false,
     [](Interpreter& in, const Value& v, const Value&) {
       return Remainder(in, v, Value::Int(2), 0);
     }},
    {"divisibleby", true,
     [](Interpreter& in, const Value& v, const Value& by) { return Remainder(in, v, by, 0); }},
    {"sameas", true, SameAs},
    {"in", true, [](Interpreter& in, const Value& v, const Value& o) { return in.Contains(o, v); }},
    {"eq", true, [](Interpreter& in, const Value& v, const Value& o) { return in.Equal(v, o); }},
    {"==", true, [](Interpreter& in, const Value& v, const Value& o) { return in.Equal(v, o); }},
    {"equalto", true,
     [](Interpreter& in, const Value& v, const Value& o) { return in.Equal(v, o); }},
    {"ne", true, [](Interpreter& in, const Value& v, const Value& o) { return !in.Equal(v, o); }},
    {"!=", true, [](Interpreter& in, const Value& v, const Value& o) { return !in.Equal(v, o); }},
    {"lt", true, [](Interpreter& in, const Value& v, const Value& o) { return in.Less(v, o); }},
    {"<", true, [](Interpreter& in, const Value& v, const Value& o) { return in.Less(v, o); }},
    {"lessthan", true,
     [](Interpreter& in, const Value& v, const Value& o) { return in.Less(v, o); }},
    {"gt", true, [](Interpreter& in, const Value& v, const Value& o) { return in.Less(o, v); }},
    {">", true, [](Interpreter& in, const Value& v, const Value& o) { return in.Less(o, v); }},
    {"greaterthan", true,
     [](Interpreter& in, const Value& v, const Value& o) { return in.Less(o, v); }},
    {"le", true,
     [](Interpreter& in, const Value& v, const Value& o) {
       return in.Less(v, o) || in.Equal(v, o);
     }},
    {"<=", true,
     [](Interpreter& in, const Value& v, const Value& o) {
       return in.Less(v, o) || in.Equal(v, o);
     }},
    {"ge", true,
     [](Interpreter& in, const Value& v, const Value& o) {
       return in.Less(o, v) || in.Equal(v, o);
     }},
    {">=", true,
     [](Interpreter& in, const Value& v, const Value& o) {
       return in.Less(o, v) || in.Equal(v, o);
     }},
};

const FilterRow* FindFilter(std::string_view name) {
  const auto* row = std::find_if(std::begin(kFilters), std::end(kFilters),
                                 [name](const FilterRow& r) { return r.name == name; });
  return row == std::end(kFilters) ? nullptr : row;
}

const TestRow* FindTest(std::string_view name) {
  const auto* row = std::find_if(std::begin(kTests), std::end(kTests),
                                 [name](const TestRow& r) { return r.name == name; });
  return row == std::end(kTests) ? nullptr : row;
}

}  // namespace

bool IsKnownFilter(std::string_view name) {
  return FindFilter(name) != nullptr;
}
bool IsKnownTest(std::string_view name) {
  return FindTest(name) != nullptr;
}

Value Interpreter::CallFilter(std::string_view name, const Value& value,
                              const Arguments& arguments) {
  if (!Step()) return Value();
  const FilterRow* row = FindFilter(name);
  if (row == nullptr) {
    return Fail("no filter named '" + std::string(name.substr(0, 32)) + "'",
                ErrorCode::kUnsupported);
  }
  // map('map', ...) calls filters from filters, so this too counts as a level.
  if (++levels_ > limits_.max_levels) Fail("template recurses too deeply", ErrorCode::kTooLarge);
  const Value result = failed_ ? Value() : row->filter(*this, value, arguments);
  --levels_;
  return result;
}

Value Interpreter::CallTest(std::string_view name, const Value& value, const Arguments& arguments) {
  if (!Step()) return Value();
  const TestRow* row = FindTest(name);
  if (row == nullptr) {
    return Fail("no test named '" + std::string(name.substr(0, 32)) + "'", ErrorCode::kUnsupported);
  }
  const std::size_t wanted = row->takes_other ? 1 : 0;
  Value other;
  if (arguments.positional.size() + arguments.keyword.size() != wanted) {
    return Fail("test '" + std::string(name) + "' takes " + std::to_string(wanted) +
                " argument(s)");
  }
  if (wanted == 1) {
    other = arguments.positional.empty() ? arguments.keyword[0].second : arguments.positional[0];
  }
  return Value::Bool(row->test(*this, value, other));
}

}  // namespace kvrm::jinja
