// SPDX-License-Identifier: Apache-2.0
// kvrm serve: the HTTP server. The first SIGINT or SIGTERM drains, the second ends at once.
//
// Threads: this one waits for signals; the engine steps on its own; the server has two
// (server/api.h).
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>

#include "base/clock.h"
#include "base/log.h"
#include "base/result.h"
#include "base/rng.h"
#include "cli/commands.h"
#include "cli/config.h"
#include "cli/serve_flags.h"
#include "engine/engine.h"
#include "server/api.h"

namespace kvrm {
namespace {

constexpr long kSignalPollNs = 50'000'000;
// Time for the last answers to leave after their requests were cut.
constexpr std::int64_t kAbortGraceNs = 2'000'000'000;

// Runs Engine::Run on a thread of its own from construction to destruction.
class EngineThread {
 public:
  explicit EngineThread(Engine& engine) : engine_(engine), thread_([&engine] { engine.Run(); }) {}
  ~EngineThread() { Stop(); }
  EngineThread(const EngineThread&) = delete;
  EngineThread& operator=(const EngineThread&) = delete;
  void Stop() {
    engine_.Stop();
    if (thread_.joinable()) thread_.join();
  }

 private:
  Engine& engine_;
  std::thread thread_;
};

void PrintReserved(const Engine& engine, const Model& model) {
  std::uint64_t total = 0;
  std::printf("\n  reserved         bytes  for\n");
  for (const ReservedBytes& reserved : engine.reserved()) {
    total += reserved.bytes;
    std::printf("  %20llu  %s\n", static_cast<unsigned long long>(reserved.bytes),
                reserved.owner.c_str());
  }
  std::printf("  %20llu  in all; the weights' file has %llu\n",
              static_cast<unsigned long long>(total),
              static_cast<unsigned long long>(model.weight_bytes()));
}

// The static views have nothing to share, whatever the option says.
bool SharesPrefixes(const EngineOptions& options) {
  return options.prefix_cache && options.view != KvView::kStatic &&
         options.view != KvView::kStaticPadded && options.view != KvView::kStaticBucketed;
}

void PrintCache(const Engine& engine) {
  const EngineOptions& options = engine.options();
  std::printf("\n  KV cache: %u blocks of %u tokens, view %s, prefix cache %s\n",
              engine.kv_stats().num_blocks, options.block_tokens, KvViewName(options.view),
              SharesPrefixes(options) ? "on" : "off");
}

// What to type next. Nothing here needs more than this machine has.
void PrintNextSteps(const std::string& url, const std::string& name, bool chats, bool has_key) {
  const char* const key_flag = has_key ? " -H \"Authorization: Bearer $KEY\"" : "";
  const char* const key_text = has_key ? "process.env.KEY" : "\"none\"";
  std::printf("\nlistening on %s\n\nTry it:\n\n", url.c_str());
  if (chats) {
    std::printf("  curl %s/v1/chat/completions%s \\\n", url.c_str(), key_flag);
    std::printf(
        "    -d '{\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}],"
        "\"stream\":true}'\n");
  } else {
    std::printf("  curl %s/v1/completions%s \\\n", url.c_str(), key_flag);
    std::printf("    -d '{\"prompt\":\"Once upon a time\",\"max_tokens\":64,\"stream\":true}'\n");
  }
  std::printf("\nor, with the openai package for JavaScript:\n\n");
  std::printf("  import OpenAI from \"openai\";\n");
  std::printf("  const client = new OpenAI({ baseURL: \"%s/v1\", apiKey: %s });\n", url.c_str(),
              key_text);
  if (chats) {
    std::printf(
        "  const stream = await client.chat.completions.create({ model: \"%s\",\n"
        "    stream: true, messages: [{ role: \"user\", content: \"Hello\" }] });\n"
        "  for await (const chunk of stream)\n"
        "    process.stdout.write(chunk.choices[0]?.delta?.content ?? \"\");\n",
        name.c_str());
  } else {
    std::printf(
        "  const stream = await client.completions.create({ model: \"%s\",\n"
        "    stream: true, max_tokens: 64, prompt: \"Once upon a time\" });\n"
        "  for await (const chunk of stream)\n"
        "    process.stdout.write(chunk.choices[0]?.text ?? \"\");\n",
        name.c_str());
  }
  std::printf("\nCtrl-C ends after the running requests; twice, at once.\n\n");
  std::fflush(stdout);
}

// Whether one of them arrived within kSignalPollNs.
bool TakeSignal(const sigset_t& signals) {
  const timespec timeout{.tv_sec = 0, .tv_nsec = kSignalPollNs};
  return ::sigtimedwait(&signals, nullptr, &timeout) > 0;
}

void WaitDrained(const Server& server, const sigset_t& signals, const Clock& clock,
                 std::int64_t limit_ns) {
  const std::int64_t begin_ns = clock.NowNs();
  while (!server.drained() && clock.NowNs() - begin_ns < limit_ns) {
    if (TakeSignal(signals)) {
      std::fflush(stdout);
      ::_exit(0);
    }
  }
}

void ServeUntilSignal(Server& server, EngineThread& engine_thread, const sigset_t& signals,
                      const Clock& clock, const ServeFlags& flags) {
  while (!TakeSignal(signals)) {
  }
  Log(LogLevel::kInfo, "draining", {{"limit_s", flags.drain_seconds}});
  server.BeginDrain();
  WaitDrained(server, signals, clock, std::int64_t{flags.drain_seconds} * 1'000'000'000);
  if (!server.drained()) {
    Log(LogLevel::kWarning, "drain_limit_reached");
    server.AbortAll();
    WaitDrained(server, signals, clock, kAbortGraceNs);
  }
  engine_thread.Stop();
  server.Stop();
  const ServerStats stats = server.stats();
  Log(LogLevel::kInfo, "stopped",
      {{"requests", stats.http.num_requests},
       {"completed", stats.generations.num_completed},
       {"failed", stats.generations.num_failed},
       {"abandoned", stats.generations.num_abandoned},
       {"refused", stats.http.num_refused + stats.num_rejected}});
}

// What clients call the model: the alias, else the dummy's shape or the file's or folder's own
// name.
std::string ServedName(const ServeFlags& flags) {
  if (!flags.alias.empty()) return flags.alias;
  if (!flags.model.dummy.empty()) return "kvrm-dummy-" + flags.model.dummy;
  if (flags.model.path.empty()) return "kvrm-demo";
  const std::filesystem::path path = std::filesystem::absolute(flags.model.path).lexically_normal();
  return path.has_filename() ? path.stem().string() : path.parent_path().filename().string();
}

void RunServe(const ServeFlags& flags) {
  // Every thread made from here on leaves these two to this one.
  sigset_t signals;
  ::sigemptyset(&signals);
  ::sigaddset(&signals, SIGINT);
  ::sigaddset(&signals, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  ::signal(SIGPIPE, SIG_IGN);  // A reader of our output that leaves does not end the server.
  ApplyLogFlags(flags);

  const SystemClock clock;
  ServerOptions server_options = ServerOptionsOf(flags);
  server_options.seed = Mix64(static_cast<std::uint64_t>(clock.NowNs())) ^
                        static_cast<std::uint64_t>(clock.UnixSeconds());
  server_options.http.id_seed = Mix64(server_options.seed);
  const LoadedModel loaded(flags.model);
  const Model& model = loaded.model();
  const ChatSupport chat = LoadChatSupport(model);
  EngineOptions engine_options = flags.engine;
  engine_options.load_progress = ShowLoading();
  Engine engine(model, engine_options, clock);
  ModelPort model_port = PortOf(model, chat);
  model_port.served_name = ServedName(flags);
  model_port.created_unix = clock.UnixSeconds();
  const std::string name = model_port.served_name;

  Server server(PortOf(engine), std::move(model_port), server_options, clock);
  const std::uint16_t port = server.Listen();
  std::printf("%s: %s, %.1f million parameters, context %u\n", name.c_str(),
              ArchitectureName(model.config().architecture),
              static_cast<double>(model.num_parameters()) * 1e-6, engine.max_context());
  if (!chat.chat_template) std::printf("chat is off: %s\n", chat.reason.c_str());
  PrintReserved(engine, model);
  PrintCache(engine);
  EngineThread engine_thread(engine);
  server.Start();
  const std::string& host = server_options.host;
  const std::string shown_host = host.find(':') == std::string::npos ? host : "[" + host + "]";
  const char* const scheme = server_options.http.tls_key_file.empty() ? "http://" : "https://";
  PrintNextSteps(scheme + shown_host + ":" + std::to_string(port), name,
                 chat.chat_template.has_value(), !server_options.api_keys.empty());
  ServeUntilSignal(server, engine_thread, signals, clock, flags);
}

}  // namespace

void AddServeCommand(CLI::App& app) {
  auto flags = std::make_shared<ServeFlags>();
  CLI::App* command = app.add_subcommand("serve", "serve the OpenAI-compatible HTTP API");
  AddServeFlags(*command, flags.get());
  AddConfigSources(*command);
  command->callback([flags] { RunServe(*flags); });
}

}  // namespace kvrm
