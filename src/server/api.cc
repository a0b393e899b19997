// SPDX-License-Identifier: Apache-2.0
#include "server/api.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <boost/json/serialize.hpp>
#include <optional>
#include <thread>
#include <unordered_map>
#include <utility>

#include "base/bounded_queue.h"
#include "base/check.h"
#include "base/log.h"
#include "base/result.h"
#include "server/http_metrics.h"
#include "server/keys.h"
#include "server/prepare.h"
#include "server/routes.h"
#include "server/version.h"

namespace kvrm {
namespace {

// What is handled in one go before other connections get their turn: so many events, a write each,
// and nothing more once so much time has passed.
constexpr std::size_t kEventBatch = 128;
constexpr std::size_t kEventPoll = 16;
constexpr std::int64_t kTurnNs = 2'000'000;

HttpResponse JsonResponse(std::string body, const std::string& request_id) {
  HttpResponse response;
  response.body = std::move(body);
  if (!request_id.empty()) response.headers.emplace_back("X-Request-Id", request_id);
  return response;
}

std::string CheckedPrefix(std::string prefix) {
  if (prefix.empty() || prefix == "/") return {};
  const bool clean = std::all_of(prefix.begin(), prefix.end(), [](char c) {
    return c > ' ' && c < 0x7f && c != '?' && c != '#' && c != '"';
  });
  if (prefix.front() != '/' || prefix.back() == '/' || !clean || prefix.size() > 256) {
    throw StartError("a root path begins with a slash and does not end with one: " + prefix);
  }
  return prefix;
}

ApiError Refusal(int status, std::string message) {
  return {.status = status, .message = std::move(message)};
}

HttpResponse ShuttingDown(const std::string& request_id) {
  return ErrorResponse(Refusal(503, "the server is shutting down"), request_id);
}

JobKind JobKindOf(RouteId route) {
  switch (route) {
    case RouteId::kChat:
      return JobKind::kChat;
    case RouteId::kCompletion:
      return JobKind::kCompletion;
    case RouteId::kEmbeddings:
      return JobKind::kEmbeddings;
    case RouteId::kApplyTemplate:
      return JobKind::kApplyTemplate;
    case RouteId::kCountTokens:
      return JobKind::kCountTokens;
    case RouteId::kTokenize:
      return JobKind::kTokenize;
    default:
      return JobKind::kDetokenize;
  }
}

// Whether the job ends in the engine's queue.
bool Generates(JobKind kind) {
  return kind == JobKind::kChat || kind == JobKind::kCompletion || kind == JobKind::kEmbeddings;
}

// A job on its way to the worker and back, so that the way back needs no memory.
struct Ticket {
  Job job;
  Prepared prepared;
};

}  // namespace

struct Server::State {
  State(EnginePort engine_in, ModelPort model_in, const ServerOptions& options_in,
        const Clock& clock_in);

  std::optional<HttpResponse> OnHead(const HttpRequest& request);
  std::optional<HttpResponse> RefuseIfFull(JobKind kind, const std::string& request_id);
  HttpResponse OptionsResponse(const HttpRequest& request, const std::string& allow) const;
  std::string_view PathOf(std::string_view path) const;
  void OnRequest(ExchangeId exchange, HttpRequest request);
  void OnGone(ExchangeId exchange);
  void OnDone(const AccessRecord& record);
  void OnWake();
  void OnTick();
  void Answer(ExchangeId exchange, const Route& route, const HttpRequest& request);
  void Enqueue(ExchangeId exchange, JobKind kind, HttpRequest request);
  std::optional<std::uint32_t> KeyOf(const HttpRequest& request) const {
    if (keys.empty()) return std::nullopt;
    return keys.Find(PresentedKey(request.Field("authorization"), request.Field("x-api-key")));
  }
  void TakePrepared(Prepared prepared);
  template <typename Body>
  void OrFail(ExchangeId exchange, Body body);
  bool TakeResults(std::int64_t end_ns);
  bool TakeEvents(std::int64_t end_ns);
  void TakeBelongings();
  HttpCallbacks Callbacks();
  ReplyPort Replies();
  void RunWorker();
  void PrepareGuarded(Ticket& ticket);

  const EnginePort engine;
  const ModelPort model;
  const ServerOptions options;
  const PrepareLimits prepare_limits;
  const Clock& clock;

  // I/O thread.
  const KeySet keys;
  const std::string root_path;
  HttpServer http;
  HttpMetrics metrics;
  Generations generations;
  Rng seeds;
  struct Preparing {
    bool wanted = true;  // false: the client has gone
    bool generates = false;
  };
  std::unordered_map<std::uint64_t, Preparing> preparing;     // by exchange
  std::uint32_t num_generating = 0;                           // of them, and wanted
  std::unordered_map<std::uint64_t, ReplyUsage> used_tokens;  // by exchange, until it is done
  std::uint64_t num_rejected = 0;
  std::uint64_t num_dropped = 0;

  GrammarCache grammars;  // worker thread

  // Between the threads. Both queues hold everything that can be preparing, so the worker's push
  // always finds room.
  BoundedQueue<std::unique_ptr<Ticket>> jobs;
  BoundedQueue<std::unique_ptr<Ticket>> results;
  std::atomic<std::uint32_t> num_jobs_pushed{0};
  std::atomic<bool> stopping{false};
  std::atomic<bool> draining{false};
  std::atomic<bool> abort_wanted{false};
  std::atomic<bool> is_drained{false};

  std::thread io_thread;
  std::thread worker_thread;
};

Server::State::State(EnginePort engine_in, ModelPort model_in, const ServerOptions& options_in,
                     const Clock& clock_in)
    : engine(std::move(engine_in)),
      model(std::move(model_in)),
      options(options_in),
      prepare_limits{.api = options_in.limits,
                     .max_context = engine.max_context,
                     .max_requests = engine.max_requests,
                     .default_max_tokens = options_in.default_max_tokens},
      clock(clock_in),
      keys(options_in.api_keys),
      root_path(CheckedPrefix(options_in.root_path)),
      http(options_in.http, clock_in, Callbacks()),
      generations(engine, model, Replies(), clock_in, options_in.seed),
      seeds(options_in.seed, "sampling-seeds"),
      jobs(options_in.max_preparing),
      results(options_in.max_preparing) {}

HttpCallbacks Server::State::Callbacks() {
  HttpCallbacks callbacks;
  callbacks.on_head = [this](const HttpRequest& request) { return OnHead(request); };
  callbacks.on_request = [this](ExchangeId exchange, HttpRequest request) {
    OnRequest(exchange, std::move(request));
  };
  callbacks.on_gone = [this](ExchangeId exchange) { OnGone(exchange); };
  callbacks.on_wake = [this] { OnWake(); };
  callbacks.on_tick = [this] { OnTick(); };
  callbacks.on_done = [this](const AccessRecord& record) { OnDone(record); };
  callbacks.error_body = [](int status, std::string_view message) {
    return ErrorBody(Refusal(status, std::string(message)));
  };
  return callbacks;
}

ReplyPort Server::State::Replies() {
  ReplyPort reply;
  reply.respond = [this](ExchangeId exchange, HttpResponse response) {
    return http.Respond(exchange, std::move(response));
  };
  reply.start_stream = [this](ExchangeId exchange, const auto& headers) {
    return http.StartStream(exchange, headers);
  };
  reply.write = [this](ExchangeId exchange, std::string_view bytes) {
    return http.Write(exchange, bytes);
  };
  reply.account = [this](ExchangeId exchange, const ReplyUsage& usage) {
    used_tokens[static_cast<std::uint64_t>(exchange)] = usage;
  };
  reply.finish = [this](ExchangeId exchange) { return http.Finish(exchange); };
  return reply;
}

std::string_view Server::State::PathOf(std::string_view path) const {
  if (!root_path.empty() && path.starts_with(root_path) && path.size() > root_path.size() &&
      path[root_path.size()] == '/') {
    path.remove_prefix(root_path.size());
  }
  return path;
}

// What is allowed; to a browser that asks before it sends a request of another origin, also which
// headers. Whether that origin may is the server's answer to every request.
HttpResponse Server::State::OptionsResponse(const HttpRequest& request,
                                            const std::string& allow) const {
  HttpResponse response;
  response.status = 204;
  response.headers.emplace_back("Allow", allow);
  if (!request.Field("access-control-request-method").empty()) {
    response.headers.emplace_back("Access-Control-Allow-Methods", allow);
    response.headers.emplace_back("Access-Control-Allow-Headers",
                                  "Authorization, Content-Type, X-Api-Key, X-Request-Id");
    response.headers.emplace_back("Access-Control-Max-Age", "600");
  }
  return response;
}

// Everything that can be refused without reading a body.
std::optional<HttpResponse> Server::State::OnHead(const HttpRequest& request) {
  const std::string& request_id = request.request_id;
  const Route* route = FindRoute(PathOf(request.path));
  if (route == nullptr && request.path != "*") {
    return ErrorResponse(Refusal(404, "no such path"), request_id);
  }
  const std::string allow =
      route == nullptr || route->is_post ? "OPTIONS, POST" : "GET, HEAD, OPTIONS";
  if (request.method == "OPTIONS") {
    return OptionsResponse(request, route == nullptr ? "GET, HEAD, OPTIONS, POST" : allow);
  }
  const bool allowed = route->is_post ? request.method == "POST"
                                      : request.method == "GET" || request.method == "HEAD";
  if (!allowed) {
    HttpResponse response =
        ErrorResponse(Refusal(405, "this path takes " + allow + " only"), request_id);
    response.headers.emplace_back("Allow", allow);
    return response;
  }
  if (!route->is_public && !keys.empty() && !KeyOf(request)) {
    return ErrorResponse(Refusal(401, "Invalid API Key"), request_id);
  }
  if (!route->is_post) return std::nullopt;
  if (draining) return ShuttingDown(request_id);
  return RefuseIfFull(JobKindOf(route->id), request_id);
}

// What is prepared has come before and counts as accepted: of a crowd only as many are read, parsed
// and tokenised as the engine's queue has places.
std::optional<HttpResponse> Server::State::RefuseIfFull(JobKind kind,
                                                        const std::string& request_id) {
  if (preparing.size() >= options.max_preparing) {
    ++num_rejected;
    return ErrorResponse(Refusal(429, "the server is busy, try again later"), request_id);
  }
  if (!Generates(kind) || !engine.refuse_if_full) return std::nullopt;
  std::optional<Error> full = engine.refuse_if_full(num_generating);
  if (!full) return std::nullopt;
  ++num_rejected;
  ApiError error = Refusal(429, std::move(full->message));
  if (engine.retry_after_s) error.retry_after_s = engine.retry_after_s();
  return ErrorResponse(error, request_id);
}

void Server::State::OnRequest(ExchangeId exchange, HttpRequest request) {
  const Route* route = FindRoute(PathOf(request.path));
  CHECK(route != nullptr);  // OnHead let it pass
  if (!route->is_post) return Answer(exchange, *route, request);
  if (draining) {  // Its head came before, its body did not.
    http.Respond(exchange, ShuttingDown(request.request_id));
    return;
  }
  Enqueue(exchange, JobKindOf(route->id), std::move(request));
}

void Server::State::Answer(ExchangeId exchange, const Route& route, const HttpRequest& request) {
  const std::string& request_id = request.request_id;
  std::string body;
  switch (route.id) {
    case RouteId::kHealth:
      if (draining) {
        http.Respond(exchange, ShuttingDown(request_id));
        return;
      }
      body = R"({"status":"ok"})";
      break;
    case RouteId::kVersion:
      body = json::serialize(json::object{{"version", kVersion}});
      break;
    case RouteId::kProps:
      body = PropsBody(model, engine);
      break;
    case RouteId::kSlots:
      body = SlotsBody(engine, engine.ledger().engine.num_running);
      break;
    case RouteId::kLedger:
      body = LedgerBody(engine.ledger());
      break;
    case RouteId::kMetrics: {
      HttpResponse response = JsonResponse(
          MetricsText(engine.ledger(),
                      {.vllm = options.vllm_metrics, .model_name = model.served_name}) +
              metrics.Text(http.stats(), http.num_connections()),
          request_id);
      response.content_type = kMetricsContentType;
      http.Respond(exchange, std::move(response));
      return;
    }
    case RouteId::kModel:
      if (ModelNameOf(PathOf(request.path)) != model.served_name) {
        http.Respond(exchange, ErrorResponse(Refusal(404, "no such model"), request_id));
        return;
      }
      body = ModelBody(model, engine.max_context);
      break;
    default:
      body = ModelListBody(model, engine.max_context);
      break;
  }
  http.Respond(exchange, JsonResponse(std::move(body), request_id));
}

void Server::State::Enqueue(ExchangeId exchange, JobKind kind, HttpRequest request) {
  // Others may have come while its body did.
  if (std::optional<HttpResponse> refusal = RefuseIfFull(kind, request.request_id)) {
    http.Respond(exchange, *std::move(refusal));
    return;
  }
  auto ticket = std::make_unique<Ticket>();
  Job& job = ticket->job;
  job.exchange = exchange;
  job.kind = kind;
  job.request_id = request.request_id;
  job.body = std::move(request.body);
  job.seed = seeds.Next();
  job.now_unix = clock.UnixSeconds();
  job.key_idx = KeyOf(request);
  ticket->prepared.exchange = exchange;
  ticket->prepared.request_id = request.request_id;
  preparing.emplace(static_cast<std::uint64_t>(exchange), Preparing{.generates = Generates(kind)});
  num_generating += Generates(kind) ? 1u : 0u;
  CHECK(jobs.TryPush(std::move(ticket)));  // It has room for everything that is preparing.
  num_jobs_pushed.fetch_add(1, std::memory_order_release);
  num_jobs_pushed.notify_one();
}

void Server::State::OnGone(ExchangeId exchange) {
  const auto found = preparing.find(static_cast<std::uint64_t>(exchange));
  if (found != preparing.end() && std::exchange(found->second.wanted, false))
    num_generating -= found->second.generates ? 1u : 0u;
  generations.OnGone(exchange);
}

// One line a request: never a prompt, an output, a query or a key.
void Server::State::OnDone(const AccessRecord& record) {
  const Route* route = FindRoute(PathOf(record.path));
  metrics.Count(route == nullptr ? "" : route->path, record);
  const auto tokens = used_tokens.find(static_cast<std::uint64_t>(record.exchange));
  const bool generated = tokens != used_tokens.end();
  const ReplyUsage usage = generated ? tokens->second : ReplyUsage{};
  if (generated) used_tokens.erase(tokens);
  if (!options.access_log) return;
  const std::string_view path = route == nullptr ? std::string_view(record.path) : route->path;
  const std::int64_t ms = record.duration_ns / 1000000;
  if (generated) {
    Log(LogLevel::kInfo, "request",
        {{"id", record.request_id},
         {"method", record.method},
         {"path", path},
         {"status", record.status},
         {"complete", record.complete ? "yes" : "no"},
         {"ms", ms},
         {"bytes_in", record.num_bytes_in},
         {"bytes_out", record.num_bytes_out},
         {"prompt_tokens", usage.num_prompt_tokens},
         {"cached_tokens", usage.num_cached_tokens},
         {"output_tokens", usage.num_output_tokens}});
  } else {
    Log(LogLevel::kInfo, "request",
        {{"id", record.request_id},
         {"method", record.method},
         {"path", path},
         {"status", record.status},
         {"complete", record.complete ? "yes" : "no"},
         {"ms", ms},
         {"bytes_in", record.num_bytes_in},
         {"bytes_out", record.num_bytes_out}});
  }
}

void Server::State::OnWake() {
  const std::int64_t end_ns = clock.NowNs() + kTurnNs;
  const bool more_results = TakeResults(end_ns);
  if (TakeEvents(end_ns) || more_results) http.Wake();
  if (abort_wanted) generations.AbortAll();
}

// Returns whether more may wait.
bool Server::State::TakeResults(std::int64_t end_ns) {
  while (std::optional<std::unique_ptr<Ticket>> ticket = results.TryPop()) {
    const ExchangeId exchange = (*ticket)->prepared.exchange;
    OrFail(exchange, [&] { TakePrepared(std::move((*ticket)->prepared)); });
    if (clock.NowNs() >= end_ns) return true;
  }
  return false;
}

// What a body throws (memory, above all) costs its own exchange, and nobody else an event (R7).
template <typename Body>
void Server::State::OrFail(ExchangeId exchange, Body body) {
  try {
    body();
  } catch (const std::exception& error) {
    Log(LogLevel::kError, "answer_exception", {{"what", error.what()}});
    http.Cut(exchange);
  }
}

void Server::State::TakePrepared(Prepared prepared) {
  const auto found = preparing.find(static_cast<std::uint64_t>(prepared.exchange));
  CHECK(found != preparing.end());
  const bool wanted = found->second.wanted;
  if (wanted) num_generating -= found->second.generates ? 1u : 0u;
  preparing.erase(found);
  if (!wanted) {
    ++num_dropped;
    return;
  }
  if (auto* plan = std::get_if<GenerationPlan>(&prepared.outcome)) {
    generations.Start(prepared.exchange, prepared.request_id, std::move(*plan));
  } else if (auto* body = std::get_if<std::string>(&prepared.outcome)) {
    http.Respond(prepared.exchange, JsonResponse(std::move(*body), prepared.request_id));
  } else {
    http.Respond(prepared.exchange,
                 ErrorResponse(std::get<ApiError>(prepared.outcome), prepared.request_id));
  }
}

// What belongs to the events that were just polled, before these.
void Server::State::TakeBelongings() {
  TopLogprobs logprobs;
  while (engine.poll_logprobs(&logprobs))
    generations.OnLogprobs(logprobs);
  Embedding embedding;
  while (engine.poll_embedding(&embedding))
    generations.OnEmbedding(std::move(embedding));
}

// Returns whether more may wait. Some are taken even when the time is over.
bool Server::State::TakeEvents(std::int64_t end_ns) {
  std::array<TokenEvent, kEventPoll> events;
  for (std::size_t taken = 0; taken < kEventBatch; taken += events.size()) {
    const std::size_t num_events = engine.poll(events);
    TakeBelongings();
    for (std::size_t i = 0; i < num_events; ++i)
      generations.OnEvent(events[i]);
    if (num_events < events.size()) return false;
    if (clock.NowNs() >= end_ns) return true;
  }
  return true;
}

void Server::State::OnTick() {
  // A wake that went missing costs its clients one tick, not their answer.
  OnWake();
  if (draining && preparing.empty() && generations.num_active() == 0 &&
      http.num_connections() == 0) {
    is_drained = true;
  }
}

// Whatever a body makes the parsers throw (memory, above all) is one request's error (F7).
void Server::State::PrepareGuarded(Ticket& ticket) {
  try {
    ticket.prepared = Prepare(ticket.job, model, prepare_limits, &grammars);
    return;
  } catch (const std::exception& error) {
    Log(LogLevel::kError, "prepare_exception", {{"what", error.what()}});
  }
  ticket.prepared.exchange = ticket.job.exchange;
  ticket.prepared.outcome = ApiError{.status = 500, .message = "out of memory"};
}

void Server::State::RunWorker() {
  for (;;) {
    const std::uint32_t seen = num_jobs_pushed.load(std::memory_order_acquire);
    while (std::optional<std::unique_ptr<Ticket>> ticket = jobs.TryPop()) {
      PrepareGuarded(**ticket);
      CHECK(results.TryPush(std::move(*ticket)));
      http.Wake();
    }
    if (stopping) return;
    num_jobs_pushed.wait(seen, std::memory_order_acquire);
  }
}

Server::Server(EnginePort engine, ModelPort model, const ServerOptions& options, const Clock& clock)
    : state_(std::make_unique<State>(std::move(engine), std::move(model), options, clock)) {
  State* state = state_.get();
  state->engine.set_wake([state] { state->http.Wake(); });
}

Server::~Server() {
  Stop();
}

std::uint16_t Server::Listen() {
  return state_->http.Listen(state_->options.host, state_->options.port);
}

void Server::Start() {
  state_->worker_thread = std::thread([this] { state_->RunWorker(); });
  state_->io_thread = std::thread([this] { state_->http.Run(); });
}

void Server::BeginDrain() {
  state_->draining = true;
  state_->http.BeginDrain();
  state_->http.Wake();
}

void Server::AbortAll() {
  state_->abort_wanted = true;
  state_->http.Wake();
}

bool Server::drained() const {
  return state_->is_drained;
}

void Server::Stop() {
  state_->stopping = true;
  state_->num_jobs_pushed.fetch_add(1);
  state_->num_jobs_pushed.notify_all();
  state_->http.Stop();
  if (state_->io_thread.joinable()) state_->io_thread.join();
  if (state_->worker_thread.joinable()) state_->worker_thread.join();
}

ServerStats Server::stats() const {
  return {.http = state_->http.stats(),
          .generations = state_->generations.stats(),
          .num_rejected = state_->num_rejected,
          .num_dropped = state_->num_dropped};
}

}  // namespace kvrm
