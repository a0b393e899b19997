// SPDX-License-Identifier: Apache-2.0
#include "replay/url_target.h"

#include <unistd.h>

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "base/file.h"
#include "base/json.h"
#include "replay/completion_chunk.h"

namespace kvrm {
namespace {

constexpr std::size_t kMaxErrorBytes = 2048;
constexpr std::size_t kMaxGetBytes = 16u << 20;
constexpr std::uint32_t kGuessedVocab = 8192;
constexpr std::uint64_t kGuessedBlockTokens = 16;
constexpr std::int64_t kGetLimitNs = std::int64_t{10} * 1'000'000'000;
constexpr std::int64_t kPollNs = 100'000'000;

const json::value* Find(const json::value& value, std::string_view pointer) {
  boost::system::error_code code;
  return value.find_pointer(pointer, code);
}

std::uint64_t NumberAt(const json::value& value, std::string_view pointer) {
  const json::value* found = Find(value, pointer);
  if (found == nullptr || !found->is_int64() || found->get_int64() < 0) return 0;
  return static_cast<std::uint64_t>(found->get_int64());
}

std::uint32_t SmallAt(const json::value& value, std::string_view pointer) {
  return static_cast<std::uint32_t>(
      std::min<std::uint64_t>(NumberAt(value, pointer), ~std::uint32_t{0}));
}

// One line, printable.
std::string OneLine(std::string text) {
  for (char& c : text)
    if (c < ' ' || c > '~') c = ' ';
  return text;
}

}  // namespace

bool ParseLedger(std::string_view body, MemoryRecord* memory, std::uint64_t* pool_tokens) {
  const Result<json::value> value = ParseJson(body);
  if (!value || Find(*value, "/tiers/0/reserved_bytes") == nullptr) return false;
  // What has memory, where a server tells that from mere addresses.
  const bool has_committed = Find(*value, "/tiers/0/committed_bytes") != nullptr;
  memory->reserved_bytes =
      NumberAt(*value, has_committed ? "/tiers/0/committed_bytes" : "/tiers/0/reserved_bytes");
  memory->mapped_bytes = NumberAt(*value, "/tiers/0/mapped_bytes");
  memory->live_bytes = NumberAt(*value, "/tiers/0/live_bytes");
  const std::uint64_t block_tokens = NumberAt(*value, "/tiers/0/block_tokens");
  *pool_tokens =
      SmallAt(*value, "/tiers/0/blocks/total") *
      (block_tokens == 0 ? kGuessedBlockTokens : std::min<std::uint64_t>(block_tokens, 4096));
  return true;
}

std::uint64_t ResidentBytes(pid_t pid) {
  if (pid <= 0) return 0;
  std::FILE* const file = std::fopen(("/proc/" + std::to_string(pid) + "/statm").c_str(), "r");
  if (file == nullptr) return 0;
  unsigned long long size = 0, resident = 0;
  const int count = std::fscanf(file, "%llu %llu", &size, &resident);
  std::fclose(file);
  return count == 2 ? resident * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE)) : 0;
}

// One replay: what is on its way, and what has been asked of the ledger.
class UrlTarget::Session {
 public:
  Session(UrlTarget& target, ReplayRun& run)
      : target_(target), run_(run), begin_ns_(target.clock_.NowNs()) {}

  void Run() {
    while (!run_.done()) {
      while (const std::optional<std::size_t> request = run_.TakeDue(Now()))
        Send(*request);
      AskLedger();
      if (run_.ShouldCancel(Now())) CancelAll();
      CutSilent();
      run_.ShowProgress(Now());
      const std::int64_t due_ns = run_.NextDue();
      const std::int64_t wait_ns =
          std::clamp<std::int64_t>(due_ns == kNever ? kPollNs : due_ns - Now(), 0, kPollNs);
      if (!run_.done()) target_.client_.Poll(wait_ns);
    }
    if (ledger_) target_.client_.Cancel(*ledger_);
  }

 private:
  struct Pending {
    HttpClient::ExchangeId exchange = 0;
    SseParser sse;
    ReplayRun::End end;
    std::string error_body;
    bool saw_done = false;
    std::uint32_t num_chunks = 0;
    std::int64_t last_ns = 0;
  };

  std::int64_t Now() const { return target_.clock_.NowNs() - begin_ns_; }

  std::string Body(std::size_t request) const {
    const UrlTargetOptions& options = target_.options_;
    const TraceRequest& asked = run_.workload().requests[request];
    json::object body = {
        {"model", options.model}, {"max_tokens", asked.output_tokens},
        {"temperature", 0.0},     {"ignore_eos", true},
        {"stream", true},         {"stream_options", json::object{{"include_usage", true}}}};
    if (asked.num_samples > 1) body["n"] = asked.num_samples;
    if (options.chat) {
      body["messages"] = json::array{
          json::object{{"role", "user"}, {"content", PromptText(run_.workload(), request)}}};
    } else if (options.text_prompts) {
      body["prompt"] = PromptText(run_.workload(), request);
    } else {
      const PromptVocab vocab = {.first_id = options.first_id, .vocab_size = options.vocab_size};
      json::array ids;
      for (const std::int32_t id : PromptTokens(run_.workload(), request, vocab))
        ids.emplace_back(id);
      body["prompt"] = std::move(ids);
    }
    return json::serialize(body);
  }

  void Send(std::size_t request) {
    const std::string body = Body(request);
    Pending& pending = pending_[request];
    pending.last_ns = Now();
    run_.OnSent(request, pending.last_ns);
    pending.exchange = target_.client_.Start(
        "POST", target_.options_.chat ? "/v1/chat/completions" : "/v1/completions",
        target_.Headers(), body,
        {.on_body = [this, request](std::string_view bytes) { OnBody(request, bytes); },
         .on_end = [this, request](const std::string& error) { OnEnd(request, error); }});
  }

  void OnBody(std::size_t request, std::string_view bytes) {
    Pending& pending = pending_.at(request);
    pending.last_ns = Now();
    if (target_.client_.status(pending.exchange) != 200) {
      pending.error_body += bytes.substr(0, kMaxErrorBytes - pending.error_body.size());
      return;
    }
    const Status fed = pending.sse.Feed(bytes, [this, request, &pending](std::string_view data) {
      OnEvent(request, pending, data);
    });
    if (!fed && pending.end.error.empty()) pending.end.error = fed.error().message;
  }

  void OnEvent(std::size_t request, Pending& pending, std::string_view data) {
    const CompletionChunk chunk = ParseCompletionChunk(data);
    pending.saw_done |= chunk.done;
    if (!chunk.error.empty() && pending.end.error.empty()) pending.end.error = chunk.error;
    if (chunk.has_output) {
      ++pending.num_chunks;
      run_.OnOutput(request, pending.last_ns);
    }
    if (!chunk.finish.empty()) pending.end.finish = chunk.finish;
    if (!chunk.has_usage) return;
    pending.end.prompt_tokens = chunk.prompt_tokens;
    pending.end.output_tokens = chunk.output_tokens;
    pending.end.cached_tokens = chunk.cached_tokens;
  }

  void OnEnd(std::size_t request, const std::string& error) {
    Pending& pending = pending_.at(request);
    ReplayRun::End& end = pending.end;
    const int status = target_.client_.status(pending.exchange);
    if (end.error.empty()) end.error = error;
    if (end.error.empty() && status != 200)
      end.error = "status " + std::to_string(status) + ": " + OneLine(pending.error_body);
    if (end.error.empty() && !pending.saw_done) end.error = "the stream had no [DONE]";
    Finish(request, end.error.empty() ? "" : "error");
  }

  // `finish`: in place of what the server said, unless empty.
  void Finish(std::size_t request, const char* finish) {
    Pending& pending = pending_.at(request);
    if (*finish != '\0') pending.end.finish = finish;
    // Without usage a chunk counts as a token; of several samples the first alone is looked at.
    if (pending.end.output_tokens == 0 || run_.workload().requests[request].num_samples > 1)
      pending.end.output_tokens = pending.num_chunks;
    const ReplayRun::End end = std::move(pending.end);
    pending_.erase(request);
    run_.OnEnd(request, Now(), end);
  }

  void CancelAll() {
    for (const std::size_t request : run_.running()) {
      target_.client_.Cancel(pending_.at(request).exchange);
      Finish(request, "cancelled");
    }
  }

  // Ten times a second at most: it looks at all that is on its way, which may be thousands, and
  // something comes for each of them.
  void CutSilent() {
    if (Now() < next_silent_ns_) return;
    next_silent_ns_ = Now() + kPollNs;
    for (const std::size_t request : run_.running()) {
      Pending& pending = pending_.at(request);
      if (Now() - pending.last_ns < target_.options_.silence_limit_ns) continue;
      target_.client_.Cancel(pending.exchange);
      pending.end.error = "nothing came for too long";
      Finish(request, "error");
    }
  }

  void AskLedger() {
    if (!target_.has_ledger_ && target_.options_.pid == 0) return;
    if (ledger_ || Now() < next_ledger_ns_) return;
    next_ledger_ns_ = Now() + target_.options_.ledger_interval_ns;
    if (!target_.has_ledger_) return NoteMemory();
    ledger_body_.clear();
    ledger_ = target_.client_.Start("GET", "/v1/kv/ledger", target_.Headers(), "",
                                    {.on_body =
                                         [this](std::string_view bytes) {
                                           if (ledger_body_.size() < kMaxGetBytes)
                                             ledger_body_ += bytes;
                                         },
                                     .on_end =
                                         [this](const std::string& error) {
                                           ledger_.reset();
                                           if (error.empty()) NoteMemory();
                                         }});
  }

  void NoteMemory() {
    MemoryRecord memory;
    std::uint64_t pool_tokens = 0;
    if (target_.has_ledger_ && !ParseLedger(ledger_body_, &memory, &pool_tokens)) return;
    memory.at_ns = Now();
    memory.resident_bytes = ResidentBytes(target_.options_.pid);
    run_.OnMemory(memory);
  }

  UrlTarget& target_;
  ReplayRun& run_;
  const std::int64_t begin_ns_;
  std::map<std::size_t, Pending> pending_;
  std::optional<HttpClient::ExchangeId> ledger_;
  std::string ledger_body_;
  std::int64_t next_ledger_ns_ = 0;
  std::int64_t next_silent_ns_ = 0;
};

namespace {

HttpUrl BaseUrl(const std::string& text) {
  HttpUrl url = ParseUrl(text);
  if (url.path.ends_with("/v1")) url.path.resize(url.path.size() - 3);
  return url;
}

}  // namespace

UrlTarget::UrlTarget(const UrlTargetOptions& options, const Clock& clock)
    : options_(options), clock_(clock), client_(BaseUrl(options.url)) {
  AskModels();
  AskLedger();
  if (options_.vocab_size == 0) options_.vocab_size = kGuessedVocab;
  if (options_.first_id >= options_.vocab_size)
    throw StartError("--first-id " + std::to_string(options_.first_id) + " is not below --vocab " +
                     std::to_string(options_.vocab_size));
}

std::string UrlTarget::Headers() const {
  return options_.api_key.empty() ? "" : "Authorization: Bearer " + options_.api_key + "\r\n";
}

std::optional<std::string> UrlTarget::Get(const std::string& path) {
  std::string body;
  std::optional<std::string> failure;
  int status = 0;
  HttpClient::ExchangeId id = 0;
  id = client_.Start("GET", path, Headers(), "",
                     {.on_body =
                          [&body](std::string_view bytes) {
                            if (body.size() < kMaxGetBytes) body += bytes;
                          },
                      .on_end =
                          [&](const std::string& error) {
                            failure = error;
                            status = client_.status(id);
                          }});
  const std::int64_t begin_ns = clock_.NowNs();
  while (!failure && clock_.NowNs() - begin_ns < kGetLimitNs)
    client_.Poll(kPollNs);
  if (!failure) {
    client_.Cancel(id);
    failure = "no answer within 10 s";
  }
  if (!failure->empty()) throw StartError(options_.url + path + ": " + *failure);
  if (status == 401) throw StartError(options_.url + " asks for a key: give --api-key");
  if (status != 200) return std::nullopt;
  return body;
}

void UrlTarget::AskModels() {
  const std::optional<std::string> body = Get("/v1/models");
  if (!body) {
    if (options_.model.empty())
      throw StartError(options_.url + " has no /v1/models: name one with --served-model");
    return;
  }
  const Result<json::value> value = ParseJson(*body, {.max_bytes = kMaxGetBytes});
  if (!value) throw StartError(options_.url + "/v1/models: " + value.error().message);
  const json::value* id = Find(*value, "/data/0/id");
  if (options_.model.empty() && id != nullptr && id->is_string())
    options_.model = std::string(id->get_string());
  if (options_.vocab_size == 0) options_.vocab_size = SmallAt(*value, "/data/0/meta/n_vocab");
  max_context_ = SmallAt(*value, "/data/0/max_model_len");
  if (max_context_ == 0) max_context_ = SmallAt(*value, "/data/0/meta/n_ctx");
}

void UrlTarget::AskLedger() {
  const std::optional<std::string> body = Get("/v1/kv/ledger");
  MemoryRecord memory;
  has_ledger_ = body && ParseLedger(*body, &memory, &pool_tokens_);
}

void UrlTarget::Run(ReplayRun& run) {
  Session(*this, run).Run();
}

}  // namespace kvrm
