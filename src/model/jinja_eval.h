// SPDX-License-Identifier: Apache-2.0
// The evaluator of the template language: one rendering of one tree, within budgets.
//
// Nothing a template does can run longer, nest deeper or hold more memory than the limits say, and
// nothing outside the values it was given can be reached: attributes are the keys of dictionaries
// and a fixed table of methods, none of which changes its receiver.
//
// Failure is sticky: the first Fail() is kept, after which evaluation unwinds and every value is
// undefined. Loops test failed(); straight-line code need not.
//
// Threading: one rendering, one thread. Memory: the heap's, within its budget.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "model/jinja_parse.h"
#include "model/jinja_value.h"

namespace kvrm::jinja {

struct Limits {
  std::uint64_t max_steps = 1'000'000;  // Statements, operations, calls, elements, KiB of text.
  std::uint32_t max_calls = 64;         // Macros within macros.
  // Levels of evaluation in all. A level takes at most about 1 KiB of stack without sanitizers, so
  // this is 1.5 MiB of an 8 MiB thread stack.
  std::uint32_t max_levels = 1'500;
  std::int64_t max_range = 10'000;
  std::size_t max_output_bytes = 8u << 20;
  std::size_t max_heap_bytes = 64u << 20;
  std::int64_t max_ns = 500'000'000;
};

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string_view, Value>> keyword;
};

struct JsonStyle {
  bool ensure_ascii = false;
  bool pretty = false;
  bool sort_keys = false;
  std::string indent;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};

class Interpreter {
 public:
  Interpreter(const Tree& tree, const Limits& limits, const Clock& clock, std::int64_t now_unix);

  // The scope of the variables given to the template. To be filled before Run.
  void Define(std::string_view name, Value value);
  // Renders. False: error() says why.
  bool Run(TextBuilder& out);
  const Error& error() const { return error_; }

  // ---- failure and budgets ----
  bool failed() const { return failed_; }
  // Keeps the first failure. Returns undefined, so that `return Fail(...)` reads well.
  Value Fail(std::string message, ErrorCode code = ErrorCode::kInvalidArgument);
  // Takes steps from the budget and looks at the clock now and then. False: failed.
  bool Step(std::uint64_t steps = 1);
  // For work over `bytes` of text.
  bool StepBytes(std::size_t bytes) { return Step(bytes >> 10); }
  bool Charge(std::size_t bytes);
  Heap& heap() { return heap_; }
  const Limits& limits() const { return limits_; }
  std::int64_t now_unix() const { return now_unix_; }

  // ---- making values ----
  Value MakeText(std::string_view text, bool trusted);
  Value OfText(const Text* text);
  Value Finish(const TextBuilder& builder);
  // The bytes [begin, begin + size) of `text`, not copied.
  Value Part(const Text& text, std::size_t begin, std::size_t size);
  Value Join(const Text& left, const Text& right);
  Value MakeList(std::vector<Value> items);
  Value MakeTuple(std::vector<Value> items);
  Value MakeIterator(std::vector<Value> items);
  Value MakeDict(std::vector<std::pair<Value, Value>> items);
  Value MakeUndefined(std::string message, bool unsafe = false);
  TextBuilder NewBuilder() const { return TextBuilder(limits_.max_output_bytes); }

  // ---- operations (jinja_ops.cc) ----
  bool Truthy(const Value& value) const;
  const Text& ToText(const Value& value);  // str()
  void AppendText(const Value& value, TextBuilder& out);
  void AppendRepr(const Value& value, TextBuilder& out, int depth);
  bool Equal(const Value& a, const Value& b, int depth = 0);
  bool Less(const Value& a, const Value& b, int depth = 0);
  bool Contains(const Value& container, const Value& item);
  // The elements a for loop would see. False: failed, not iterable.
  bool Iterate(const Value& value, std::vector<Value>& out);
  Value Length(const Value& value);
  Value GetAttribute(const Value& object, std::string_view name);
  Value GetItem(const Value& object, const Value& key);
  Value GetSlice(const Value& object, const Value& start, const Value& stop, const Value& step);
  Value Arithmetic(Operator op, const Value& a, const Value& b);
  const Value* FindKey(const Dict& dict, const Value& key);
  Value EscapeHtml(const Value& value);

  // ---- calls ----
  Value Call(const Value& callee, const Arguments& arguments);
  Value CallMethod(const Value& receiver, std::string_view name, const Arguments& arguments);
  Value CallFilter(std::string_view name, const Value& value, const Arguments& arguments);
  Value CallTest(std::string_view name, const Value& value, const Arguments& arguments);
  // Lays arguments out by name; what is not given is kMissing. False: failed.
  bool Bind(std::string_view what, const Arguments& arguments,
            std::initializer_list<std::string_view> names, Value* out);

  // ---- text forms (jinja_format.cc) ----
  void AppendJson(const Value& value, const JsonStyle& style, TextBuilder& out, int depth);
  Value PercentFormat(const Text& format, const Value& arguments);
  Value BraceFormat(const Text& format, const Arguments& arguments);
  Value Strftime(const Text& format);

 private:
  enum class Flow : std::uint8_t { kNormal, kBreak, kContinue };

  Value Eval(NodeId id);
  Value EvalNode(const Node& node);
  Value EvalLiteral(const Node& node);
  Value EvalName(NameId name);
  Value Literal(const Node& node);
  Value EvalChain(const Node& node);
  Value EvalConcat(const Node& node);
  Value EvalCompare(const Node& node);
  Value EvalItem(const Node& node);
  Value EvalCall(const Node& node, const Value* caller);
  Value EvalFilter(const Node& node, const Value* input);
  bool EvalArguments(const Node& node, Arguments& out);
  bool CompareOnce(Operator op, const Value& a, const Value& b);

  Flow Exec(NodeId id);
  Flow ExecNode(const Node& node);
  Flow ExecIf(const Node& node);
  Flow ExecFor(const Node& node);
  void ExecCallBlock(const Node& node);
  void ExecWith(const Node& node);
  void ExecSet(const Node& node);
  Value Render(NodeId body);  // The text of a body in a scope of its own.
  void Print(const Value& value);
  void Assign(const Node& target, const Value& value);
  void SetVariable(NameId name, const Value& value);
  Value MakeClosure(const Node& node);
  Value CallMacro(const Closure& closure, const Arguments& arguments);
  bool BindMacro(const Closure& closure, const Arguments& arguments, Scope& scope);
  Value CallFunction(Function function, const Arguments& arguments);
  Value MakeRange(const Arguments& arguments);
  Value LoopAttribute(Loop& loop, std::string_view name);
  Scope* PushScope(Scope* parent);

  const Tree& tree_;
  const Limits limits_;
  const Clock& clock_;
  const std::int64_t now_unix_;
  const std::int64_t deadline_ns_;
  Heap heap_;
  std::vector<const Text*> literals_;  // By NodeId; null until first used.
  Text empty_;
  TextBuilder* out_ = nullptr;
  Scope* globals_ = nullptr;
  Scope* scope_ = nullptr;
  std::uint64_t steps_ = 0;
  std::uint64_t next_clock_step_ = 0;
  std::uint32_t levels_ = 0;
  std::uint32_t calls_ = 0;
  std::uint32_t line_ = 1;
  bool failed_ = false;
  Error error_;
};

// Whether values of this kind have the method; `changes` tells those that would alter the receiver.
bool HasMethod(const Value& receiver, std::string_view name, bool* changes);

}  // namespace kvrm::jinja
