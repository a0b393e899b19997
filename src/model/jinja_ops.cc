// SPDX-License-Identifier: Apache-2.0
// Operations on values: making them, text and truth, comparison, lookup, arithmetic.
#include <algorithm>
#include <cmath>

#include "model/jinja_eval.h"
#include "model/jinja_text.h"

namespace kvrm::jinja {
namespace {

// Deeper values than this are built on purpose: a request's JSON stops at 64.
constexpr int kMaxValueDepth = 150;

void AppendQuoted(const Text& text, TextBuilder& out) {
  const std::string_view view = text.view();
  const bool has_single = view.find('\'') != std::string_view::npos;
  const bool has_double = view.find('"') != std::string_view::npos;
  const char quote = has_single && !has_double ? '"' : '\'';
  out.Append(std::string_view(&quote, 1), true);
  for (std::size_t pos = 0; pos < view.size() && !out.full();) {
    const CodePoint c = DecodeAt(view, pos);
    std::string escaped;
    if (c.value == static_cast<unsigned char>(quote) || c.value == '\\') {
      escaped = {'\\', static_cast<char>(c.value)};
    } else if (c.value == '\n') {
      escaped = "\\n";
    } else if (c.value == '\r') {
      escaped = "\\r";
    } else if (c.value == '\t') {
      escaped = "\\t";
    } else if (!IsPrintable(c.value)) {
      static constexpr char kHex[] = "0123456789abcdef";
      const int digits = c.value < 0x100 ? 2 : c.value < 0x10000 ? 4 : 8;
      escaped = digits == 2 ? "\\x" : digits == 4 ? "\\u" : "\\U";
      for (int i = digits - 1; i >= 0; --i)
        escaped += kHex[c.value >> (4 * i) & 0xF];
    }
    if (escaped.empty()) {
      out.Append(text, pos, c.size);
    } else {
      out.Append(escaped, text.TrustedAt(pos));
    }
    pos += c.size;
  }
  out.Append(std::string_view(&quote, 1), true);
}

}  // namespace

// ---- making values ----

Value Interpreter::OfText(const Text* text) {
  Value value = Value::Of(Kind::kString);
  value.text = text;
  return value;
}

// HAZARD: the bytes are not copied; they must outlive the rendering.
Value Interpreter::MakeText(std::string_view view, bool trusted) {
  Charge(sizeof(Text));
  Text* text = heap_.NewText();
  text->data = view.data();
  text->size = view.size();
  text->trusted = trusted;
  return OfText(text);
}

Value Interpreter::Finish(const TextBuilder& builder) {
  if (failed_) return OfText(&empty_);
  if (builder.full()) {
    Fail("text has more than " + std::to_string(limits_.max_output_bytes) + " bytes",
         ErrorCode::kTooLarge);
    return OfText(&empty_);
  }
  StepBytes(builder.size());
  const Text* text = builder.Finish(heap_);
  if (text == nullptr) {
    Charge(limits_.max_heap_bytes);  // Reports the spent budget.
    return OfText(&empty_);
  }
  return OfText(text);
}

Value Interpreter::Part(const Text& text, std::size_t begin, std::size_t size) {
  Charge(sizeof(Text));
  Text* part = heap_.NewText();
  *part = text;
  part->data += begin;
  part->size = size;
  if (part->trust != nullptr) part->trust += begin;
  return OfText(part);
}

Value Interpreter::Join(const Text& left, const Text& right) {
  if (right.size == 0) return OfText(&left);
  if (left.size == 0) return OfText(&right);
  const std::size_t size = left.size + right.size;
  if (size > limits_.max_output_bytes) {
    Fail("text has more than " + std::to_string(limits_.max_output_bytes) + " bytes",
         ErrorCode::kTooLarge);
    return OfText(&empty_);
  }
  const bool mixed =
      left.trust != nullptr || right.trust != nullptr || left.trusted != right.trusted;
  Buffer* buffer = left.buffer;
  const bool in_place = buffer != nullptr &&
                        left.data + left.size == buffer->bytes.get() + buffer->size &&
                        buffer->capacity - buffer->size >= right.size &&
                        (!mixed || buffer->trust != nullptr) && (mixed || buffer->trust == nullptr);
  if (!in_place) {
    // Room to double, so that a text built piece by piece is copied a constant number of times.
    const std::size_t capacity = size > 256 ? 2 * size : size;
    if (!Charge(sizeof(Buffer) + capacity * (mixed ? 2 : 1)) || !StepBytes(left.size)) {
      return OfText(&empty_);
    }
    buffer = heap_.NewBuffer();
    buffer->bytes = std::make_unique<char[]>(capacity);
    buffer->capacity = capacity;
    if (mixed) buffer->trust = std::make_unique<std::uint8_t[]>(capacity);
  }
  const auto append = [&](const Text& text) {
    std::copy(text.data, text.data + text.size, buffer->bytes.get() + buffer->size);
    for (std::size_t i = 0; mixed && i < text.size; ++i) {
      buffer->trust[buffer->size + i] = text.TrustedAt(i) ? 1 : 0;
    }
    buffer->size += text.size;
  };
  if (!in_place) append(left);
  append(right);
  StepBytes(right.size);
  Charge(sizeof(Text));
  Text* joined = heap_.NewText();
  joined->data = buffer->bytes.get() + buffer->size - size;
  joined->size = size;
  joined->trusted = left.trusted;
  joined->buffer = buffer;
  if (mixed) joined->trust = buffer->trust.get() + buffer->size - size;
  return OfText(joined);
}

Value Interpreter::MakeList(std::vector<Value> items) {
  Value value = Value::Of(Kind::kList);
  Charge(sizeof(List) + items.size() * sizeof(Value));
  List* list = heap_.NewList();
  if (!failed_) list->items = std::move(items);
  value.list = list;
  return value;
}

Value Interpreter::MakeTuple(std::vector<Value> items) {
  Value value = MakeList(std::move(items));
  value.kind = Kind::kTuple;
  return value;
}

Value Interpreter::MakeIterator(std::vector<Value> items) {
  Value value = Value::Of(Kind::kIterator);
  Charge(sizeof(Iterator) + items.size() * sizeof(Value));
  value.iterator = heap_.NewIterator();
  if (!failed_) value.iterator->items = std::move(items);
  return value;
}

Value Interpreter::MakeDict(std::vector<std::pair<Value, Value>> items) {
  Value value = Value::Of(Kind::kDict);
  Charge(sizeof(Dict) + items.size() * 128);
  Dict* dict = heap_.NewDict();
  value.dict = dict;
  dict->items.reserve(items.size());
  for (const auto& [key, item] : items) {
    if (!Step(0)) break;
    if (const Value* known = FindKey(*dict, key); known != nullptr) {
      *const_cast<Value*>(known) = item;  // A part of *dict, which is ours.
      continue;
    }
    if (failed_) break;
    dict->items.emplace_back(key, item);
    dict->IndexLast();
  }
  return value;
}

Value Interpreter::MakeUndefined(std::string message, bool unsafe) {
  Value value;
  if (!Charge(sizeof(Undefined) + message.size())) return value;
  Undefined* undefined = heap_.NewUndefined();
  undefined->message = std::move(message);
  undefined->unsafe = unsafe;
  value.undefined = undefined;
  return value;
}

// ---- text and truth ----

bool Interpreter::Truthy(const Value& value) const {
  switch (value.kind) {
    case Kind::kMissing:
    case Kind::kUndefined:
    case Kind::kNone:
      return false;
    case Kind::kBool:
      return value.boolean;
    case Kind::kInt:
      return value.integer != 0;
    case Kind::kFloat:
      return value.real != 0;
    case Kind::kString:
      return value.text->size > 0;
    case Kind::kList:
    case Kind::kTuple:
      return !value.list->items.empty();
    case Kind::kDict:
      return !value.dict->items.empty();
    case Kind::kView:
      return !value.view->dict->items.empty();
    case Kind::kRange:
      return value.range->size > 0;
    default:
      return true;
  }
}

const Text& Interpreter::ToText(const Value& value) {
  if (value.Is(Kind::kString)) return *value.text;
  TextBuilder builder = NewBuilder();
  AppendText(value, builder);
  return *Finish(builder).text;
}

void Interpreter::AppendText(const Value& value, TextBuilder& out) {
  if (failed_ || value.Is(Kind::kUndefined) || value.Is(Kind::kMissing)) return;
  if (value.Is(Kind::kString)) return out.Append(*value.text);
  if (value.IsNumber() || value.Is(Kind::kNone)) return AppendRepr(value, out, 0);
  // Brackets and quotes around a request's text are as little trusted as the text.
  TextBuilder builder = NewBuilder();
  AppendRepr(value, builder, 0);
  builder.LevelTrust();
  const Value text = Finish(builder);
  if (!failed_) out.Append(*text.text);
}

void Interpreter::AppendRepr(const Value& value, TextBuilder& out, int depth) {
  if (depth > kMaxValueDepth) {
    Fail("value is nested too deeply to be printed", ErrorCode::kTooLarge);
    return;
  }
  if (!Step(0) || out.full()) return;
  const auto sequence = [&](const std::vector<Value>& items, std::string_view open,
                            std::string_view close) {
    out.Append(open, true);
    for (std::size_t i = 0; i < items.size() && Step(); ++i) {
      if (i > 0) out.Append(", ", true);
      AppendRepr(items[i], out, depth + 1);
    }
    out.Append(close, true);
  };
  switch (value.kind) {
    case Kind::kMissing:
    case Kind::kUndefined:
      out.Append("Undefined", true);
      break;
    case Kind::kNone:
      out.Append("None", true);
      break;
    case Kind::kBool:
      out.Append(value.boolean ? "True" : "False", true);
      break;
    case Kind::kInt:
      out.Append(std::to_string(value.integer), true);
      break;
    case Kind::kFloat:
      out.Append(FloatRepr(value.real), true);
      break;
    case Kind::kString:
      StepBytes(value.text->size);
      AppendQuoted(*value.text, out);
      break;
    case Kind::kList:
      sequence(value.list->items, "[", "]");
      break;
    case Kind::kTuple:
      sequence(value.list->items, "(", value.list->items.size() == 1 ? ",)" : ")");
      break;
    case Kind::kDict:
      out.Append("{", true);
      for (std::size_t i = 0; i < value.dict->items.size() && Step(); ++i) {
        if (i > 0) out.Append(", ", true);
        AppendRepr(value.dict->items[i].first, out, depth + 1);
        out.Append(": ", true);
        AppendRepr(value.dict->items[i].second, out, depth + 1);
      }
      out.Append("}", true);
      break;
    case Kind::kView: {
      static constexpr const char* kOpen[] = {"dict_items([", "dict_keys([", "dict_values(["};
      std::vector<Value> items;
      Iterate(value, items);
      sequence(items, kOpen[static_cast<std::size_t>(value.view->what)], "])");
      break;
    }
    case Kind::kRange: {
      const Range& range = *value.range;
      out.Append("range(" + std::to_string(range.start) + ", " +
                     std::to_string(range.start + range.size * range.step) +
                     (range.step == 1 ? ")" : ", " + std::to_string(range.step) + ")"),
                 true);
      break;
    }
    default:
      Fail(std::string("a ") + KindName(value) + " cannot be printed");
      break;
  }
}

Value Interpreter::EscapeHtml(const Value& value) {
  const Text& text = ToText(value);
  if (text.markup) return OfText(&text);
  TextBuilder builder = NewBuilder();
  for (std::size_t i = 0; i < text.size; ++i) {
    const bool trusted = text.TrustedAt(i);
    switch (text.data[i]) {
      case '&':
        builder.Append("&amp;", trusted);
        break;
      case '<':
        builder.Append("&lt;", trusted);
        break;
      case '>':
        builder.Append("&gt;", trusted);
        break;
      case '\'':
        builder.Append("&#39;", trusted);
        break;
      case '"':
        builder.Append("&#34;", trusted);
        break;
      default:
        builder.Append(text, i, 1);
        break;
    }
  }
  const Value escaped = Finish(builder);
  const Value result = Part(*escaped.text, 0, escaped.text->size);
  const_cast<Text*>(result.text)->markup = true;  // Part made it a moment ago.
  return result;
}

// ---- comparison ----

bool Interpreter::Equal(const Value& a, const Value& b, int depth) {
  if (depth > kMaxValueDepth) {
    Fail("values are nested too deeply to be compared", ErrorCode::kTooLarge);
    return false;
  }
  if (a.IsNumber() && b.IsNumber()) {
    if (a.IsInteger() && b.IsInteger()) return a.AsInt() == b.AsInt();
    return a.AsDouble() == b.AsDouble();
  }
  if (a.kind != b.kind) return false;
  switch (a.kind) {
    case Kind::kMissing:
    case Kind::kUndefined:
    case Kind::kNone:
      return true;
    case Kind::kString:
      return a.text->size == b.text->size && StepBytes(a.text->size) &&
             a.text->view() == b.text->view();
    case Kind::kList:
    case Kind::kTuple: {
      if (a.list == b.list) return true;
      if (a.list->items.size() != b.list->items.size()) return false;
      for (std::size_t i = 0; i < a.list->items.size(); ++i) {
        if (!Step() || !Equal(a.list->items[i], b.list->items[i], depth + 1)) return false;
      }
      return !failed_;
    }
    case Kind::kDict:
      if (a.dict == b.dict) return true;
      if (a.dict->items.size() != b.dict->items.size()) return false;
      for (const auto& [key, value] : a.dict->items) {
        const Value* other = Step() ? FindKey(*b.dict, key) : nullptr;
        if (other == nullptr || !Equal(value, *other, depth + 1)) return false;
      }
      return !failed_;
    case Kind::kRange:
      return a.range->size == b.range->size &&
             (a.range->size == 0 || a.range->start == b.range->start) &&
             (a.range->size < 2 || a.range->step == b.range->step);
    case Kind::kFunction:
      return a.function == b.function;
    case Kind::kMethod:
      return a.method->name == b.method->name &&
             Equal(a.method->receiver, b.method->receiver, depth + 1);
    default:
      return a.list == b.list;  // Identity: all the pointers share their place.
  }
}

bool Interpreter::Less(const Value& a, const Value& b, int depth) {
  if (failed_) return false;
  if (a.IsNumber() && b.IsNumber()) {
    if (a.IsInteger() && b.IsInteger()) return a.AsInt() < b.AsInt();
    return a.AsDouble() < b.AsDouble();
  }
  if (a.Is(Kind::kString) && b.Is(Kind::kString)) {
    StepBytes(std::min(a.text->size, b.text->size));
    return a.text->view() < b.text->view();
  }
  if (a.IsSequence() && a.kind == b.kind && depth < kMaxValueDepth) {
    const std::vector<Value>& x = a.list->items;
    const std::vector<Value>& y = b.list->items;
    for (std::size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
      if (!Step()) return false;
      if (!Equal(x[i], y[i], depth + 1)) return Less(x[i], y[i], depth + 1);
    }
    return x.size() < y.size();
  }
  if (a.Is(Kind::kUndefined) && a.undefined != nullptr) {
    Fail(a.undefined->message);
  } else if (b.Is(Kind::kUndefined) && b.undefined != nullptr) {
    Fail(b.undefined->message);
  } else {
    Fail(std::string("cannot order '") + KindName(a) + "' and '" + KindName(b) + "'");
  }
  return false;
}

const Value* Interpreter::FindKey(const Dict& dict, const Value& key) {
  if (key.Is(Kind::kString)) {
    StepBytes(key.text->size);
    return dict.FindText(key.text->view());
  }
  if (key.Is(Kind::kList) || key.Is(Kind::kDict)) {
    Fail(std::string("unhashable type: '") + KindName(key) + "'");
    return nullptr;
  }
  for (const auto& [known, value] : dict.items) {
    if (known.Is(Kind::kString)) continue;
    if (!Step()) return nullptr;
    if (Equal(known, key)) return &value;
  }
  // Every string key that was passed over costs too.
  Step(dict.items.size() / 64);
  return nullptr;
}

bool Interpreter::Contains(const Value& container, const Value& item) {
  if (container.Is(Kind::kString)) {
    if (!item.Is(Kind::kString)) {
      Fail(std::string("'in <string>' requires string as left operand, not ") + KindName(item));
      return false;
    }
    StepBytes(container.text->size);
    return FindText(container.text->view(), item.text->view()) != std::string_view::npos;
  }
  if (container.Is(Kind::kDict)) return FindKey(*container.dict, item) != nullptr;
  std::vector<Value> items;
  if (!Iterate(container, items)) return false;
  for (const Value& value : items) {
    if (!Step()) return false;
    if (Equal(value, item)) return true;
  }
  return false;
}

// ---- iteration ----

bool Interpreter::Iterate(const Value& value, std::vector<Value>& out) {
  if (failed_) return false;
  std::vector<Value> items;
  switch (value.kind) {
    case Kind::kUndefined:
      return true;
    case Kind::kString: {
      if (!Charge(value.text->size * (sizeof(Value) + sizeof(Text)))) return false;
      for (std::size_t pos = 0; pos < value.text->size;) {
        const CodePoint c = DecodeAt(value.text->view(), pos);
        items.push_back(Part(*value.text, pos, c.size));
        pos += c.size;
        if (!Step()) return false;
      }
      break;
    }
    case Kind::kList:
    case Kind::kTuple:
      items = value.list->items;
      break;
    case Kind::kDict:
      for (const auto& pair : value.dict->items)
        items.push_back(pair.first);
      break;
    case Kind::kView:
      for (const auto& [key, item] : value.view->dict->items) {
        if (value.view->what == View::What::kItems) {
          items.push_back(MakeTuple({key, item}));
        } else {
          items.push_back(value.view->what == View::What::kKeys ? key : item);
        }
        if (!Step()) return false;
      }
      break;
    case Kind::kRange:
      for (std::int64_t i = 0; i < value.range->size; ++i) {
        items.push_back(Value::Int(value.range->start + i * value.range->step));
      }
      break;
    case Kind::kIterator: {
      Iterator& iterator = *value.iterator;
      items.assign(iterator.items.begin() + static_cast<std::ptrdiff_t>(iterator.next),
                   iterator.items.end());
      iterator.next = iterator.items.size();
      break;
    }
    default:
      Fail(std::string("'") + KindName(value) + "' object is not iterable");
      return false;
  }
  out.insert(out.end(), items.begin(), items.end());
  return Charge(items.size() * sizeof(Value)) && Step(items.size() / 16);
}

Value Interpreter::Length(const Value& value) {
  const auto of = [](std::size_t size) { return Value::Int(static_cast<std::int64_t>(size)); };
  switch (value.kind) {
    case Kind::kUndefined:
      return of(0);
    case Kind::kString:
      StepBytes(value.text->size);
      return of(CountCodePoints(value.text->view()));
    case Kind::kList:
    case Kind::kTuple:
      return of(value.list->items.size());
    case Kind::kDict:
      return of(value.dict->items.size());
    case Kind::kView:
      return of(value.view->dict->items.size());
    case Kind::kRange:
      return Value::Int(value.range->size);
    case Kind::kLoop:
      return of(value.loop->items.size());
    default:
      return Fail(std::string("object of type '") + KindName(value) + "' has no len()");
  }
}

// ---- lookup ----

Value Interpreter::LoopAttribute(Loop& loop, std::string_view name) {
  const auto number = [](std::size_t n) { return Value::Int(static_cast<std::int64_t>(n)); };
  const std::size_t size = loop.items.size();
  if (name == "index") return number(loop.index0 + 1);
  if (name == "index0") return number(loop.index0);
  if (name == "revindex") return number(size - loop.index0);
  if (name == "revindex0") return number(size - loop.index0 - 1);
  if (name == "length") return number(size);
  if (name == "first") return Value::Bool(loop.index0 == 0);
  if (name == "last") return Value::Bool(loop.index0 + 1 >= size);
  if (name == "depth") return number(1);
  if (name == "depth0") return number(0);
  if (name == "previtem") {
    return loop.index0 == 0 ? MakeUndefined("there is no previous item")
                            : loop.items[loop.index0 - 1];
  }
  if (name == "nextitem") {
    return loop.index0 + 1 >= size ? MakeUndefined("there is no next item")
                                   : loop.items[loop.index0 + 1];
  }
  return Value::Missing();
}

Value Interpreter::GetAttribute(const Value& object, std::string_view name) {
  if (failed_) return Value();
  if (object.Is(Kind::kUndefined)) {
    return Fail(object.undefined != nullptr ? object.undefined->message : "value is undefined");
  }
  bool changes = false;
  if (HasMethod(object, name, &changes)) {
    if (changes) {
      return MakeUndefined("access to attribute '" + std::string(name) + "' of '" +
                               KindName(object) + "' object is unsafe",
                           true);
    }
    Charge(sizeof(Method));
    Method* method = heap_.NewMethod();
    method->receiver = object;
    method->name = name;
    Value value = Value::Of(Kind::kMethod);
    value.method = method;
    return value;
  }
  Value found = Value::Missing();
  switch (object.kind) {
    case Kind::kDict:
      if (const Value* value = object.dict->FindText(name); value != nullptr) return *value;
      break;
    case Kind::kNamespace:
      Step(object.name_space->items.size() / 64);
      for (const auto& [key, value] : object.name_space->items) {
        if (key == name) return value;
      }
      break;
    case Kind::kTuple:
      if (object.list->is_group && name == "grouper") return object.list->items[0];
      if (object.list->is_group && name == "list") return object.list->items[1];
      break;
    case Kind::kLoop:
      found = LoopAttribute(*object.loop, name);
      break;
    case Kind::kCycler:
      if (name == "current") found = object.cycler->items[object.cycler->pos];
      break;
    case Kind::kMacro:
      if (name == "name" && object.macro->node->kind == NodeKind::kMacro) {
        found = MakeText(tree_.names[object.macro->node->name], true);
      }
      break;
    default:
      break;
  }
  if (!found.Is(Kind::kMissing)) return found;
  if (name.starts_with("__")) {
    return MakeUndefined("access to attribute '" + std::string(name.substr(0, 64)) + "' of '" +
                             KindName(object) + "' object is unsafe",
                         true);
  }
  return MakeUndefined(std::string("'") + KindName(object) + " object' has no attribute '" +
                       std::string(name.substr(0, 64)) + "'");
}

Value Interpreter::GetItem(const Value& object, const Value& key) {
  if (failed_) return Value();
  if (object.Is(Kind::kUndefined)) return GetAttribute(object, "");
  if (object.Is(Kind::kDict) && !key.Is(Kind::kList) && !key.Is(Kind::kDict)) {
    if (const Value* value = FindKey(*object.dict, key); value != nullptr) return *value;
  }
  if (key.Is(Kind::kString) && !object.Is(Kind::kDict)) {
    return GetAttribute(object, key.text->view());
  }
  bool changes = false;
  if (key.Is(Kind::kString) && HasMethod(object, key.text->view(), &changes)) {
    return GetAttribute(object, key.text->view());
  }
  if (key.IsInteger() &&
      (object.IsSequence() || object.Is(Kind::kString) || object.Is(Kind::kRange))) {
    const std::int64_t size = Length(object).AsInt();
    const std::int64_t i = key.AsInt() < 0 ? key.AsInt() + size : key.AsInt();
    if (i >= 0 && i < size) {
      if (object.IsSequence()) return object.list->items[static_cast<std::size_t>(i)];
      if (object.Is(Kind::kRange)) return Value::Int(object.range->start + i * object.range->step);
      return GetSlice(object, Value::Int(i), Value::Int(i + 1), Value::None());
    }
  }
  return MakeUndefined(std::string(KindName(object)) + " object has no such element");
}

Value Interpreter::GetSlice(const Value& object, const Value& start, const Value& stop,
                            const Value& step) {
  if (object.Is(Kind::kUndefined)) return GetAttribute(object, "");
  if (!object.IsSequence() && !object.Is(Kind::kString) && !object.Is(Kind::kRange)) {
    return Fail(std::string("'") + KindName(object) + "' object cannot be sliced");
  }
  for (const Value* part : {&start, &stop, &step}) {
    if (!part->Is(Kind::kNone) && !part->IsInteger()) return Fail("slice indices must be integers");
  }
  const std::int64_t size = Length(object).AsInt();
  const std::int64_t stride = step.Is(Kind::kNone) ? 1 : step.AsInt();
  if (stride == 0) return Fail("slice step cannot be zero");
  const auto clamp = [&](const Value& value, std::int64_t missing) {
    if (value.Is(Kind::kNone)) return missing;
    std::int64_t i = value.AsInt();
    if (i < 0) i = i < -size ? -1 : i + size;
    if (stride > 0) return std::clamp<std::int64_t>(i, 0, size);
    return std::clamp<std::int64_t>(i, -1, size - 1);
  };
  const std::int64_t first = clamp(start, stride > 0 ? 0 : size - 1);
  const std::int64_t last = clamp(stop, stride > 0 ? size : -1);
  std::vector<std::size_t> picked;
  if (stride != 1 || !object.Is(Kind::kString)) {
    for (std::int64_t i = first; stride > 0 ? i < last : i > last;) {
      picked.push_back(static_cast<std::size_t>(i));
      if (__builtin_add_overflow(i, stride, &i)) break;
    }
    Charge(picked.size() * sizeof(Value));
    if (!Step(picked.size() / 16)) return Value();
  }
  if (object.Is(Kind::kString)) {
    const Text& text = *object.text;
    if (stride == 1) {
      std::size_t begin = 0;
      std::int64_t seen = 0;
      while (seen < first && begin < text.size)
        begin += DecodeAt(text.view(), begin).size, ++seen;
      std::size_t end = begin;
      while (seen < last && end < text.size)
        end += DecodeAt(text.view(), end).size, ++seen;
      StepBytes(end);
      return Part(text, begin, end - begin);
    }
    std::vector<std::size_t> places;
    for (std::size_t pos = 0; pos < text.size; pos += DecodeAt(text.view(), pos).size) {
      places.push_back(pos);
    }
    TextBuilder builder = NewBuilder();
    for (const std::size_t i : picked) {
      builder.Append(text, places[i], DecodeAt(text.view(), places[i]).size);
    }
    StepBytes(text.size);
    return Finish(builder);
  }
  std::vector<Value> items;
  for (const std::size_t i : picked) {
    items.push_back(
        object.Is(Kind::kRange)
            ? Value::Int(object.range->start + static_cast<std::int64_t>(i) * object.range->step)
            : object.list->items[i]);
  }
  return object.Is(Kind::kTuple) ? MakeTuple(std::move(items)) : MakeList(std::move(items));
}

// ---- arithmetic ----

namespace {

// Python's rules for the sign of quotients and remainders: towards minus infinity.
bool IntegerArithmetic(Operator op, std::int64_t a, std::int64_t b, std::int64_t* out) {
  switch (op) {
    case Operator::kAdd:
      return !__builtin_add_overflow(a, b, out);
    case Operator::kSub:
      return !__builtin_sub_overflow(a, b, out);
    case Operator::kMul:
      return !__builtin_mul_overflow(a, b, out);
    case Operator::kFloorDiv:
    case Operator::kMod: {
      if (b == -1) {
        *out = 0;
        return op == Operator::kMod || !__builtin_sub_overflow(std::int64_t{0}, a, out);
      }
      const std::int64_t quotient = a / b;
      const std::int64_t rest = a % b;
      const bool adjust = rest != 0 && (rest < 0) != (b < 0);
      *out = op == Operator::kMod ? (adjust ? rest + b : rest) : (adjust ? quotient - 1 : quotient);
      return true;
    }
    case Operator::kPow: {
      std::int64_t result = 1;
      std::int64_t base = a;
      for (std::int64_t left = b; left > 0; left >>= 1) {
        if ((left & 1) != 0 && __builtin_mul_overflow(result, base, &result)) return false;
        if (left > 1 && __builtin_mul_overflow(base, base, &base)) return false;
      }
      *out = result;
      return true;
    }
    default:
      return false;
  }
}

double FloatArithmetic(Operator op, double a, double b) {
  switch (op) {
    case Operator::kAdd:
      return a + b;
    case Operator::kSub:
      return a - b;
    case Operator::kMul:
      return a * b;
    case Operator::kDiv:
      return a / b;
    case Operator::kPow:
      return std::pow(a, b);
    default:
      break;
  }
  double rest = std::fmod(a, b);
  if (rest != 0 && (rest < 0) != (b < 0)) rest += b;
  return op == Operator::kMod ? rest : std::floor((a - rest) / b + 0.5);
}

}  // namespace

Value Interpreter::Arithmetic(Operator op, const Value& a, const Value& b) {
  if (failed_) return Value();
  static constexpr const char* kNames[] = {"+", "-", "*", "/", "//", "%", "**"};
  for (const Value* value : {&a, &b}) {
    if (value->Is(Kind::kUndefined)) return GetAttribute(*value, "");
  }
  const bool sign = a.Is(Kind::kMissing);  // Unary plus or minus.
  if ((sign || a.IsNumber()) && b.IsNumber()) {
    const bool zero = b.AsDouble() == 0;
    const bool divides = op == Operator::kDiv || op == Operator::kFloorDiv || op == Operator::kMod;
    if (divides && zero) return Fail("division by zero");
    const bool integers = (sign || a.IsInteger()) && b.IsInteger() && op != Operator::kDiv &&
                          (op != Operator::kPow || b.AsInt() >= 0);
    if (integers) {
      std::int64_t result = 0;
      if (!IntegerArithmetic(op, sign ? 0 : a.AsInt(), b.AsInt(), &result)) {
        return Fail("integer out of range");
      }
      return Value::Int(result);
    }
    if (sign) return Value::Float(op == Operator::kSub ? -b.real : b.real);
    const double result = FloatArithmetic(op, a.AsDouble(), b.AsDouble());
    if (op == Operator::kPow && !std::isfinite(result)) return Fail("power out of range");
    return Value::Float(result);
  }
  if (op == Operator::kAdd && a.Is(Kind::kString) && b.Is(Kind::kString)) {
    if (!a.text->markup && !b.text->markup) return Join(*a.text, *b.text);
    const Value joined = Join(*EscapeHtml(a).text, *EscapeHtml(b).text);
    const Value result = Part(*joined.text, 0, joined.text->size);
    const_cast<Text*>(result.text)->markup = true;  // Part made it a moment ago.
    return result;
  }
  if (op == Operator::kAdd && a.IsSequence() && a.kind == b.kind) {
    const std::size_t size = a.list->items.size() + b.list->items.size();
    if (!Charge(size * sizeof(Value)) || !Step(size / 64)) return Value();
    std::vector<Value> items = a.list->items;
    items.insert(items.end(), b.list->items.begin(), b.list->items.end());
    return a.Is(Kind::kList) ? MakeList(std::move(items)) : MakeTuple(std::move(items));
  }
  if (op == Operator::kMod && a.Is(Kind::kString)) return PercentFormat(*a.text, b);
  if (op == Operator::kMul && (a.IsInteger() || b.IsInteger())) {
    const Value& many = a.IsInteger() ? b : a;
    const std::int64_t times = std::max<std::int64_t>(0, a.IsInteger() ? a.AsInt() : b.AsInt());
    if (many.Is(Kind::kString)) {
      if (many.text->size > 0 &&
          static_cast<std::uint64_t>(times) > limits_.max_output_bytes / many.text->size) {
        return Fail("text has more than " + std::to_string(limits_.max_output_bytes) + " bytes",
                    ErrorCode::kTooLarge);
      }
      TextBuilder builder = NewBuilder();
      for (std::int64_t i = 0; many.text->size > 0 && i < times; ++i)
        builder.Append(*many.text);
      return Finish(builder);
    }
    if (many.IsSequence()) {
      std::size_t size = 0;
      if (__builtin_mul_overflow(many.list->items.size(), static_cast<std::size_t>(times), &size) ||
          size > limits_.max_heap_bytes / sizeof(Value) || !Charge(size * sizeof(Value)) ||
          !Step(size / 64)) {
        return Fail("a list is repeated too often", ErrorCode::kTooLarge);
      }
      std::vector<Value> items;
      items.reserve(size);
      for (std::size_t i = 0; i < size; ++i) {
        items.push_back(many.list->items[i % many.list->items.size()]);
      }
      return many.Is(Kind::kList) ? MakeList(std::move(items)) : MakeTuple(std::move(items));
    }
  }
  return Fail(std::string("unsupported operands for ") + kNames[static_cast<std::size_t>(op)] +
              ": '" + (sign ? "sign" : KindName(a)) + "' and '" + KindName(b) + "'");
}

}  // namespace kvrm::jinja
