// SPDX-License-Identifier: Apache-2.0
// Values of the template language, and the heap of one rendering.
//
// A Value is a small trivially copyable handle; what it points to lives in the Heap until the
// rendering ends, so there are no reference counts, no cycles to break and no recursive
// destructors. Everything but namespaces, scopes and loops is immutable once made.
//
// Every byte of a string knows where it came from: trusted bytes are the template's own (or those
// of the tokens named by the model), untrusted bytes are the request's. Operations carry the mark
// along byte by byte; where bytes cannot be traced, the whole result is untrusted.
//
// Threading: one rendering, one thread.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/jinja_parse.h"

namespace kvrm::jinja {

enum class Kind : std::uint8_t {
  kMissing,  // An argument that was not given. Never seen by a template.
  kUndefined,
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kList,
  kTuple,
  kDict,
  kView,      // dict.items(), keys(), values()
  kRange,     // range(...)
  kIterator,  // What map, select, reverse, ... give: consumed once, has no length.
  kNamespace,
  kMacro,
  kMethod,    // A method bound to its receiver.
  kFunction,  // A global function.
  kLoop,
  kCycler,
  kJoiner,
};

struct Text;
struct List;
struct Dict;
struct View;
struct Range;
struct Iterator;
struct Namespace;
struct Closure;
struct Method;
struct Loop;
struct Undefined;
struct Cycler;
struct Joiner;

enum class Function : std::uint8_t {
  kRange,
  kDict,
  kNamespace,
  kCycler,
  kJoiner,
  kRaiseException,
  kStrftimeNow,
};

struct Value {
  Kind kind = Kind::kUndefined;
  union {
    bool boolean;
    std::int64_t integer;
    double real;
    const Text* text;
    const List* list;  // kList and kTuple
    const Dict* dict;
    const View* view;
    const Range* range;
    Iterator* iterator;
    Namespace* name_space;
    const Closure* macro;
    const Method* method;
    Function function;
    Loop* loop;
    Cycler* cycler;
    Joiner* joiner;
    const Undefined* undefined;  // May be null: no more to say than "undefined".
  };

  Value() : undefined(nullptr) {}
  static Value None() { return Of(Kind::kNone); }
  static Value Missing() { return Of(Kind::kMissing); }
  static Value Bool(bool b);
  static Value Int(std::int64_t i);
  static Value Float(double d);
  static Value Of(Kind kind) {
    Value value;
    value.kind = kind;
    return value;
  }
  bool Is(Kind k) const { return kind == k; }
  bool IsNumber() const {
    return kind == Kind::kBool || kind == Kind::kInt || kind == Kind::kFloat;
  }
  bool IsInteger() const { return kind == Kind::kBool || kind == Kind::kInt; }
  bool IsSequence() const { return kind == Kind::kList || kind == Kind::kTuple; }
  // Requires: IsInteger().
  std::int64_t AsInt() const { return kind == Kind::kBool ? (boolean ? 1 : 0) : integer; }
  // Requires: IsNumber().
  double AsDouble() const { return kind == Kind::kFloat ? real : static_cast<double>(AsInt()); }
};

// Grows at its end only. A string may be extended in place when it ends where the buffer does, so
// building a text by repeated `x = x + y` stays linear.
struct Buffer {
  std::unique_ptr<char[]> bytes;
  std::unique_ptr<std::uint8_t[]> trust;  // Null while all bytes agree.
  std::size_t size = 0;
  std::size_t capacity = 0;
};

struct Text {
  const char* data = nullptr;
  std::size_t size = 0;
  const std::uint8_t* trust = nullptr;  // One per byte; null: all are `trusted`.
  bool trusted = false;
  bool markup = false;  // Marked safe: joining it with + escapes the other side.
  Buffer* buffer = nullptr;

  std::string_view view() const { return {data, size}; }
  bool TrustedAt(std::size_t pos) const { return trust == nullptr ? trusted : trust[pos] != 0; }
  bool AllTrusted() const;
};

struct List {
  std::vector<Value> items;
  bool is_group = false;  // A pair of groupby: items[0] is .grouper, items[1] is .list.
};

struct Dict {
  std::vector<std::pair<Value, Value>> items;  // In order of insertion.
  // The string keys, once there are more than a scan is worth. A tree, not a hash table: keys come
  // from the request, and colliding ones must not cost more than others.
  std::map<std::string_view, std::size_t> index;

  const Value* FindText(std::string_view key) const;
  void IndexLast();  // After an item was added.
};

struct View {
  enum class What : std::uint8_t { kItems, kKeys, kValues } what = What::kItems;
  const Dict* dict = nullptr;
};

struct Range {
  std::int64_t start = 0;
  std::int64_t step = 1;
  std::int64_t size = 0;
};

struct Iterator {
  std::vector<Value> items;
  std::size_t next = 0;
};

struct Namespace {
  std::vector<std::pair<std::string, Value>> items;
};

struct Scope {
  Scope* parent = nullptr;
  bool captured = false;  // A macro looks here later.
  std::vector<std::pair<NameId, Value>> values;
};

struct Closure {
  const Node* node = nullptr;  // kMacro or kCallBlock
  Scope* scope = nullptr;
};

struct Method {
  Value receiver;
  std::string_view name;
};

struct Loop {
  std::vector<Value> items;
  std::size_t index0 = 0;
  bool changed_before = false;
  std::vector<Value> last_changed;
};

struct Undefined {
  std::string message;
  bool unsafe = false;
};

struct Cycler {
  std::vector<Value> items;
  std::size_t pos = 0;
};

struct Joiner {
  Value separator;
  bool used = false;
};

// Owns what values point to, and counts its bytes. Nothing is released before the heap is.
class Heap {
 public:
  explicit Heap(std::size_t max_bytes) : max_bytes_(max_bytes) {}
  Heap(const Heap&) = delete;
  Heap& operator=(const Heap&) = delete;

  // Takes `bytes` from the budget. False: it is spent; whoever asked must give up.
  bool Charge(std::size_t bytes) {
    if (bytes > max_bytes_ - used_) return false;
    used_ += bytes;
    return true;
  }

  Text* NewText() { return &texts_.emplace_back(); }
  Buffer* NewBuffer() { return &buffers_.emplace_back(); }
  List* NewList() { return &lists_.emplace_back(); }
  Dict* NewDict() { return &dicts_.emplace_back(); }
  View* NewView() { return &views_.emplace_back(); }
  Range* NewRange() { return &ranges_.emplace_back(); }
  Iterator* NewIterator() { return &iterators_.emplace_back(); }
  Namespace* NewNamespace() { return &namespaces_.emplace_back(); }
  Closure* NewClosure() { return &closures_.emplace_back(); }
  Method* NewMethod() { return &methods_.emplace_back(); }
  Loop* NewLoop() { return &loops_.emplace_back(); }
  Scope* NewScope() { return &scopes_.emplace_back(); }
  Undefined* NewUndefined() { return &undefineds_.emplace_back(); }
  Cycler* NewCycler() { return &cyclers_.emplace_back(); }
  Joiner* NewJoiner() { return &joiners_.emplace_back(); }

 private:
  std::size_t max_bytes_;
  std::size_t used_ = 0;
  std::deque<Text> texts_;
  std::deque<Buffer> buffers_;
  std::deque<List> lists_;
  std::deque<Dict> dicts_;
  std::deque<View> views_;
  std::deque<Range> ranges_;
  std::deque<Iterator> iterators_;
  std::deque<Namespace> namespaces_;
  std::deque<Closure> closures_;
  std::deque<Method> methods_;
  std::deque<Loop> loops_;
  std::deque<Scope> scopes_;
  std::deque<Undefined> undefineds_;
  std::deque<Cycler> cyclers_;
  std::deque<Joiner> joiners_;
};

// Collects text with its trust, up to a limit. Past the limit it takes nothing more and says so.
class TextBuilder {
 public:
  explicit TextBuilder(std::size_t max_bytes) : max_bytes_(max_bytes) {}

  void Append(const Text& text) { Append(text, 0, text.size); }
  void Append(const Text& text, std::size_t begin, std::size_t size);
  void Append(std::string_view text, bool trusted);
  std::size_t size() const { return text_.size(); }
  bool full() const { return full_; }
  const std::string& text() const { return text_; }
  bool TrustedAt(std::size_t pos) const { return mixed_ ? trust_[pos] != 0 : trusted_; }
  // Makes everything untrusted if any byte is.
  void LevelTrust();
  // Copies the content into the heap. Null: the heap's budget is spent.
  const Text* Finish(Heap& heap) const;

 private:
  bool Room(std::size_t size);
  void Mix();

  std::size_t max_bytes_;
  std::string text_;
  std::vector<std::uint8_t> trust_;  // In use when mixed_.
  bool mixed_ = false;
  bool trusted_ = true;
  bool full_ = false;
};

const char* KindName(const Value& value);  // As Python names the type.

}  // namespace kvrm::jinja
