// SPDX-License-Identifier: Apache-2.0
#include "model/jinja_eval.h"

#include <algorithm>

namespace kvrm::jinja {

Interpreter::Interpreter(const Tree& tree, const Limits& limits, const Clock& clock,
                         std::int64_t now_unix)
    : tree_(tree),
      limits_(limits),
      clock_(clock),
      now_unix_(now_unix),
      deadline_ns_(clock.NowNs() + limits.max_ns),
      heap_(limits.max_heap_bytes),
      literals_(tree.nodes.size(), nullptr) {
  empty_.trusted = true;
  globals_ = heap_.NewScope();
  const auto function = [](Function f) {
    Value value = Value::Of(Kind::kFunction);
    value.function = f;
    return value;
  };
  Define("range", function(Function::kRange));
  Define("dict", function(Function::kDict));
  Define("namespace", function(Function::kNamespace));
  Define("cycler", function(Function::kCycler));
  Define("joiner", function(Function::kJoiner));
  Define("raise_exception", function(Function::kRaiseException));
  Define("strftime_now", function(Function::kStrftimeNow));
}

void Interpreter::Define(std::string_view name, Value value) {
  const auto it = std::find(tree_.names.begin(), tree_.names.end(), name);
  if (it == tree_.names.end()) return;  // The template never mentions it.
  const NameId id = static_cast<NameId>(it - tree_.names.begin());
  for (auto& [known, old] : globals_->values) {
    if (known == id) {
      old = value;
      return;
    }
  }
  globals_->values.emplace_back(id, value);
}

bool Interpreter::Run(TextBuilder& out) {
  out_ = &out;
  scope_ = PushScope(globals_);
  if (!failed_) Exec(tree_.root);
  return !failed_;
}

Value Interpreter::Fail(std::string message, ErrorCode code) {
  if (failed_) return Value();
  failed_ = true;
  // One line, and no more of it than a log can bear: the text may come from the request.
  constexpr std::size_t kMaxMessageBytes = 240;
  if (message.size() > kMaxMessageBytes) {
    std::size_t cut = kMaxMessageBytes;
    while (cut > 0 && (static_cast<unsigned char>(message[cut]) & 0xC0) == 0x80)
      --cut;
    message.resize(cut);
    message += "...";
  }
  for (char& c : message) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = ' ';
  }
  error_ = Error{code, "line " + std::to_string(line_) + ": " + message};
  return Value();
}

bool Interpreter::Step(std::uint64_t steps) {
  if (failed_) return false;
  steps_ += steps;
  if (steps_ > limits_.max_steps) {
    Fail("template takes more than " + std::to_string(limits_.max_steps) + " steps",
         ErrorCode::kTooLarge);
    return false;
  }
  // 256 steps are some tens of microseconds, a look at the clock is some tens of nanoseconds.
  if (steps_ >= next_clock_step_) {
    next_clock_step_ = steps_ + 256;
    if (clock_.NowNs() > deadline_ns_) {
      Fail("template takes longer than " + std::to_string(limits_.max_ns / 1'000'000) + " ms",
           ErrorCode::kTooLarge);
      return false;
    }
  }
  return true;
}

bool Interpreter::Charge(std::size_t bytes) {
  if (failed_) return false;
  if (heap_.Charge(bytes)) return true;
  Fail(
      "template needs more than " + std::to_string(limits_.max_heap_bytes >> 20) + " MiB of memory",
      ErrorCode::kTooLarge);
  return false;
}

Scope* Interpreter::PushScope(Scope* parent) {
  Charge(sizeof(Scope));
  Scope* scope = heap_.NewScope();
  scope->parent = parent;
  return scope;
}

// ---- expressions ----

Value Interpreter::Eval(NodeId id) {
  if (failed_) return Value();
  const Node& node = tree_.at(id);
  line_ = node.line;
  if (++levels_ > limits_.max_levels) {
    --levels_;
    return Fail("template recurses too deeply", ErrorCode::kTooLarge);
  }
  const Value value = EvalNode(node);
  --levels_;
  return failed_ ? Value() : value;
}

Value Interpreter::EvalNode(const Node& node) {
  switch (node.kind) {
    case NodeKind::kConstNone:
      return Value::None();
    case NodeKind::kConstBool:
      return Value::Bool(node.integer != 0);
    case NodeKind::kConstInt:
      return Value::Int(node.integer);
    case NodeKind::kConstFloat:
      return Value::Float(node.real);
    case NodeKind::kConstString:
      return Literal(node);
    case NodeKind::kName:
      return EvalName(node.name);
    case NodeKind::kList:
    case NodeKind::kTuple:
    case NodeKind::kDict:
      return EvalLiteral(node);
    case NodeKind::kAttribute:
      return GetAttribute(Eval(node.a), node.text);
    case NodeKind::kItem:
      return EvalItem(node);
    case NodeKind::kCall:
      return EvalCall(node, nullptr);
    case NodeKind::kFilter:
      return EvalFilter(node, nullptr);
    case NodeKind::kTest: {
      Step();
      const Value value = Eval(node.a);
      Arguments arguments;
      if (!EvalArguments(node, arguments)) return Value();
      return CallTest(node.text, value, arguments);
    }
    case NodeKind::kCondition:
      if (Truthy(Eval(node.b))) return Eval(node.a);
      if (node.c != kNoNode) return Eval(node.c);
      return MakeUndefined("the inline if-expression evaluated to false and no else was given");
    case NodeKind::kOr:
    case NodeKind::kAnd:
    case NodeKind::kBinary:
      return EvalChain(node);
    case NodeKind::kNot:
      return Value::Bool(!Truthy(Eval(node.a)));
    case NodeKind::kNegate:
      return Arithmetic(Operator::kSub, Value::Missing(), Eval(node.a));
    case NodeKind::kPositive:
      return Arithmetic(Operator::kAdd, Value::Missing(), Eval(node.a));
    case NodeKind::kConcat:
      return EvalConcat(node);
    case NodeKind::kCompare:
      return EvalCompare(node);
    default:
      return Fail("not an expression", ErrorCode::kInternal);
  }
}

Value Interpreter::Literal(const Node& node) {
  const std::size_t i = static_cast<std::size_t>(&node - tree_.nodes.data());
  if (literals_[i] == nullptr) literals_[i] = MakeText(node.text, true).text;
  return OfText(literals_[i]);
}

Value Interpreter::EvalName(NameId name) {
  for (const Scope* scope = scope_; scope != nullptr; scope = scope->parent) {
    Step(scope->values.size() / 64);
    for (const auto& [id, value] : scope->values) {
      if (id == name) return value;
    }
  }
  return MakeUndefined("'" + tree_.names[name] + "' is undefined");
}

Value Interpreter::EvalLiteral(const Node& node) {
  Step(1 + node.kids.size() / 16);
  if (node.kind == NodeKind::kDict) {
    std::vector<std::pair<Value, Value>> items;
    for (std::size_t i = 0; i + 1 < node.kids.size() && !failed_; i += 2) {
      const Value key = Eval(node.kids[i]);
      items.emplace_back(key, Eval(node.kids[i + 1]));
    }
    return MakeDict(std::move(items));
  }
  std::vector<Value> items;
  items.reserve(node.kids.size());
  for (const NodeId kid : node.kids)
    items.push_back(Eval(kid));
  return node.kind == NodeKind::kList ? MakeList(std::move(items)) : MakeTuple(std::move(items));
}

// The left spine of `a op b op c ...`, folded from its bottom without recursion.
Value Interpreter::EvalChain(const Node& node) {
  std::vector<const Node*> spine;
  const Node* bottom = &node;
  while (bottom->kind == node.kind) {
    spine.push_back(bottom);
    bottom = &tree_.at(bottom->a);
  }
  Value left = Eval(spine.back()->a);
  for (auto it = spine.rbegin(); it != spine.rend() && Step(); ++it) {
    const Node& link = **it;
    if (link.kind == NodeKind::kBinary) {
      const Value right = Eval(link.b);
      line_ = link.line;
      left = Arithmetic(link.op, left, right);
    } else if (Truthy(left) == (link.kind == NodeKind::kAnd)) {
      left = Eval(link.b);
    }
  }
  return left;
}

Value Interpreter::EvalConcat(const Node& node) {
  Step(node.kids.size());
  std::vector<Value> values;
  for (const NodeId kid : node.kids)
    values.push_back(Eval(kid));
  if (failed_) return Value();
  Value all = OfText(&ToText(values[0]));
  for (std::size_t i = 1; i < values.size() && !failed_; ++i)
    all = Join(*all.text, ToText(values[i]));
  return all;
}

Value Interpreter::EvalCompare(const Node& node) {
  Value left = Eval(node.a);
  for (std::size_t i = 0; i < node.kids.size() && Step(); ++i) {
    const Value right = Eval(node.kids[i]);
    if (!CompareOnce(node.operators[i], left, right)) return Value::Bool(false);
    left = right;
  }
  return Value::Bool(true);
}

bool Interpreter::CompareOnce(Operator op, const Value& a, const Value& b) {
  if (failed_) return false;
  switch (op) {
    case Operator::kEq:
      return Equal(a, b);
    case Operator::kNe:
      return !Equal(a, b);
    case Operator::kLt:
      return Less(a, b);
    case Operator::kGt:
      return Less(b, a);
    // Not the negation of Less: nothing compares with a NaN.
    case Operator::kLe:
      return Less(a, b) || Equal(a, b);
    case Operator::kGe:
      return Less(b, a) || Equal(a, b);
    case Operator::kIn:
      return Contains(b, a);
    default:
      return !Contains(b, a);
  }
}

Value Interpreter::EvalItem(const Node& node) {
  const Value object = Eval(node.a);
  const Node& key = tree_.at(node.b);
  if (key.kind != NodeKind::kSlice) return GetItem(object, Eval(node.b));
  const auto part = [this](NodeId id) { return id == kNoNode ? Value::None() : Eval(id); };
  const Value start = part(key.a);
  const Value stop = part(key.b);
  const Value step = part(key.c);
  Step();
  return failed_ ? Value() : GetSlice(object, start, stop, step);
}

bool Interpreter::EvalArguments(const Node& node, Arguments& out) {
  for (const Argument& argument : node.arguments) {
    const Value value = Eval(argument.value);
    if (failed_) return false;
    switch (argument.kind) {
      case Argument::Kind::kPositional:
        out.positional.push_back(value);
        break;
      case Argument::Kind::kKeyword:
        out.keyword.emplace_back(argument.keyword, value);
        break;
      case Argument::Kind::kStar:
        Iterate(value, out.positional);
        break;
      case Argument::Kind::kStarStar:
        if (!value.Is(Kind::kDict)) {
          Fail("argument after ** must be a mapping");
          return false;
        }
        for (const auto& [key, item] : value.dict->items) {
          if (!key.Is(Kind::kString)) {
            Fail("keywords must be strings");
            return false;
          }
          out.keyword.emplace_back(key.text->view(), item);
        }
        break;
    }
    if (!Step(1 + (out.positional.size() + out.keyword.size()) / 64)) return false;
  }
  for (std::size_t i = 0; i < out.keyword.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      if (!Step(0) || out.keyword[i].first != out.keyword[j].first) continue;
      Fail("a keyword argument is given twice");
    }
    if (!Step(i / 64)) return false;
  }
  return !failed_;
}

Value Interpreter::EvalCall(const Node& node, const Value* caller) {
  Step();
  const Value callee = Eval(node.a);
  Arguments arguments;
  if (!EvalArguments(node, arguments)) return Value();
  if (caller != nullptr) arguments.keyword.emplace_back("caller", *caller);
  line_ = node.line;
  const Value result = Call(callee, arguments);
  line_ = node.line;
  return result;
}

Value Interpreter::EvalFilter(const Node& node, const Value* input) {
  Step();
  Value value;
  if (node.a == kNoNode) {
    if (input != nullptr) value = *input;
  } else if (tree_.at(node.a).kind == NodeKind::kFilter && input != nullptr) {
    if (++levels_ > limits_.max_levels) return Fail("template recurses too deeply");
    value = EvalFilter(tree_.at(node.a), input);
    --levels_;
  } else {
    value = Eval(node.a);
  }
  Arguments arguments;
  if (!EvalArguments(node, arguments)) return Value();
  line_ = node.line;
  return CallFilter(node.text, value, arguments);
}

// ---- statements ----

Interpreter::Flow Interpreter::Exec(NodeId id) {
  if (failed_ || id == kNoNode) return Flow::kNormal;
  const Node& node = tree_.at(id);
  line_ = node.line;
  if (!Step()) return Flow::kNormal;
  if (++levels_ > limits_.max_levels) {
    Fail("template recurses too deeply", ErrorCode::kTooLarge);
  }
  const Flow flow = failed_ ? Flow::kNormal : ExecNode(node);
  --levels_;
  return flow;
}

Interpreter::Flow Interpreter::ExecNode(const Node& node) {
  switch (node.kind) {
    case NodeKind::kData:
      Print(Literal(node));
      break;
    case NodeKind::kPrint:
      Print(Eval(node.a));
      break;
    case NodeKind::kBody:
      for (const NodeId kid : node.kids) {
        const Flow flow = Exec(kid);
        if (flow != Flow::kNormal || failed_) return flow;
      }
      break;
    case NodeKind::kIf:
      return ExecIf(node);
    case NodeKind::kFor:
      return ExecFor(node);
    case NodeKind::kSet:
    case NodeKind::kSetBlock:
      ExecSet(node);
      break;
    case NodeKind::kMacro:
      SetVariable(node.name, MakeClosure(node));
      break;
    case NodeKind::kCallBlock:
      ExecCallBlock(node);
      break;
    case NodeKind::kFilterBlock: {
      const Value text = Render(node.kids[0]);
      Print(EvalFilter(tree_.at(node.a), &text));
      break;
    }
    case NodeKind::kWith:
      ExecWith(node);
      break;
    case NodeKind::kScope:
      Print(Render(node.kids[0]));
      break;
    case NodeKind::kBreak:
      return Flow::kBreak;
    case NodeKind::kContinue:
      return Flow::kContinue;
    default:
      Fail("not a statement", ErrorCode::kInternal);
  }
  return Flow::kNormal;
}

void Interpreter::Print(const Value& value) {
  if (failed_) return;
  const std::size_t before = out_->size();
  AppendText(value, *out_);
  if (out_->full()) {
    Fail("output has more than " + std::to_string(limits_.max_output_bytes) + " bytes",
         ErrorCode::kTooLarge);
    return;
  }
  // Charged, so that captures within captures cannot add up to more than the heap may hold.
  Charge(out_->size() - before);
  StepBytes(out_->size() - before);
}

Interpreter::Flow Interpreter::ExecIf(const Node& node) {
  for (std::size_t i = 0; i + 1 < node.kids.size(); i += 2) {
    const bool taken = Truthy(Eval(node.kids[i]));
    if (failed_) return Flow::kNormal;
    if (taken) return Exec(node.kids[i + 1]);
  }
  return Exec(node.c);
}

Interpreter::Flow Interpreter::ExecFor(const Node& node) {
  std::vector<Value> items;
  if (!Iterate(Eval(node.b), items)) return Flow::kNormal;
  Scope* const outer = scope_;
  Scope* inner = PushScope(outer);
  scope_ = inner;
  const auto fresh_scope = [&] {
    if (inner->captured) inner = PushScope(outer);
    inner->values.clear();
    scope_ = inner;
  };
  if (node.c != kNoNode) {
    std::vector<Value> kept;
    for (const Value& item : items) {
      if (!Step()) break;
      fresh_scope();
      Assign(tree_.at(node.a), item);
      if (Truthy(Eval(node.c))) kept.push_back(item);
    }
    items = std::move(kept);
  }
  Loop* const loop = heap_.NewLoop();
  Charge(sizeof(Loop));
  loop->items = std::move(items);
  Value loop_value = Value::Of(Kind::kLoop);
  loop_value.loop = loop;
  for (; loop->index0 < loop->items.size() && Step(); ++loop->index0) {
    fresh_scope();
    SetVariable(kNameLoop, loop_value);
    Assign(tree_.at(node.a), loop->items[loop->index0]);
    if (Exec(node.kids[0]) == Flow::kBreak) break;
  }
  scope_ = outer;
  if (loop->items.empty() && !failed_) return Exec(node.kids[1]);
  return Flow::kNormal;
}

Value Interpreter::Render(NodeId body) {
  TextBuilder text = NewBuilder();
  TextBuilder* const outer_out = std::exchange(out_, &text);
  Scope* const outer_scope = scope_;
  scope_ = PushScope(outer_scope);
  Exec(body);
  scope_ = outer_scope;
  out_ = outer_out;
  return failed_ ? Value() : Finish(text);
}

void Interpreter::ExecSet(const Node& node) {
  Value value;
  if (node.kind == NodeKind::kSet) {
    value = Eval(node.b);
  } else {
    value = Render(node.kids[0]);
    if (node.b != kNoNode) value = EvalFilter(tree_.at(node.b), &value);
  }
  if (!failed_) Assign(tree_.at(node.a), value);
}

void Interpreter::ExecWith(const Node& node) {
  Scope* const outer = scope_;
  Scope* const inner = PushScope(outer);
  for (std::size_t i = 0; i + 1 < node.kids.size() && !failed_; i += 2) {
    const Value value = Eval(node.kids[i + 1]);  // Sees the outer scope only.
    scope_ = inner;
    Assign(tree_.at(node.kids[i]), value);
    scope_ = outer;
  }
  scope_ = inner;
  Exec(node.a);
  scope_ = outer;
}

void Interpreter::ExecCallBlock(const Node& node) {
  const Value caller = MakeClosure(node);
  Print(EvalCall(tree_.at(node.a), &caller));
}

void Interpreter::Assign(const Node& target, const Value& value) {
  if (failed_) return;
  if (target.kind == NodeKind::kName) return SetVariable(target.name, value);
  if (target.kind == NodeKind::kNamespaceTarget) {
    const Value object = EvalName(target.name);
    if (!object.Is(Kind::kNamespace)) {
      Fail("cannot assign an attribute of something that is not a namespace");
      return;
    }
    auto& items = object.name_space->items;
    Step(items.size() / 64);
    for (auto& [name, old] : items) {
      if (name == target.text) {
        old = value;
        return;
      }
    }
    Charge(sizeof(Value) + 64);
    items.emplace_back(target.text, value);
    return;
  }
  std::vector<Value> parts;
  if (!Iterate(value, parts)) return;
  if (parts.size() != target.kids.size()) {
    Fail("cannot unpack " + std::to_string(parts.size()) + " values into " +
         std::to_string(target.kids.size()) + " names");
    return;
  }
  for (std::size_t i = 0; i < parts.size(); ++i)
    Assign(tree_.at(target.kids[i]), parts[i]);
}

void Interpreter::SetVariable(NameId name, const Value& value) {
  Step(scope_->values.size() / 64);
  for (auto& [id, old] : scope_->values) {
    if (id == name) {
      old = value;
      return;
    }
  }
  Charge(sizeof(std::pair<NameId, Value>));
  scope_->values.emplace_back(name, value);
}

// ---- macros ----

Value Interpreter::MakeClosure(const Node& node) {
  Charge(sizeof(Closure));
  Closure* closure = heap_.NewClosure();
  closure->node = &node;
  closure->scope = scope_;
  for (Scope* scope = scope_; scope != nullptr && !scope->captured; scope = scope->parent) {
    scope->captured = true;
  }
  Value value = Value::Of(Kind::kMacro);
  value.macro = closure;
  return value;
}

bool Interpreter::BindMacro(const Closure& closure, const Arguments& arguments, Scope& scope) {
  const Node& node = *closure.node;
  const std::size_t num_parameters = node.parameters.size();
  std::vector<bool> used(arguments.keyword.size(), false);
  const auto keyword = [&](std::string_view name) -> const Value* {
    for (std::size_t i = 0; i < used.size(); ++i) {
      if (used[i] || arguments.keyword[i].first != name) continue;
      used[i] = true;
      return &arguments.keyword[i].second;
    }
    return nullptr;
  };
  bool has_caller_parameter = false;
  std::vector<const Value*> given(num_parameters, nullptr);
  for (std::size_t i = 0; i < num_parameters; ++i) {
    has_caller_parameter |= node.parameters[i].name == kNameCaller;
    Step(used.size() / 64);
    given[i] = i < arguments.positional.size() ? &arguments.positional[i]
                                               : keyword(tree_.names[node.parameters[i].name]);
  }
  scope_ = &scope;
  if (node.uses_caller && !has_caller_parameter) {
    const Value* caller = keyword("caller");
    SetVariable(kNameCaller, caller != nullptr ? *caller : MakeUndefined("no caller defined"));
  }
  if (node.uses_kwargs) {
    std::vector<std::pair<Value, Value>> rest;
    for (std::size_t i = 0; i < used.size(); ++i) {
      if (used[i]) continue;
      rest.emplace_back(MakeText(arguments.keyword[i].first, false), arguments.keyword[i].second);
    }
    SetVariable(kNameKwargs, MakeDict(std::move(rest)));
  } else if (std::find(used.begin(), used.end(), false) != used.end()) {
    const auto unused = std::find(used.begin(), used.end(), false) - used.begin();
    Fail("macro takes no keyword argument '" +
         std::string(arguments.keyword[static_cast<std::size_t>(unused)].first) + "'");
  }
  if (node.uses_varargs) {
    std::vector<Value> rest;
    for (std::size_t i = num_parameters; i < arguments.positional.size(); ++i) {
      rest.push_back(arguments.positional[i]);
    }
    SetVariable(kNameVarargs, MakeTuple(std::move(rest)));
  } else if (arguments.positional.size() > num_parameters) {
    Fail("macro takes not more than " + std::to_string(num_parameters) + " argument(s)");
  }
  for (std::size_t i = 0; i < num_parameters && !failed_; ++i) {
    const Parameter& parameter = node.parameters[i];
    Value value;
    if (given[i] != nullptr) {
      value = *given[i];
    } else if (parameter.default_value != kNoNode) {
      value = Eval(parameter.default_value);
    } else {
      value = MakeUndefined("parameter '" + tree_.names[parameter.name] + "' was not provided");
    }
    SetVariable(parameter.name, value);
  }
  return !failed_;
}

Value Interpreter::CallMacro(const Closure& closure, const Arguments& arguments) {
  if (!Step(1 + arguments.positional.size() / 16)) return Value();
  if (calls_ >= limits_.max_calls) {
    return Fail("macros call each other deeper than " + std::to_string(limits_.max_calls),
                ErrorCode::kTooLarge);
  }
  ++calls_;
  TextBuilder text = NewBuilder();
  TextBuilder* const outer_out = std::exchange(out_, &text);
  Scope* const outer_scope = scope_;
  Scope* const scope = PushScope(closure.scope);
  if (BindMacro(closure, arguments, *scope)) Exec(closure.node->kids[0]);
  scope_ = outer_scope;
  out_ = outer_out;
  --calls_;
  return failed_ ? Value() : Finish(text);
}

// ---- functions ----

bool Interpreter::Bind(std::string_view what, const Arguments& arguments,
                       std::initializer_list<std::string_view> names, Value* out) {
  for (std::size_t i = 0; i < names.size(); ++i)
    out[i] = Value::Missing();
  if (arguments.positional.size() > names.size()) {
    Fail(std::string(what) + " takes at most " + std::to_string(names.size()) + " argument(s)");
    return false;
  }
  std::copy(arguments.positional.begin(), arguments.positional.end(), out);
  for (const auto& [keyword, value] : arguments.keyword) {
    const auto* const it = std::find(names.begin(), names.end(), keyword);
    const std::size_t i = static_cast<std::size_t>(it - names.begin());
    if (it == names.end() || !out[i].Is(Kind::kMissing)) {
      Fail(std::string(what) + " got an unexpected argument '" + std::string(keyword) + "'");
      return false;
    }
    out[i] = value;
  }
  return !failed_;
}

Value Interpreter::Call(const Value& callee, const Arguments& arguments) {
  switch (callee.kind) {
    case Kind::kMacro:
      return CallMacro(*callee.macro, arguments);
    case Kind::kMethod:
      return CallMethod(callee.method->receiver, callee.method->name, arguments);
    case Kind::kFunction:
      return CallFunction(callee.function, arguments);
    case Kind::kJoiner:
      if (std::exchange(callee.joiner->used, true)) return callee.joiner->separator;
      return MakeText("", true);
    case Kind::kLoop:
      return Fail("recursive loops are not supported", ErrorCode::kUnsupported);
    case Kind::kUndefined:
      return Fail(callee.undefined != nullptr ? callee.undefined->message
                                              : "an undefined value is called");
    default:
      return Fail(std::string("'") + KindName(callee) + "' object is not callable");
  }
}

Value Interpreter::MakeRange(const Arguments& arguments) {
  Value bound[3];
  if (!Bind("range", arguments, {"start", "stop", "step"}, bound)) return Value();
  if (!arguments.keyword.empty() || arguments.positional.empty()) {
    return Fail("range takes 1 to 3 arguments");
  }
  for (const Value& value : arguments.positional) {
    if (!value.IsInteger()) return Fail("range takes integers");
  }
  const std::size_t given = arguments.positional.size();
  const std::int64_t start = given == 1 ? 0 : bound[0].AsInt();
  const std::int64_t stop = given == 1 ? bound[0].AsInt() : bound[1].AsInt();
  const std::int64_t step = given == 3 ? bound[2].AsInt() : 1;
  if (step == 0) return Fail("range step must not be zero");
  Range range;
  range.start = start;
  range.step = step;
  // In 128 bits: the distance of two int64 does not fit in one.
  __extension__ using Wide = __int128;
  const Wide distance = step > 0 ? Wide{stop} - start : Wide{start} - stop;
  const Wide stride = step > 0 ? Wide{step} : -Wide{step};
  const Wide size = distance <= 0 ? 0 : (distance + stride - 1) / stride;
  if (size > limits_.max_range) {
    return Fail("range is longer than " + std::to_string(limits_.max_range), ErrorCode::kTooLarge);
  }
  range.size = static_cast<std::int64_t>(size);
  Charge(sizeof(Range));
  Range* kept = heap_.NewRange();
  *kept = range;
  Value value = Value::Of(Kind::kRange);
  value.range = kept;
  return value;
}

Value Interpreter::CallFunction(Function function, const Arguments& arguments) {
  Value bound[1];
  switch (function) {
    case Function::kRange:
      return MakeRange(arguments);
    case Function::kDict:
    case Function::kNamespace: {
      std::vector<std::pair<Value, Value>> items;
      if (!arguments.positional.empty()) {
        const Value& from = arguments.positional[0];
        if (arguments.positional.size() > 1 || !from.Is(Kind::kDict)) {
          return Fail("expected one mapping or keywords");
        }
        items = from.dict->items;
      }
      for (const auto& [key, value] : arguments.keyword) {
        items.emplace_back(MakeText(key, true), value);
      }
      const Value dict = MakeDict(std::move(items));
      if (function == Function::kDict || failed_) return dict;
      Charge(sizeof(Namespace) + dict.dict->items.size() * (sizeof(Value) + 64));
      if (failed_) return Value();
      Value value = Value::Of(Kind::kNamespace);
      value.name_space = heap_.NewNamespace();
      for (const auto& [key, item] : dict.dict->items) {
        value.name_space->items.emplace_back(std::string(ToText(key).view()), item);
      }
      return value;
    }
    case Function::kCycler: {
      if (arguments.positional.empty()) return Fail("at least one item has to be provided");
      Charge(sizeof(Cycler) + arguments.positional.size() * sizeof(Value));
      Value value = Value::Of(Kind::kCycler);
      value.cycler = heap_.NewCycler();
      value.cycler->items = arguments.positional;
      return value;
    }
    case Function::kJoiner: {
      if (!Bind("joiner", arguments, {"sep"}, bound)) return Value();
      Charge(sizeof(Joiner));
      Value value = Value::Of(Kind::kJoiner);
      value.joiner = heap_.NewJoiner();
      value.joiner->separator = bound[0].Is(Kind::kMissing) ? MakeText(", ", true) : bound[0];
      return value;
    }
    case Function::kRaiseException:
      if (!Bind("raise_exception", arguments, {"message"}, bound)) return Value();
      return Fail(std::string(ToText(bound[0]).view()));
    case Function::kStrftimeNow:
      if (!Bind("strftime_now", arguments, {"format"}, bound)) return Value();
      if (!bound[0].Is(Kind::kString)) return Fail("strftime_now takes a format");
      return Strftime(*bound[0].text);
  }
  return Value();
}

}  // namespace kvrm::jinja
