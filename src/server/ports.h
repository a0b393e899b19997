// SPDX-License-Identifier: Apache-2.0
// What the server needs of an engine and of a model: a few functions each, so that a test can stand
// in for both without weights.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "engine/engine.h"
#include "engine/request.h"
#include "model/chat_template.h"
#include "model/tokenizer.h"
#include "model/weights.h"
#include "server/ledger.h"
#include "server/tool_calls.h"

namespace kvrm {

// As the verbs of Engine.
struct EnginePort {
  std::function<Result<RequestId>(Request)> submit;  // I/O thread
  // As Engine::RefuseIfFull; absent: submit alone refuses. I/O thread.
  std::function<std::optional<Error>(std::uint32_t)> refuse_if_full = {};
  std::function<void(RequestId)> cancel;                   // I/O thread
  std::function<std::size_t(std::span<TokenEvent>)> poll;  // I/O thread
  std::function<bool(TopLogprobs*)> poll_logprobs;         // I/O thread, after poll
  std::function<bool(Embedding*)> poll_embedding;          // I/O thread, after poll
  std::function<void(std::function<void()>)> set_wake;     // once, before requests
  std::function<EngineLedger()> ledger;                    // I/O thread
  // Seconds after which a refused request may find room; absent: 1. I/O thread.
  std::function<std::uint32_t()> retry_after_s = {};
  std::uint32_t max_context = 0;
  std::uint32_t max_requests = 0;  // that run or wait at once
  std::uint32_t max_rows = 0;      // that run at once
};

// Streaming detokenisation of one output, as StreamDecoder: a token gives the text that has become
// certain, nullopt (the output has ended) what was held.
using TextStream = std::function<std::string(std::optional<std::int32_t>)>;

// Immutable facts and pure functions; encode and render run on the worker thread,
// open_stream on both.
struct ModelPort {
  std::string served_name;
  std::int64_t created_unix = 0;
  std::uint32_t vocab_size = 0;
  std::uint32_t trained_context = 0;
  std::uint32_t hidden_dim = 0;
  std::uint64_t num_parameters = 0;
  std::uint64_t weight_bytes = 0;
  GenerationDefaults defaults;
  std::vector<std::int32_t> stop_ids;
  std::string bos_text;
  std::string eos_text;
  std::string chat_template;  // its source; empty: none
  bool takes_tools = false;   // the template looks at them
  bool may_reason = false;    // the template knows of <think>, or of channels
  ToolFormat tool_format = ToolFormat::kJson;

  std::function<std::vector<std::int32_t>(std::string_view, const EncodeOptions&)> encode;
  std::function<std::vector<std::int32_t>(std::span<const TextPiece>, bool add_special)>
      encode_pieces;
  std::function<std::string(std::int32_t)> token_bytes;
  // `special`: control tokens become their names, else nothing.
  std::function<TextStream(StreamDecoder::Start, bool special)> open_stream;
  // The error says why the model cannot chat, when it cannot.
  std::function<Result<std::vector<RenderedPiece>>(const ChatInputs&)> render;
};

// The model's template, parsed once at start; a reason instead of a template disables chat, not the
// server.
struct ChatSupport {
  std::optional<ChatTemplate> chat_template;
  std::string reason;
};
ChatSupport LoadChatSupport(const Model& model);

// The arguments outlive the ports.
EnginePort PortOf(Engine& engine);
ModelPort PortOf(const Model& model, const ChatSupport& chat);

}  // namespace kvrm
