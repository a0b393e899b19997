// SPDX-License-Identifier: Apache-2.0
// The methods templates may call: those of Python's strings, lists, tuples and dictionaries that
// leave their receiver as it is, and those of loops and cyclers.
#include <algorithm>
#include <iterator>

#include "model/jinja_eval.h"
#include "model/jinja_text.h"

namespace kvrm::jinja {
namespace {

constexpr std::string_view kTextMethods[] = {
    "capitalize", "casefold",     "center",       "count",   "endswith",   "find",       "format",
    "index",      "isalnum",      "isalpha",      "isascii", "isdecimal",  "isdigit",    "islower",
    "isnumeric",  "isspace",      "isupper",      "join",    "ljust",      "lower",      "lstrip",
    "partition",  "removeprefix", "removesuffix", "replace", "rfind",      "rindex",     "rjust",
    "rpartition", "rsplit",       "rstrip",       "split",   "splitlines", "startswith", "strip",
    "title",      "upper",        "zfill"};
constexpr std::string_view kListMethods[] = {"copy", "count", "index"};
constexpr std::string_view kListChanges[] = {"append", "clear",  "extend",  "insert",
                                             "pop",    "remove", "reverse", "sort"};
constexpr std::string_view kDictMethods[] = {"copy", "get", "items", "keys", "values"};
constexpr std::string_view kDictChanges[] = {"clear", "pop", "popitem", "setdefault", "update"};

template <std::size_t N>
bool In(const std::string_view (&table)[N], std::string_view name) {
  return std::find(std::begin(table), std::end(table), name) != std::end(table);
}

// ---- text ----

using CharTest = bool (*)(std::uint32_t);

bool AllOf(const Text& text, CharTest test) {
  if (text.size == 0) return false;
  for (std::size_t pos = 0; pos < text.size;) {
    const CodePoint c = DecodeAt(text.view(), pos);
    if (!test(c.value)) return false;
    pos += c.size;
  }
  return true;
}

// True where every letter with case passes `wanted` and there is one.
bool CasedAllOf(const Text& text, CharTest wanted) {
  bool any = false;
  for (std::size_t pos = 0; pos < text.size;) {
    const CodePoint c = DecodeAt(text.view(), pos);
    if (IsUpper(c.value) || IsLower(c.value)) {
      if (!wanted(c.value)) return false;
      any = true;
    }
    pos += c.size;
  }
  return any;
}

enum class Case { kLower, kUpper, kCapitalize, kTitle };

void AppendCased(const Text& text, std::size_t pos, const CodePoint& c, bool upper,
                 TextBuilder& out) {
  if (upper && c.value == 0xDF) return out.Append("SS", text.TrustedAt(pos));
  const std::uint32_t mapped = upper ? ToUpper(c.value) : ToLower(c.value);
  if (mapped == c.value) return out.Append(text, pos, c.size);
  std::string bytes;
  AppendUtf8(mapped, bytes);
  out.Append(bytes, text.TrustedAt(pos));
}

Value ChangeCase(Interpreter& in, const Text& text, Case how) {
  TextBuilder out = in.NewBuilder();
  bool word_start = true;
  for (std::size_t pos = 0; pos < text.size;) {
    const CodePoint c = DecodeAt(text.view(), pos);
    const bool upper =
        how == Case::kUpper || ((how == Case::kCapitalize || how == Case::kTitle) && word_start);
    AppendCased(text, pos, c, upper, out);
    word_start = how == Case::kTitle && !IsUpper(c.value) && !IsLower(c.value);
    pos += c.size;
  }
  return in.Finish(out);
}

// strip, lstrip, rstrip. `chars` missing or none: white space.
Value Strip(Interpreter& in, const Text& text, const Value& chars, bool left, bool right) {
  std::vector<std::uint32_t> set;
  const bool spaces = chars.Is(Kind::kMissing) || chars.Is(Kind::kNone);
  if (!spaces && !chars.Is(Kind::kString)) return in.Fail("strip takes a string");
  if (!spaces) {
    for (std::size_t pos = 0; pos < chars.text->size;) {
      const CodePoint c = DecodeAt(chars.text->view(), pos);
      set.push_back(c.value);
      pos += c.size;
    }
  }
  const auto goes = [&](std::uint32_t c) {
    return spaces ? IsSpace(c) : std::find(set.begin(), set.end(), c) != set.end();
  };
  std::size_t begin = 0;
  std::size_t end = text.size;
  std::uint64_t work = 0;
  while (left && begin < end) {
    const CodePoint c = DecodeAt(text.view(), begin);
    if (!goes(c.value)) break;
    begin += c.size;
    work += set.size() + 1;
  }
  while (right && end > begin) {
    std::size_t pos = end - 1;
    while (pos > begin && (static_cast<unsigned char>(text.data[pos]) & 0xC0) == 0x80)
      --pos;
    if (!goes(DecodeAt(text.view(), pos).value)) break;
    end = pos;
    work += set.size() + 1;
  }
  in.Step(work >> 8);
  return in.Part(text, begin, end - begin);
}

// Byte ranges of the parts between separators, or between runs of white space.
using Ranges = std::vector<std::pair<std::size_t, std::size_t>>;

// More parts than this are refused; the splitters stop one past it.
constexpr std::size_t kMaxParts = 1u << 18;

Ranges SplitSpaces(std::string_view view, std::int64_t max_splits) {
  Ranges parts;
  std::size_t pos = 0;
  const auto skip = [&](bool spaces) {
    while (pos < view.size()) {
      const CodePoint c = DecodeAt(view, pos);
      if (IsSpace(c.value) != spaces) break;
      pos += c.size;
    }
  };
  for (skip(true); pos < view.size() && parts.size() <= kMaxParts; skip(true)) {
    const std::size_t begin = pos;
    if (max_splits >= 0 && static_cast<std::int64_t>(parts.size()) >= max_splits) {
      parts.emplace_back(begin, view.size());
      break;
    }
    skip(false);
    parts.emplace_back(begin, pos);
  }
  return parts;
}

// The same from the right: at most max_splits parts are cut off at the end.
Ranges SplitSpacesRight(std::string_view view, std::int64_t max_splits) {
  Ranges all = SplitSpaces(view, -1);
  if (max_splits < 0 || static_cast<std::int64_t>(all.size()) <= max_splits + 1) return all;
  const std::size_t joined = all.size() - static_cast<std::size_t>(max_splits);
  const std::pair<std::size_t, std::size_t> head = {0, all[joined - 1].second};
  Ranges parts(all.begin() + static_cast<std::ptrdiff_t>(joined), all.end());
  const std::size_t begin = all[0].first;
  parts.insert(parts.begin(), {max_splits == 0 ? begin : head.first, head.second});
  return parts;
}

Ranges SplitAt(std::string_view view, std::string_view separator, std::int64_t max_splits,
               bool from_right) {
  Ranges parts;
  if (!from_right) {
    std::size_t begin = 0;
    while (parts.size() <= kMaxParts &&
           (max_splits < 0 || static_cast<std::int64_t>(parts.size()) < max_splits)) {
      const std::size_t found = FindText(view, separator, begin);
      if (found == std::string_view::npos) break;
      parts.emplace_back(begin, found);
      begin = found + separator.size();
    }
    parts.emplace_back(begin, view.size());
    return parts;
  }
  std::size_t end = view.size();
  while (parts.size() <= kMaxParts &&
         (max_splits < 0 || static_cast<std::int64_t>(parts.size()) < max_splits)) {
    const std::size_t found = FindLastText(view.substr(0, end), separator);
    if (found == std::string_view::npos) break;
    parts.emplace_back(found + separator.size(), end);
    end = found;
  }
  parts.emplace_back(0, end);
  std::reverse(parts.begin(), parts.end());
  return parts;
}

Value PartsOf(Interpreter& in, const Text& text, const Ranges& ranges) {
  if (ranges.size() > kMaxParts) {
    return in.Fail("text is split into more than " + std::to_string(kMaxParts) + " parts",
                   ErrorCode::kTooLarge);
  }
  in.StepBytes(text.size);
  in.Charge(ranges.size() * (sizeof(Text) + 2 * sizeof(Value)));
  std::vector<Value> parts;
  for (const auto& [begin, end] : ranges) {
    if (in.failed()) break;
    parts.push_back(in.Part(text, begin, end - begin));
  }
  in.Step(ranges.size() / 16);
  return in.MakeList(std::move(parts));
}

Value Split(Interpreter& in, const Text& text, const Arguments& arguments, bool from_right) {
  Value bound[2];
  if (!in.Bind("split", arguments, {"sep", "maxsplit"}, bound)) return Value();
  std::int64_t max_splits = -1;
  if (!bound[1].Is(Kind::kMissing)) {
    if (!bound[1].IsInteger()) return in.Fail("maxsplit must be an integer");
    max_splits = std::max<std::int64_t>(bound[1].AsInt(), -1);
  }
  if (bound[0].Is(Kind::kMissing) || bound[0].Is(Kind::kNone)) {
    return PartsOf(in, text,
                   from_right ? SplitSpacesRight(text.view(), max_splits)
                              : SplitSpaces(text.view(), max_splits));
  }
  if (!bound[0].Is(Kind::kString)) return in.Fail("split takes a string");
  if (bound[0].text->size == 0) return in.Fail("empty separator");
  return PartsOf(in, text, SplitAt(text.view(), bound[0].text->view(), max_splits, from_right));
}

Value SplitLines(Interpreter& in, const Text& text, const Arguments& arguments) {
  Value bound[1];
  if (!in.Bind("splitlines", arguments, {"keepends"}, bound)) return Value();
  const bool keep = in.Truthy(bound[0]);
  Ranges lines;
  std::size_t begin = 0;
  for (std::size_t pos = 0; pos < text.size && lines.size() <= kMaxParts;) {
    const CodePoint c = DecodeAt(text.view(), pos);
    const bool ends = (c.value >= 0x0A && c.value <= 0x0D) ||
                      (c.value >= 0x1C && c.value <= 0x1E) || c.value == 0x85 ||
                      c.value == 0x2028 || c.value == 0x2029;
    std::size_t next = pos + c.size;
    if (ends) {
      if (c.value == '\r' && next < text.size && text.data[next] == '\n') ++next;
      lines.emplace_back(begin, keep ? next : pos);
      begin = next;
    }
    pos = next;
  }
  if (begin < text.size) lines.emplace_back(begin, text.size);
  return PartsOf(in, text, lines);
}

Value Partition(Interpreter& in, const Text& text, const Arguments& arguments, bool from_right) {
  Value bound[1];
  if (!in.Bind("partition", arguments, {"sep"}, bound)) return Value();
  if (!bound[0].Is(Kind::kString) || bound[0].text->size == 0) {
    return in.Fail("partition takes a separator");
  }
  in.StepBytes(text.size);
  const std::string_view separator = bound[0].text->view();
  const std::size_t found =
      from_right ? FindLastText(text.view(), separator) : FindText(text.view(), separator);
  const Value empty = in.Part(text, 0, 0);
  const Value all = in.Part(text, 0, text.size);
  if (found == std::string_view::npos) {
    return from_right ? in.MakeTuple({empty, empty, all}) : in.MakeTuple({all, empty, empty});
  }
  const std::size_t after = found + separator.size();
  return in.MakeTuple({in.Part(text, 0, found), in.Part(text, found, separator.size()),
                       in.Part(text, after, text.size - after)});
}

// startswith, endswith: a string or a tuple of strings.
Value HasAffix(Interpreter& in, const Text& text, const Arguments& arguments, bool prefix) {
  Value bound[1];
  if (!in.Bind("startswith", arguments, {"prefix"}, bound)) return Value();
  std::vector<Value> wanted = {bound[0]};
  if (bound[0].Is(Kind::kTuple)) wanted = bound[0].list->items;
  for (const Value& value : wanted) {
    if (!value.Is(Kind::kString)) return in.Fail("startswith takes a string or a tuple of strings");
    const std::string_view affix = value.text->view();
    if (!in.Step()) return Value();
    if (prefix ? text.view().starts_with(affix) : text.view().ends_with(affix)) {
      return Value::Bool(true);
    }
  }
  return Value::Bool(false);
}

// find, index and their mirror images, with start and end counted in code points.
Value Find(Interpreter& in, const Text& text, const Arguments& arguments, bool from_right,
           bool must_exist) {
  Value bound[3];
  if (!in.Bind("find", arguments, {"sub", "start", "end"}, bound)) return Value();
  if (!bound[0].Is(Kind::kString)) return in.Fail("find takes a string");
  for (Value& value : bound) {
    if (value.Is(Kind::kMissing)) value = Value::None();
  }
  const Value window = in.GetSlice(in.OfText(&text), bound[1], bound[2], Value::None());
  if (in.failed()) return Value();
  in.StepBytes(text.size);
  const std::string_view view = window.text->view();
  const std::string_view wanted = bound[0].text->view();
  const std::size_t found = from_right ? FindLastText(view, wanted) : FindText(view, wanted);
  if (found == std::string_view::npos) {
    return must_exist ? in.Fail("substring not found") : Value::Int(-1);
  }
  const std::size_t before = static_cast<std::size_t>(window.text->data - text.data) + found;
  return Value::Int(static_cast<std::int64_t>(CountCodePoints(text.view().substr(0, before))));
}

Value Count(Interpreter& in, const Text& text, const Arguments& arguments) {
  Value bound[1];
  if (!in.Bind("count", arguments, {"sub"}, bound)) return Value();
  if (!bound[0].Is(Kind::kString)) return in.Fail("count takes a string");
  in.StepBytes(text.size);
  const std::string_view wanted = bound[0].text->view();
  if (wanted.empty()) {
    return Value::Int(static_cast<std::int64_t>(CountCodePoints(text.view())) + 1);
  }
  std::int64_t count = 0;
  for (std::size_t pos = FindText(text.view(), wanted); pos != std::string_view::npos;
       pos = FindText(text.view(), wanted, pos + wanted.size())) {
    ++count;
  }
  return Value::Int(count);
}

Value Replace(Interpreter& in, const Text& text, const Arguments& arguments) {
  Value bound[3];
  if (!in.Bind("replace", arguments, {"old", "new", "count"}, bound)) return Value();
  if (!bound[0].Is(Kind::kString) || !bound[1].Is(Kind::kString)) {
    return in.Fail("replace takes two strings");
  }
  std::int64_t left = -1;
  if (bound[2].IsInteger()) left = bound[2].AsInt();
  const Text& old = *bound[0].text;
  const Text& with = *bound[1].text;
  TextBuilder out = in.NewBuilder();
  in.StepBytes(text.size);
  std::size_t pos = 0;
  while (left != 0 && !out.full()) {
    const std::size_t found = FindText(text.view(), old.view(), pos);
    if (found == std::string_view::npos) break;
    if (left > 0) --left;
    if (old.size == 0) {
      // An empty text is found before every character and at the end.
      out.Append(with);
      if (pos >= text.size) break;
      const std::size_t size = DecodeAt(text.view(), pos).size;
      out.Append(text, pos, size);
      pos += size;
      continue;
    }
    out.Append(text, pos, found - pos);
    out.Append(with);
    pos = found + old.size;
  }
  if (pos < text.size) out.Append(text, pos, text.size - pos);
  return in.Finish(out);
}

Value JoinAll(Interpreter& in, const Text& separator, const Arguments& arguments) {
  Value bound[1];
  std::vector<Value> items;
  if (!in.Bind("join", arguments, {"iterable"}, bound) || !in.Iterate(bound[0], items)) {
    return Value();
  }
  TextBuilder out = in.NewBuilder();
  for (std::size_t i = 0; i < items.size() && in.Step(); ++i) {
    if (!items[i].Is(Kind::kString)) return in.Fail("join takes strings");
    if (i > 0) out.Append(separator);
    out.Append(*items[i].text);
    if (out.full()) break;
  }
  return in.Finish(out);
}

Value Pad(Interpreter& in, const Text& text, const Arguments& arguments, std::string_view name) {
  Value bound[2];
  if (!in.Bind(name, arguments, {"width", "fillchar"}, bound)) return Value();
  if (!bound[0].IsInteger()) return in.Fail("width must be an integer");
  const bool zeros = name == "zfill";
  Text fill;
  fill.data = zeros ? "0" : " ";
  fill.size = 1;
  fill.trusted = true;
  if (bound[1].Is(Kind::kString)) fill = *bound[1].text;
  if (CountCodePoints(fill.view()) != 1) return in.Fail("the fill must be one character");
  const std::int64_t length = static_cast<std::int64_t>(CountCodePoints(text.view()));
  const std::int64_t width = std::min<std::int64_t>(
      bound[0].AsInt(), static_cast<std::int64_t>(in.limits().max_output_bytes) + 1);
  const std::int64_t padding = std::max<std::int64_t>(0, width - length);
  std::int64_t before = padding;
  if (name == "ljust") before = 0;
  // str.center puts the odd one left when the width is odd.
  if (name == "center") before = padding / 2 + (padding & width & 1);
  TextBuilder out = in.NewBuilder();
  std::size_t sign = 0;
  if (zeros && text.size > 0 && (text.data[0] == '-' || text.data[0] == '+')) sign = 1;
  out.Append(text, 0, sign);
  for (std::int64_t i = 0; i < before && !out.full(); ++i)
    out.Append(fill);
  out.Append(text, sign, text.size - sign);
  for (std::int64_t i = before; i < padding && !out.full(); ++i)
    out.Append(fill);
  return in.Finish(out);
}

Value TextPredicate(Interpreter& in, const Text& text, std::string_view name) {
  in.StepBytes(text.size);
  const auto is = [&](CharTest test) { return Value::Bool(AllOf(text, test)); };
  if (name == "isalpha") return is(IsAlpha);
  if (name == "isalnum") return is([](std::uint32_t c) { return IsAlpha(c) || IsDecimal(c); });
  if (name == "isspace") return is(IsSpace);
  if (name == "isascii") {
    return Value::Bool(
        std::all_of(text.data, text.data + text.size, [](char c) { return (c & 0x80) == 0; }));
  }
  if (name == "isupper") return Value::Bool(CasedAllOf(text, IsUpper));
  if (name == "islower") return Value::Bool(CasedAllOf(text, IsLower));
  return is(IsDecimal);  // isdigit, isdecimal, isnumeric
}

Value TextMethod(Interpreter& in, const Text& text, std::string_view name,
                 const Arguments& arguments) {
  Value bound[1];
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    if (!in.Bind(name, arguments, {"chars"}, bound)) return Value();
    return Strip(in, text, bound[0], name != "rstrip", name != "lstrip");
  }
  if (name == "split" || name == "rsplit") return Split(in, text, arguments, name == "rsplit");
  if (name == "splitlines") return SplitLines(in, text, arguments);
  if (name == "partition" || name == "rpartition") {
    return Partition(in, text, arguments, name == "rpartition");
  }
  if (name == "startswith" || name == "endswith") {
    return HasAffix(in, text, arguments, name == "startswith");
  }
  if (name == "find" || name == "index") return Find(in, text, arguments, false, name == "index");
  if (name == "rfind" || name == "rindex") return Find(in, text, arguments, true, name == "rindex");
  if (name == "count") return Count(in, text, arguments);
  if (name == "replace") return Replace(in, text, arguments);
  if (name == "join") return JoinAll(in, text, arguments);
  if (name == "format") return in.BraceFormat(text, arguments);
  if (name == "removeprefix" || name == "removesuffix") {
    if (!in.Bind(name, arguments, {"affix"}, bound)) return Value();
    if (!bound[0].Is(Kind::kString)) return in.Fail(std::string(name) + " takes a string");
    const std::string_view affix = bound[0].text->view();
    const bool prefix = name == "removeprefix";
    const bool has = prefix ? text.view().starts_with(affix) : text.view().ends_with(affix);
    const std::size_t cut = has ? affix.size() : 0;
    return in.Part(text, prefix ? cut : 0, text.size - cut);
  }
  if (name == "center" || name == "ljust" || name == "rjust" || name == "zfill") {
    return Pad(in, text, arguments, name);
  }
  if (!in.Bind(name, arguments, {}, bound)) return Value();
  if (name == "lower" || name == "casefold") return ChangeCase(in, text, Case::kLower);
  if (name == "upper") return ChangeCase(in, text, Case::kUpper);
  if (name == "capitalize") return ChangeCase(in, text, Case::kCapitalize);
  if (name == "title") return ChangeCase(in, text, Case::kTitle);
  return TextPredicate(in, text, name);
}

// ---- the others ----

Value ListMethod(Interpreter& in, const Value& list, std::string_view name,
                 const Arguments& arguments) {
  Value bound[1];
  if (name == "copy") return in.MakeList(list.list->items);
  if (!in.Bind(name, arguments, {"value"}, bound)) return Value();
  std::int64_t count = 0;
  for (std::size_t i = 0; i < list.list->items.size() && in.Step(); ++i) {
    if (!in.Equal(list.list->items[i], bound[0])) continue;
    if (name == "index") return Value::Int(static_cast<std::int64_t>(i));
    ++count;
  }
  return name == "index" ? in.Fail("value is not in list") : Value::Int(count);
}

Value DictMethod(Interpreter& in, const Value& dict, std::string_view name,
                 const Arguments& arguments) {
  Value bound[2];
  if (name == "get") {
    if (!in.Bind(name, arguments, {"key", "default"}, bound)) return Value();
    if (const Value* found = in.FindKey(*dict.dict, bound[0]); found != nullptr) return *found;
    return bound[1].Is(Kind::kMissing) ? Value::None() : bound[1];
  }
  if (!in.Bind(name, arguments, {}, bound)) return Value();
  if (name == "copy") return dict;  // Nothing changes a dictionary, so a copy is the same.
  in.Charge(sizeof(View));
  View* view = in.heap().NewView();
  view->dict = dict.dict;
  view->what = name == "items"  ? View::What::kItems
               : name == "keys" ? View::What::kKeys
                                : View::What::kValues;
  Value value = Value::Of(Kind::kView);
  value.view = view;
  return value;
}

Value LoopMethod(Interpreter& in, Loop& loop, std::string_view name, const Arguments& arguments) {
  const std::vector<Value>& values = arguments.positional;
  if (name == "cycle") {
    if (values.empty()) return in.Fail("no items for cycling given");
    return values[loop.index0 % values.size()];
  }
  bool same = loop.changed_before && values.size() == loop.last_changed.size();
  for (std::size_t i = 0; same && i < values.size(); ++i) {
    same = in.Equal(values[i], loop.last_changed[i]);
  }
  loop.changed_before = true;
  loop.last_changed = values;
  return Value::Bool(!same);
}

}  // namespace

bool HasMethod(const Value& receiver, std::string_view name, bool* changes) {
  *changes = false;
  switch (receiver.kind) {
    case Kind::kString:
      return In(kTextMethods, name);
    case Kind::kList:
      *changes = In(kListChanges, name);
      return *changes || In(kListMethods, name);
    case Kind::kTuple:
      return name == "count" || name == "index";
    case Kind::kDict:
      *changes = In(kDictChanges, name);
      return *changes || In(kDictMethods, name);
    case Kind::kLoop:
      return name == "cycle" || name == "changed";
    case Kind::kCycler:
      return name == "next" || name == "reset";
    default:
      return false;
  }
}

Value Interpreter::CallMethod(const Value& receiver, std::string_view name,
                              const Arguments& arguments) {
  if (!Step()) return Value();
  switch (receiver.kind) {
    case Kind::kString:
      return TextMethod(*this, *receiver.text, name, arguments);
    case Kind::kList:
    case Kind::kTuple:
      return ListMethod(*this, receiver, name, arguments);
    case Kind::kDict:
      return DictMethod(*this, receiver, name, arguments);
    case Kind::kLoop:
      return LoopMethod(*this, *receiver.loop, name, arguments);
    case Kind::kCycler: {
      Cycler& cycler = *receiver.cycler;
      const Value current = cycler.items[cycler.pos];
      cycler.pos = name == "reset" ? 0 : (cycler.pos + 1) % cycler.items.size();
      return name == "reset" ? Value::None() : current;
    }
    default:
      return Fail("no such method", ErrorCode::kInternal);
  }
}

}  // namespace kvrm::jinja
