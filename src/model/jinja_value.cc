// SPDX-License-Identifier: Apache-2.0
#include "model/jinja_value.h"

#include <algorithm>
#include <cstring>

namespace kvrm::jinja {

Value Value::Bool(bool b) {
  Value value = Of(Kind::kBool);
  value.boolean = b;
  return value;
}

Value Value::Int(std::int64_t i) {
  Value value = Of(Kind::kInt);
  value.integer = i;
  return value;
}

Value Value::Float(double d) {
  Value value = Of(Kind::kFloat);
  value.real = d;
  return value;
}

bool Text::AllTrusted() const {
  if (trust == nullptr) return trusted || size == 0;
  return std::find(trust, trust + size, std::uint8_t{0}) == trust + size;
}

// 8: where a scan of short keys stops being faster than a tree; not measured closely.
constexpr std::size_t kMaxScannedItems = 8;

const Value* Dict::FindText(std::string_view key) const {
  if (items.size() > kMaxScannedItems) {
    const auto it = index.find(key);
    return it == index.end() ? nullptr : &items[it->second].second;
  }
  for (const auto& [known, value] : items) {
    if (known.Is(Kind::kString) && known.text->view() == key) return &value;
  }
  return nullptr;
}

void Dict::IndexLast() {
  if (items.size() <= kMaxScannedItems) return;
  for (std::size_t i = items.size() == kMaxScannedItems + 1 ? 0 : items.size() - 1;
       i < items.size(); ++i) {
    if (items[i].first.Is(Kind::kString)) index.emplace(items[i].first.text->view(), i);
  }
}

bool TextBuilder::Room(std::size_t size) {
  if (full_ || size > max_bytes_ - text_.size()) full_ = true;
  return !full_;
}

void TextBuilder::Mix() {
  mixed_ = true;
  trust_.assign(text_.size(), trusted_ ? 1 : 0);
}

void TextBuilder::Append(const Text& text, std::size_t begin, std::size_t size) {
  if (text.trust == nullptr) return Append({text.data + begin, size}, text.trusted);
  if (size == 0 || !Room(size)) return;
  if (!mixed_) Mix();
  text_.append(text.data + begin, size);
  trust_.insert(trust_.end(), text.trust + begin, text.trust + begin + size);
}

void TextBuilder::Append(std::string_view text, bool trusted) {
  if (text.empty() || !Room(text.size())) return;
  if (text_.empty()) trusted_ = trusted;
  if (!mixed_ && trusted != trusted_) Mix();
  text_.append(text);
  if (mixed_) trust_.insert(trust_.end(), text.size(), trusted ? 1 : 0);
}

void TextBuilder::LevelTrust() {
  if (!mixed_) return;
  trusted_ = std::find(trust_.begin(), trust_.end(), std::uint8_t{0}) == trust_.end();
  mixed_ = false;
  trust_.clear();
}

const Text* TextBuilder::Finish(Heap& heap) const {
  const std::size_t size = text_.size();
  if (!heap.Charge(sizeof(Text) + size * (mixed_ ? 2 : 1))) return nullptr;
  Buffer* buffer = heap.NewBuffer();
  buffer->bytes = std::make_unique<char[]>(size);
  std::copy(text_.begin(), text_.end(), buffer->bytes.get());
  buffer->size = size;
  buffer->capacity = size;
  Text* text = heap.NewText();
  text->data = buffer->bytes.get();
  text->size = size;
  text->trusted = trusted_;
  text->buffer = buffer;
  if (mixed_) {
    buffer->trust = std::make_unique<std::uint8_t[]>(size);
    std::copy(trust_.begin(), trust_.end(), buffer->trust.get());
    text->trust = buffer->trust.get();
  }
  return text;
}

const char* KindName(const Value& value) {
  switch (value.kind) {
    case Kind::kMissing:
    case Kind::kUndefined:
      return "Undefined";
    case Kind::kNone:
      return "NoneType";
    case Kind::kBool:
      return "bool";
    case Kind::kInt:
      return "int";
    case Kind::kFloat:
      return "float";
    case Kind::kString:
      return "str";
    case Kind::kList:
      return "list";
    case Kind::kTuple:
      return "tuple";
    case Kind::kDict:
      return "dict";
    case Kind::kView:
      return "dict view";
    case Kind::kRange:
      return "range";
    case Kind::kIterator:
      return "generator";
    case Kind::kNamespace:
      return "Namespace";
    case Kind::kMacro:
      return "Macro";
    case Kind::kMethod:
      return "method";
    case Kind::kFunction:
      return "function";
    case Kind::kLoop:
      return "LoopContext";
    case Kind::kCycler:
      return "Cycler";
    case Kind::kJoiner:
      return "Joiner";
  }
  return "object";
}

}  // namespace kvrm::jinja
