// SPDX-License-Identifier: Apache-2.0
#include "server/ports.h"

#include <utility>

namespace kvrm {

ChatSupport LoadChatSupport(const Model& model) {
  ChatSupport support;
  if (model.chat_template().empty()) {
    support.reason = "the model has no chat template";
    return support;
  }
  Result<ChatTemplate> parsed = ChatTemplate::Parse(model.chat_template());
  if (parsed) {
    support.chat_template = std::move(*parsed);
  } else {
    support.reason = "the model's chat template cannot be used: " + parsed.error().message;
  }
  return support;
}

EnginePort PortOf(Engine& engine) {
  return {
      .submit = [&engine](Request request) { return engine.Submit(std::move(request)); },
      .refuse_if_full =
          [&engine](std::uint32_t num_ahead) { return engine.RefuseIfFull(num_ahead); },
      .cancel = [&engine](RequestId request) { engine.Cancel(request); },
      .poll = [&engine](std::span<TokenEvent> events) { return engine.Poll(events); },
      .poll_logprobs = [&engine](TopLogprobs* logprobs) { return engine.PollLogprobs(logprobs); },
      .poll_embedding = [&engine](Embedding* embedding) { return engine.PollEmbedding(embedding); },
      .set_wake = [&engine](std::function<void()> wake) { engine.SetWake(std::move(wake)); },
      .ledger =
          [&engine] {
            const EngineOptions& options = engine.options();
            const EngineMetrics& metrics = engine.metrics();
            EngineLedger ledger = {.engine = engine.stats(),
                                   .kv = engine.kv_stats(),
                                   .reserved = engine.reserved(),
                                   .memory_budget = options.memory_budget,
                                   .view = KvViewName(options.view),
                                   .placement = PlacementPolicyName(options.placement),
                                   .block_tokens = options.block_tokens,
                                   .histograms = metrics.Histograms(),
                                   .num_rejected_requests = metrics.num_rejected_requests,
                                   .num_rejected_tokens = metrics.num_rejected_tokens};
            for (std::size_t i = 0; i < ledger.num_ended.size(); ++i)
              ledger.num_ended[i] = metrics.num_ended[i];
            return ledger;
          },
      .retry_after_s = [&engine] { return engine.RetryAfterSeconds(); },
      .max_context = engine.max_context(),
      .max_requests = engine.options().max_queued + engine.options().max_rows,
      .max_rows = engine.options().max_rows};
}

ModelPort PortOf(const Model& model, const ChatSupport& chat) {
  const Tokenizer& tokenizer = model.tokenizer();
  ModelPort port;
  port.served_name = model.config().name;
  port.vocab_size = model.config().vocab_size;
  port.trained_context = model.config().max_context;
  port.hidden_dim = model.config().hidden_dim;
  port.num_parameters = model.num_parameters();
  port.weight_bytes = model.weight_bytes();
  port.defaults = model.generation_defaults();
  port.stop_ids = tokenizer.stop_ids();
  if (tokenizer.bos() >= 0) port.bos_text = tokenizer.TokenName(tokenizer.bos());
  if (tokenizer.eos() >= 0) port.eos_text = tokenizer.TokenName(tokenizer.eos());
  port.encode = [&tokenizer](std::string_view text, const EncodeOptions& options) {
    return tokenizer.Encode(text, options);
  };
  port.encode_pieces = [&tokenizer](std::span<const TextPiece> pieces, bool add_special) {
    return tokenizer.EncodePieces(pieces, add_special);
  };
  port.token_bytes = [&tokenizer](std::int32_t id) { return tokenizer.TokenBytes(id, true); };
  port.open_stream = [&tokenizer](StreamDecoder::Start start, bool special) -> TextStream {
    return [decoder =
                StreamDecoder(tokenizer, start, special)](std::optional<std::int32_t> id) mutable {
      return id ? decoder.Push(*id) : decoder.Finish();
    };
  };
  port.chat_template = model.chat_template();
  port.takes_tools = port.chat_template.find("tools") != std::string::npos;
  port.tool_format = DetectToolFormat(port.chat_template);
  port.may_reason = port.chat_template.find("<think>") != std::string::npos ||
                    port.chat_template.find("</think>") != std::string::npos ||
                    port.tool_format == ToolFormat::kHarmony;
  port.render = [&chat](const ChatInputs& inputs) -> Result<std::vector<RenderedPiece>> {
    if (!chat.chat_template) return Error{ErrorCode::kUnsupported, chat.reason};
    return chat.chat_template->Render(inputs);
  };
  return port;
}

}  // namespace kvrm
