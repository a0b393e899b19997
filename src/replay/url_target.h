// SPDX-License-Identifier: Apache-2.0
// UrlTarget: replays against any OpenAI-compatible server over http.
//
// Prompts go as token ids to /v1/completions, or as text where a server takes no ids; output
// lengths are forced by ignore_eos and max_tokens. A server that has /v1/kv/ledger is asked for it
// while the replay runs. Threading: one thread.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "base/clock.h"
#include "replay/driver.h"
#include "replay/http_client.h"
#include "trace/prompt.h"

namespace kvrm {

struct UrlTargetOptions {
  std::string url;  // with or without /v1
  std::string api_key = {};
  std::string model = {};     // "": the first that the server names
  bool text_prompts = false;  // words in place of ids
  bool chat = false;          // /v1/chat/completions; text prompts
  std::uint32_t first_id = 0;
  std::uint32_t vocab_size = 0;  // 0: as the server says, else 8,192
  std::int64_t ledger_interval_ns = 250'000'000;
  pid_t pid = 0;  // of a server on this machine, for its resident memory; 0: none
  std::int64_t silence_limit_ns = std::int64_t{600} * 1'000'000'000;  // then a request has failed
};

class UrlTarget {
 public:
  // Asks the server for its models and for its ledger. Throws StartError.
  UrlTarget(const UrlTargetOptions& options, const Clock& clock);

  // Runs until done; the time 0 of the run is the moment of the call.
  void Run(ReplayRun& run);

  const std::string& model() const { return options_.model; }
  std::uint32_t vocab_size() const { return options_.vocab_size; }
  std::uint32_t max_context() const { return max_context_; }  // 0: not known
  std::uint64_t pool_tokens() const { return pool_tokens_; }  // 0: not known
  bool has_ledger() const { return has_ledger_; }

 private:
  class Session;

  std::string Headers() const;
  // The body of a GET; nullopt unless it is a 200.
  std::optional<std::string> Get(const std::string& path);
  void AskModels();
  void AskLedger();

  UrlTargetOptions options_;
  const Clock& clock_;
  HttpClient client_;
  std::uint32_t max_context_ = 0;
  std::uint64_t pool_tokens_ = 0;
  bool has_ledger_ = false;
};

// What /v1/kv/ledger says; false: something else.
bool ParseLedger(std::string_view body, MemoryRecord* memory, std::uint64_t* pool_tokens);
// Of a process on this machine; 0: not known.
std::uint64_t ResidentBytes(pid_t pid);

}  // namespace kvrm
