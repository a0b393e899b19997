// SPDX-License-Identifier: Apache-2.0
// ChatTemplate: the model's own Jinja template, rendered in a sandbox.
//
// The source is untrusted (it comes with the model), and so is every string of the request. Limits
// (docs/http_api.md): source 256 KiB, 20,000 nodes, nesting 64, 1,000,000 steps, recursion 64,
// output the larger of 8 MiB and 4 x input + 1 MiB, range 10,000, 500 ms. No attribute of a value
// is reachable but the plain data given; no include, import or extends.
//
// The rendered text comes in pieces that say where each byte came from: text of the template is
// trusted and may name special tokens, text of the request never becomes one.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/json.h"
#include "base/result.h"

namespace kvrm {

struct RenderedPiece {
  std::string text;
  bool trusted = false;
};

struct ChatInputs {
  json::array messages;         // OpenAI shape: {"role", "content", ...}
  json::value tools = nullptr;  // array or null
  json::object kwargs;          // scalars from chat_template_kwargs
  bool add_generation_prompt = true;
  std::string bos_token;  // as text; templates write them out
  std::string eos_token;
  std::int64_t now_unix = 0;  // for strftime_now
};

class ChatTemplate {
 public:
  // Parses; the error names line and construct.
  static Result<ChatTemplate> Parse(std::string_view source);

  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;
  ~ChatTemplate();

  // Adjacent pieces of equal trust are merged. A template's raise_exception is an error with its
  // message. Safe to call from many threads.
  Result<std::vector<RenderedPiece>> Render(const ChatInputs& inputs) const;
  // The same with the time limit measured on `clock`.
  Result<std::vector<RenderedPiece>> Render(const ChatInputs& inputs, const Clock& clock) const;

 private:
  struct Program;
  explicit ChatTemplate(std::unique_ptr<const Program> program);
  std::unique_ptr<const Program> program_;
};

}  // namespace kvrm
