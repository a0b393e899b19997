// SPDX-License-Identifier: Apache-2.0
// kvrm run: one prompt, streamed to the terminal.
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <memory>

#include "base/clock.h"
#include "base/result.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "engine/engine.h"
#include "model/chat_template.h"

namespace kvrm {
namespace {

constexpr char kDefaultPrompt[] = "Once upon a time";
constexpr std::size_t kMaxPromptBytes = 64u << 20;
constexpr int kExitInterrupted = 130;  // As shells report a program that SIGINT ended.

volatile std::sig_atomic_t interrupted = 0;

struct RunFlags {
  ModelFlags model;
  std::string prompt;
  std::string system;
  bool has_prompt = false;
  bool chat = false;
  EngineOptions engine;  // what AddKvFlags sets
  bool verbose = false;
  std::uint32_t max_tokens = 256;
  float temperature = 0.8f;
  float top_p = 0.95f;
  float min_p = 0.0f;
  std::int32_t top_k = 40;
  std::uint64_t seed = 0;
  std::uint32_t threads = 0;
  std::uint32_t context = 0;
};

std::string TokenText(const Tokenizer& tokenizer, std::int32_t id) {
  return id < 0 ? std::string() : std::string(tokenizer.TokenName(id));
}

std::vector<std::int32_t> ChatPrompt(const Model& model, const RunFlags& flags) {
  if (model.chat_template().empty()) throw StartError("--chat: the model has no chat template");
  const ChatTemplate chat = OrThrow(ChatTemplate::Parse(model.chat_template()));
  const Tokenizer& tokenizer = model.tokenizer();
  ChatInputs inputs;
  if (!flags.system.empty()) {
    inputs.messages.push_back(json::object{{"role", "system"}, {"content", flags.system}});
  }
  inputs.messages.push_back(json::object{{"role", "user"}, {"content", flags.prompt}});
  inputs.bos_token = TokenText(tokenizer, tokenizer.bos());
  inputs.eos_token = TokenText(tokenizer, tokenizer.eos());
  inputs.now_unix = SystemClock().UnixSeconds();
  const std::vector<RenderedPiece> rendered = OrThrow(chat.Render(inputs));
  std::vector<TextPiece> pieces;
  for (const RenderedPiece& piece : rendered) {
    pieces.push_back({.text = piece.text, .trusted = piece.trusted});
  }
  return tokenizer.EncodePieces(pieces, false);
}

void Print(const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    throw StartError("cannot write standard output");
  }
}

// Steps the engine on this thread until the request ends.
FinishReason Stream(Engine& engine, RequestId id, StreamDecoder::Start start) {
  StreamDecoder decoder(engine.model().tokenizer(), start);
  bool cancelled = false;
  for (;;) {
    if (interrupted != 0 && !cancelled) {
      engine.Cancel(id);
      cancelled = true;
    }
    engine.Step();
    TokenEvent event;
    while (engine.Poll({&event, 1}) == 1) {
      if (event.token >= 0 && event.finish != FinishReason::kStop) {
        Print(decoder.Push(event.token));
      }
      if (event.finish == FinishReason::kNone) continue;
      Print(decoder.Finish());
      return event.finish;
    }
  }
}

void PrintTimings(const Engine& engine, std::int64_t elapsed_ns) {
  const EngineStats stats = engine.stats();
  const double seconds = static_cast<double>(elapsed_ns) * 1e-9;
  std::fprintf(stderr, "%llu prompt and %llu output tokens in %.2f s, %.1f output tokens/s\n",
               static_cast<unsigned long long>(stats.num_prompt_tokens),
               static_cast<unsigned long long>(stats.num_output_tokens), seconds,
               static_cast<double>(stats.num_output_tokens) / seconds);
  for (const ReservedBytes& r : engine.reserved()) {
    std::fprintf(stderr, "  reserved %12llu bytes  %s\n", static_cast<unsigned long long>(r.bytes),
                 r.owner.c_str());
  }
}

std::string ReadPipe() {
  std::string text;
  char buffer[65536];
  while (const std::size_t count = std::fread(buffer, 1, sizeof(buffer), stdin)) {
    text.append(buffer, count);
    if (text.size() > kMaxPromptBytes) {
      throw StartError("standard input has more than " + std::to_string(kMaxPromptBytes) +
                       " bytes");
    }
  }
  return text;
}

void RunPrompt(RunFlags flags) {
  if (!flags.has_prompt) {
    flags.prompt = IsTerminal(0) ? kDefaultPrompt : ReadPipe();
  }
  if (flags.prompt.empty()) throw StartError("the prompt is empty");
  const LoadedModel loaded(flags.model);
  const Model& model = loaded.model();
  const SystemClock clock;
  Request request;
  request.prompt = flags.chat ? ChatPrompt(model, flags)
                              : model.tokenizer().Encode(flags.prompt, {.add_special = true});
  request.max_tokens = flags.max_tokens;
  request.sampling = {.temperature = flags.temperature,
                      .top_p = flags.top_p,
                      .top_k = flags.top_k,
                      .min_p = flags.min_p,
                      .seed = flags.seed};
  request.stop_ids = model.tokenizer().stop_ids();
  EngineOptions options = flags.engine;
  options.max_rows = 1;
  options.max_context = flags.context;
  options.max_queued = 1;
  options.num_threads = flags.threads;
  options.load_progress = ShowLoading();
  Engine engine(model, options, clock);
  const std::int64_t begin_ns = clock.NowNs();
  const RequestId id = OrThrow(engine.Submit(std::move(request)));
  std::signal(SIGINT, [](int) { interrupted = 1; });
  // A person sees the whole text; a pipe gets what the model wrote.
  if (!flags.chat && IsTerminal(1)) Print(flags.prompt);
  const FinishReason finish =
      Stream(engine, id,
             flags.chat ? StreamDecoder::Start::kMessage : StreamDecoder::Start::kContinuation);
  Print("\n");
  if (flags.verbose) PrintTimings(engine, clock.NowNs() - begin_ns);
  if (finish == FinishReason::kAborted) throw CLI::RuntimeError(kExitInterrupted);
  if (finish == FinishReason::kError) throw StartError("the model gave logits that are not finite");
}

}  // namespace

void AddRunCommand(CLI::App& app) {
  auto flags = std::make_shared<RunFlags>();
  CLI::App* command = app.add_subcommand("run", "continue a prompt, streamed to the terminal");
  AddModelFlags(*command, &flags->model);
  CLI::Option* prompt = command->add_option(
      "prompt", flags->prompt, "text to continue; without it standard input, if it is a pipe");
  command->add_flag("--chat", flags->chat, "send the prompt as a user's message");
  command->add_option("--system", flags->system, "with --chat: the system message");
  command->add_option("-n,--max-tokens,--n-predict", flags->max_tokens, "longest output")
      ->capture_default_str();
  command->add_option("--temperature,--temp", flags->temperature, "0: always the likeliest token")
      ->capture_default_str();
  command->add_option("--top-k", flags->top_k, "0: all")->capture_default_str();
  command->add_option("--top-p", flags->top_p, "share of probability kept")->capture_default_str();
  command->add_option("--min-p", flags->min_p, "least share of the likeliest token's probability")
      ->capture_default_str();
  command->add_option("-s,--seed", flags->seed, "same seed, same text")->capture_default_str();
  command->add_option("-t,--threads", flags->threads, "worker threads; 0: all cores");
  command->add_option("-c,--ctx-size,--max-model-len", flags->context,
                      "tokens of context; 0: the model's");
  AddKvFlags(*command, &flags->engine);
  command->add_flag("-v,--verbose", flags->verbose, "timings and reserved memory on stderr");
  command->callback([flags, prompt] {
    flags->has_prompt = prompt->count() > 0;
    RunPrompt(*flags);
  });
}

}  // namespace kvrm
