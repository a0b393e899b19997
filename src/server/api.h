// SPDX-License-Identifier: Apache-2.0
// Server: the OpenAI-compatible API over an engine and a model (docs/http_api.md).
//
// Threading: Start makes two threads. The I/O thread owns connections and generations; the worker
// parses, renders and tokenises. They meet in two bounded queues, and the engine's thread wakes the
// I/O thread through an eventfd. Any thread may call the verbs below.
//
// The order of work on a request, each step able to refuse: limits, framing, route, key, room in
// the queue, body, JSON, ranges, template, tokens against the context, the engine's queue.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "server/api_parse.h"
#include "server/generations.h"
#include "server/http.h"
#include "server/ports.h"

namespace kvrm {

struct ServerOptions {
  HttpOptions http;
  ApiLimits limits;
  std::string host = "127.0.0.1";
  std::uint16_t port = 8080;          // 0: any free one
  std::vector<std::string> api_keys;  // empty: none asked for
  // A prefix that clients may put before every path, like "/llm"; "": none.
  std::string root_path;
  bool access_log = true;             // one line a request
  std::uint32_t max_preparing = 256;  // requests between their body and the engine's queue
  std::uint32_t default_max_tokens = 4096;
  bool vllm_metrics = false;  // GET /metrics has vLLM's names beside our own
  std::uint64_t seed = 0;     // of what clients leave open: sampling seeds, reply ids
};

struct ServerStats {
  HttpStats http;
  GenerationStats generations;
  std::uint64_t num_rejected = 0;  // no room
  std::uint64_t num_dropped = 0;   // prepared for a client that had gone
};

class Server {
 public:
  // `clock` outlives the server; so does what the ports refer to. Throws StartError for keys, a
  // prefix or files of TLS that cannot be.
  Server(EnginePort engine, ModelPort model, const ServerOptions& options, const Clock& clock);
  // Stops first.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Returns the port. Throws StartError.
  std::uint16_t Listen();
  // Requires: Listen has returned.
  void Start();

  // No new connections or requests, /health says so. Requests that have been read whole go on,
  // those that wait among them.
  void BeginDrain();
  // What still runs is cancelled in the engine and answered with an error.
  void AbortAll();
  // After BeginDrain: everything is answered and every connection closed.
  bool drained() const;
  // Cuts all connections and joins the threads.
  void Stop();

  // Requires: Stop has returned.
  ServerStats stats() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kvrm
