// SPDX-License-Identifier: Apache-2.0
// kvrm serve: the HTTP server. The first SIGINT or SIGTERM drains, the second ends at once.
//
// Threads: this one waits for signals; the engine steps on its own; the server has two
// (server/api.h).
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/log.h"
#include "base/result.h"
#include "base/rng.h"
#include "base/service.h"
#include "cli/commands.h"
#include "cli/config.h"
#include "cli/serve_flags.h"
#include "engine/engine.h"
#include "server/api.h"
#include "server/recording_port.h"

namespace kvrm {
namespace {

constexpr long kSignalPollNs = 50'000'000;
constexpr long kLoadPollNs = 5'000'000;
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
  const KvStats kv = engine.kv_stats();
  if (kv.num_asleep > 0) {
    std::printf("  %llu bytes of its %llu have memory; the rest comes as it is needed\n",
                static_cast<unsigned long long>(kv.committed_bytes),
                static_cast<unsigned long long>(kv.reserved_bytes));
  }
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

// Whether one of them arrives within `wait_ns`.
bool TakeSignal(const sigset_t& signals, long wait_ns = kSignalPollNs) {
  const timespec timeout{.tv_sec = 0, .tv_nsec = wait_ns};
  return ::sigtimedwait(&signals, nullptr, &timeout) > 0;
}

// While the model is loaded a signal ends the program: there is nothing to drain yet, and loading
// can take long.
class LoadInterrupt {
 public:
  explicit LoadInterrupt(const sigset_t& signals)
      : thread_([this, signals] {
          while (!loaded_) {
            if (TakeSignal(signals, kLoadPollNs)) ::_exit(0);
          }
        }) {}
  ~LoadInterrupt() {
    loaded_ = true;
    thread_.join();
  }
  LoadInterrupt(const LoadInterrupt&) = delete;
  LoadInterrupt& operator=(const LoadInterrupt&) = delete;

 private:
  std::atomic<bool> loaded_{false};
  std::thread thread_;
};

// Tells the service manager that the engine's loop still turns, twice in each of its periods. A
// step that never ends, or a loop that died, is then the manager's to restart.
class EngineWatch {
 public:
  EngineWatch(const ServiceManager& manager, Engine& engine, const Clock& clock)
      : manager_(manager), engine_(engine), clock_(clock) {}
  void Look() {
    const std::int64_t now_ns = clock_.NowNs();
    if (manager_.watchdog_ns() == 0 || now_ns < next_ns_) return;
    next_ns_ = now_ns + manager_.watchdog_ns() / 4;
    const std::uint64_t num_rounds = engine_.num_rounds();
    if (num_rounds != std::exchange(last_rounds_, num_rounds)) manager_.Alive();
    engine_.Ping();
  }

 private:
  const ServiceManager& manager_;
  Engine& engine_;
  const Clock& clock_;
  std::int64_t next_ns_ = 0;
  std::uint64_t last_rounds_ = UINT64_MAX;
};

void WaitDrained(const Server& server, const sigset_t& signals, EngineWatch& watch,
                 const Clock& clock, std::int64_t limit_ns) {
  const std::int64_t begin_ns = clock.NowNs();
  while (!server.drained() && clock.NowNs() - begin_ns < limit_ns) {
    watch.Look();
    if (TakeSignal(signals)) {
      std::fflush(stdout);
      ::_exit(0);
    }
  }
}

// Returns when everybody is answered or the limit is over.
void Drain(Server& server, const sigset_t& signals, EngineWatch& watch, const Clock& clock,
           std::uint32_t limit_seconds) {
  Log(LogLevel::kInfo, "draining", {{"limit_s", limit_seconds}});
  server.BeginDrain();
  WaitDrained(server, signals, watch, clock, std::int64_t{limit_seconds} * 1'000'000'000);
  if (server.drained()) return;
  Log(LogLevel::kWarning, "drain_limit_reached");
  server.AbortAll();
  WaitDrained(server, signals, watch, clock, kAbortGraceNs);
}

void LogStopped(const ServerStats& stats) {
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
  const ServiceManager manager;
  auto interrupt = std::make_unique<LoadInterrupt>(signals);
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

  std::optional<TraceWriter> trace;
  EnginePort engine_port = PortOf(engine);
  if (!flags.record_trace.empty()) {
    trace.emplace(flags.record_trace, DrawSalt());
    engine_port = Recording(std::move(engine_port), *trace, clock);
  }
  Server server(std::move(engine_port), std::move(model_port), server_options, clock);
  const std::uint16_t port = server.Listen();
  std::printf("%s: %s, %.1f million parameters, context %u\n", name.c_str(),
              ArchitectureName(model.config().architecture),
              static_cast<double>(model.num_parameters()) * 1e-6, engine.max_context());
  if (!chat.chat_template) std::printf("chat is off: %s\n", chat.reason.c_str());
  PrintReserved(engine, model);
  PrintCache(engine);
  EngineThread engine_thread(engine);
  server.Start();
  interrupt.reset();
  const std::string& host = server_options.host;
  const std::string shown_host = host.find(':') == std::string::npos ? host : "[" + host + "]";
  const char* const scheme = server_options.http.tls_key_file.empty() ? "http://" : "https://";
  PrintNextSteps(scheme + shown_host + ":" + std::to_string(port), name,
                 chat.chat_template.has_value(), !server_options.api_keys.empty());
  manager.Ready();
  EngineWatch watch(manager, engine, clock);
  while (!TakeSignal(signals))
    watch.Look();
  manager.Stopping();
  Drain(server, signals, watch, clock, flags.drain_seconds);
  engine_thread.Stop();
  server.Stop();
  LogStopped(server.stats());
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
