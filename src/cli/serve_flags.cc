// SPDX-License-Identifier: Apache-2.0
#include "cli/serve_flags.h"

#include <optional>

#include "base/result.h"
#include "server/keys.h"

namespace kvrm {
namespace {

constexpr std::size_t kMaxBodyBytes = std::size_t{64} << 20;

bool IsLoopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host.starts_with("127.");
}

// Flags added since the last call.
void Group(CLI::App& command, const char* name) {
  for (CLI::Option* option : command.get_options()) {
    if (option->get_group() == "Options") option->group(name);
  }
}

void AddModelGroup(CLI::App& command, ServeFlags* flags) {
  command.get_help_ptr()->group("Help and configuration");
  AddModelFlags(command, &flags->model);
  command.add_option("-a,--alias,--served-model-name", flags->alias,
                     "the name clients see; the model's own otherwise");
  Group(command, "Model");
}

void AddNetworkGroup(CLI::App& command, ServeFlags* flags) {
  ServerOptions& server = flags->server;
  command.add_option("--host", server.host, "IP address to listen on")->capture_default_str();
  command.add_option("--port", server.port, "0: any free one")->capture_default_str();
  command.add_option("--root-path,--api-prefix", server.root_path,
                     "prefix that clients may put before every path, like /llm");
  command
      .add_option("--cors-origins,--allowed-origins", server.http.cors_origins,
                  "origins whose scripts may read answers, exactly as browsers send them; off "
                  "without")
      ->delimiter(',')
      ->allow_extra_args(false);
  Group(command, "Network");
}

void AddSecurityGroup(CLI::App& command, ServeFlags* flags) {
  ServerOptions& server = flags->server;
  command
      .add_option("--api-key", server.api_keys,
                  "keys that clients must send one of; may be repeated. Other users see a command "
                  "line: prefer the file or KVRM_ARG_API_KEY")
      ->delimiter(',')
      ->allow_extra_args(false);
  command.add_option("--api-key-file", flags->api_key_file,
                     "file with one key a line, not readable by others");
  command.add_flag("--insecure-public-without-key", flags->public_without_key,
                   "listen beyond this machine although anybody who reaches it may use it");
  command.add_option("--ssl-cert-file,--ssl-certfile", server.http.tls_certificate_file,
                     "certificate chain in PEM; with --ssl-key-file the server speaks TLS only");
  command.add_option("--ssl-key-file,--ssl-keyfile", server.http.tls_key_file,
                     "the certificate's key in PEM");
  Group(command, "Security");
}

// A flag in seconds over an option in milliseconds.
void AddSeconds(CLI::App& command, const std::string& name, std::int64_t* ms,
                const std::string& help) {
  command
      .add_option_function<std::int64_t>(
          name, [ms](const std::int64_t& seconds) { *ms = seconds * 1000; }, help)
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{86400}))
      ->default_str(std::to_string(*ms / 1000));
}

void AddLimitsGroup(CLI::App& command, ServeFlags* flags) {
  HttpOptions& http = flags->server.http;
  command.add_option("--max-body-bytes", http.parser.max_body_bytes, "bytes of one request body")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(std::size_t{1024}, kMaxBodyBytes))
      ->default_str("8M");
  command
      .add_option("--max-bodies-bytes", http.max_bodies_bytes,
                  "bytes of all request bodies that are read or queued")
      ->transform(CLI::AsSizeValue(false))
      ->default_str("256M");
  command.add_option("--max-connections", http.max_connections, "connections at once")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  command
      .add_option("--max-connections-per-address", http.max_connections_per_address,
                  "of one IPv4 address or IPv6 /64, loopback excepted; 0: any number")
      ->capture_default_str();
  AddSeconds(command, "--timeout-head", &http.head_ms, "seconds for a request's head");
  AddSeconds(command, "--timeout-body", &http.body_ms, "seconds for a request's body");
  AddSeconds(command, "--timeout-send", &http.send_ms,
             "seconds in which a client that is written to must take something");
  AddSeconds(command, "--timeout-keep-alive", &http.keep_alive_ms,
             "seconds an idle connection is kept");
  command
      .add_option("--shutdown-timeout", flags->drain_seconds,
                  "seconds running requests get to finish after a signal")
      ->check(CLI::Range(0, 86400))
      ->capture_default_str();
  Group(command, "Limits");
}

void AddEngineGroup(CLI::App& command, EngineOptions* engine) {
  command.add_option("-c,--ctx-size,--max-model-len", engine->max_context,
                     "tokens of context; 0: the model's");
  command.add_option("-p,--parallel,--max-num-seqs", engine->max_rows, "sequences decoded at once")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command
      .add_option("-b,--batch-size,--max-num-batched-tokens", engine->max_step_tokens,
                  "tokens of one step")
      ->capture_default_str();
  command.add_option("-t,--threads", engine->num_threads, "worker threads; 0: all cores");
  command.add_option("--max-num-queued-reqs", engine->max_queued, "requests that may wait")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command
      .add_option("--max-num-queued-tokens", engine->max_queued_tokens,
                  "tokens of prompts that may wait")
      ->capture_default_str();
  command
      .add_option_function<double>(
          "--queue-timeout",
          [engine](const double& seconds) {
            engine->max_wait_ms = static_cast<std::uint32_t>(seconds * 1000);
          },
          "seconds a request may wait for its first step; 0: for ever")
      ->check(NumberFrom(0, 86400))
      ->default_str("60");
  AddPaceFlags(command, &engine->pace);
  command.add_option("--kernels", engine->kernels,
                     "a table of kernels by name; the best otherwise");
  Group(command, "Engine");
  command.add_option("--block-size", engine->block_tokens, "tokens of one KV block")
      ->capture_default_str();
  command.add_option("--kv-tokens", engine->kv_tokens,
                     "tokens the KV pool holds; 0: from the rows, the context and the memory");
  AddKvFlags(command, engine);
  Group(command, "KV cache");
}

void AddLogGroup(CLI::App& command, ServeFlags* flags) {
  AddChoiceFlag(command, "--log-format", "lines on stderr: text, json",
                [flags](const std::string& text) {
                  if (text != "text" && text != "json") return false;
                  flags->log_format = text == "json" ? LogFormat::kJson : LogFormat::kText;
                  return true;
                });
  AddChoiceFlag(command, "--log-level", "least level that is written: debug, info, warning, error",
                [flags](const std::string& text) {
                  const std::optional<LogLevel> level = FindLogLevel(text);
                  if (level) flags->log_level = *level;
                  return level.has_value();
                });
  command.add_flag("--no-access-log,--disable-access-log", flags->no_access_log,
                   "no line for each request");
  AddChoiceFlag(command, "--metrics-compat", "vllm: GET /metrics has vLLM's names beside our own",
                [flags](const std::string& text) {
                  flags->server.vllm_metrics = text == "vllm";
                  return text == "vllm";
                });
  command.add_option("--record-trace", flags->record_trace,
                     "new file for the traffic as a Mooncake trace: lengths, times and salted "
                     "hashes of prefixes, no content");
  command.add_flag("-v,--verbose", flags->verbose, "as --log-level debug");
  Group(command, "Logs");
}

}  // namespace

void AddServeFlags(CLI::App& command, ServeFlags* flags) {
  AddModelGroup(command, flags);
  AddNetworkGroup(command, flags);
  AddSecurityGroup(command, flags);
  AddEngineGroup(command, &flags->engine);
  AddLimitsGroup(command, flags);
  AddLogGroup(command, flags);
}

void ApplyLogFlags(const ServeFlags& flags) {
  SetLogFormat(flags.log_format);
  SetLogLevel(flags.verbose ? LogLevel::kDebug : flags.log_level);
}

ServerOptions ServerOptionsOf(const ServeFlags& flags) {
  ServerOptions options = flags.server;
  if (!flags.api_key_file.empty()) {
    for (std::string& key : ReadKeyFile(flags.api_key_file))
      options.api_keys.push_back(std::move(key));
  }
  options.access_log = !flags.no_access_log;
  if (IsLoopback(options.host) || !options.api_keys.empty()) return options;
  if (!flags.public_without_key) {
    throw StartError("--host " + options.host +
                     " is reachable from other machines: give --api-key, --api-key-file or "
                     "KVRM_ARG_API_KEY, or bind 127.0.0.1");
  }
  Log(LogLevel::kWarning, "public_without_key",
      {{"host", options.host}, {"meaning", "anybody who reaches this port may use the model"}});
  return options;
}

}  // namespace kvrm
