// SPDX-License-Identifier: Apache-2.0
#include "model/chat_template.h"

#include <algorithm>
#include <boost/json.hpp>
#include <iterator>
#include <utility>

#include "model/jinja_eval.h"
#include "model/jinja_parse.h"

namespace kvrm {
namespace {

using jinja::Interpreter;
using jinja::Kind;
using jinja::Value;

// ParseJson stops at 64; values made in the program may not go deeper than twice that.
constexpr int kMaxInputDepth = 128;

// A role is the request's text, but these few are names the template and the model agree on, and
// templates build special tokens from them.
bool IsKnownRole(std::string_view role) {
  static constexpr std::string_view kRoles[] = {"system",    "user",     "assistant", "tool",
                                                "developer", "function", "ipython"};
  return std::find(std::begin(kRoles), std::end(kRoles), role) != std::end(kRoles);
}

// Variables of a request may not stand in for what the server sets (reserved names), nor carry
// structures a template would walk.
Status CheckKwargs(const json::object& kwargs) {
  constexpr std::size_t kMaxKwargs = 32;
  if (kwargs.size() > kMaxKwargs) {
    return Error{ErrorCode::kTooLarge,
                 "chat_template_kwargs has more than " + std::to_string(kMaxKwargs) + " entries"};
  }
  static constexpr std::string_view kReserved[] = {
      "messages",  "tools",       "documents", "add_generation_prompt", "bos_token", "eos_token",
      "namespace", "range",       "dict",      "raise_exception",       "cycler",    "joiner",
      "loop",      "strftime_now"};
  for (const auto& item : kwargs) {
    const std::string_view key(item.key().data(), item.key().size());
    const std::string shown(key.substr(0, 64));
    if (std::find(std::begin(kReserved), std::end(kReserved), key) != std::end(kReserved)) {
      return Error{ErrorCode::kInvalidArgument, "chat_template_kwargs may not set '" + shown + "'"};
    }
    if (item.value().is_structured()) {
      return Error{ErrorCode::kInvalidArgument,
                   "chat_template_kwargs: '" + shown + "' must be a scalar"};
    }
  }
  return Done{};
}

std::size_t InputBytes(const json::value& value, int depth) {
  if (depth > kMaxInputDepth) return 0;
  std::size_t bytes = 8;
  if (value.is_string()) bytes += value.get_string().size();
  if (value.is_array()) {
    for (const json::value& item : value.get_array())
      bytes += InputBytes(item, depth + 1);
  }
  if (value.is_object()) {
    for (const auto& item : value.get_object()) {
      bytes += item.key().size() + InputBytes(item.value(), depth + 1);
    }
  }
  return bytes;
}

// The strings are not copied: the inputs outlive the rendering.
Value FromJson(Interpreter& in, const json::value& value, int depth) {
  if (depth > kMaxInputDepth) return in.Fail("input is nested too deeply", ErrorCode::kTooLarge);
  switch (value.kind()) {
    case json::kind::null:
      return Value::None();
    case json::kind::bool_:
      return Value::Bool(value.get_bool());
    case json::kind::int64:
      return Value::Int(value.get_int64());
    case json::kind::uint64:
      return in.Fail("an integer of the input does not fit in 64 bits");
    case json::kind::double_:
      return Value::Float(value.get_double());
    case json::kind::string: {
      const json::string& text = value.get_string();
      return in.MakeText({text.data(), text.size()}, false);
    }
    case json::kind::array: {
      std::vector<Value> items;
      items.reserve(value.get_array().size());
      for (const json::value& item : value.get_array()) {
        items.push_back(FromJson(in, item, depth + 1));
      }
      return in.MakeList(std::move(items));
    }
    case json::kind::object: {
      std::vector<std::pair<Value, Value>> items;
      items.reserve(value.get_object().size());
      for (const auto& item : value.get_object()) {
        const Value key = in.MakeText({item.key().data(), item.key().size()}, false);
        items.emplace_back(key, FromJson(in, item.value(), depth + 1));
      }
      return in.MakeDict(std::move(items));
    }
  }
  return Value();
}

Value FromMessages(Interpreter& in, const json::array& messages) {
  std::vector<Value> items;
  items.reserve(messages.size());
  for (const json::value& message : messages) {
    if (!message.is_object()) {
      items.push_back(FromJson(in, message, 1));
      continue;
    }
    std::vector<std::pair<Value, Value>> fields;
    for (const auto& field : message.get_object()) {
      const std::string_view key(field.key().data(), field.key().size());
      Value value = FromJson(in, field.value(), 2);
      if (key == "role" && value.Is(Kind::kString) && IsKnownRole(value.text->view())) {
        value = in.MakeText(value.text->view(), true);
      }
      fields.emplace_back(in.MakeText(key, false), value);
    }
    items.push_back(in.MakeDict(std::move(fields)));
  }
  return in.MakeList(std::move(items));
}

std::vector<RenderedPiece> ToPieces(const jinja::TextBuilder& out) {
  std::vector<RenderedPiece> pieces;
  for (std::size_t begin = 0; begin < out.size();) {
    const bool trusted = out.TrustedAt(begin);
    std::size_t end = begin + 1;
    while (end < out.size() && out.TrustedAt(end) == trusted)
      ++end;
    pieces.push_back({out.text().substr(begin, end - begin), trusted});
    begin = end;
  }
  return pieces;
}

}  // namespace

struct ChatTemplate::Program {
  jinja::Tree tree;
};

ChatTemplate::ChatTemplate(std::unique_ptr<const Program> program) : program_(std::move(program)) {}
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;
ChatTemplate::~ChatTemplate() = default;

Result<ChatTemplate> ChatTemplate::Parse(std::string_view source) {
  Result<jinja::Tree> tree = jinja::ParseTemplate(source);
  if (!tree) return tree.error();
  auto program = std::make_unique<Program>();
  program->tree = std::move(tree).value();
  return ChatTemplate(std::move(program));
}

Result<std::vector<RenderedPiece>> ChatTemplate::Render(const ChatInputs& inputs) const {
  return Render(inputs, SystemClock());
}

Result<std::vector<RenderedPiece>> ChatTemplate::Render(const ChatInputs& inputs,
                                                        const Clock& clock) const {
  if (const Status allowed = CheckKwargs(inputs.kwargs); !allowed) return allowed.error();
  std::size_t input_bytes = InputBytes(inputs.tools, 1);
  for (const json::value& message : inputs.messages)
    input_bytes += InputBytes(message, 1);
  jinja::Limits limits;
  limits.max_output_bytes = std::max(limits.max_output_bytes, 4 * input_bytes + (1u << 20));
  // Eight times what may come out: room for the copies that loops and macros make on the way, and
  // for the input's own values.
  limits.max_heap_bytes = 8 * limits.max_output_bytes + 16 * input_bytes;
  Interpreter in(program_->tree, limits, clock, inputs.now_unix);
  in.Define("messages", FromMessages(in, inputs.messages));
  in.Define("tools", FromJson(in, inputs.tools, 1));
  in.Define("documents", Value::None());
  in.Define("add_generation_prompt", Value::Bool(inputs.add_generation_prompt));
  in.Define("bos_token", in.MakeText(inputs.bos_token, true));
  in.Define("eos_token", in.MakeText(inputs.eos_token, true));
  for (const auto& item : inputs.kwargs) {
    in.Define({item.key().data(), item.key().size()}, FromJson(in, item.value(), 1));
  }
  jinja::TextBuilder out(limits.max_output_bytes);
  if (!in.Run(out)) return in.error();
  return ToPieces(out);
}

}  // namespace kvrm
