// SPDX-License-Identifier: Apache-2.0
// TraceWriter: a server's own traffic as a Mooncake trace that can be passed on: when requests
// came, how long prompts and outputs were, and which prompts begin alike. No content.
//
// A hash id is 53 bits of SHA-256 over a salt, the id's predecessor and the block's tokens. The
// salt is drawn for the file and written nowhere, so that an id says nothing without it: not what
// the tokens were, nor whether they are those of another file. What remains visible is what a trace
// is for: lengths, times, and that two prompts share a beginning, at 512 tokens' precision.
//
// Lines are written as requests end; readers sort by arrival. Threading: one thread. Memory: a
// prompt's ids for every request that runs.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/sha256.h"

namespace kvrm {

inline constexpr std::uint32_t kTraceBlockTokens = 512;

class TraceWriter {
 public:
  // Creates the file, or throws StartError; one that is there is not written over. `salt`: random
  // bytes that nobody else knows.
  TraceWriter(const std::string& path, std::string salt);
  ~TraceWriter();
  TraceWriter(const TraceWriter&) = delete;
  TraceWriter& operator=(const TraceWriter&) = delete;

  void Begin(std::uint64_t id, std::int64_t now_ns, std::span<const std::int32_t> prompt);
  // Unknown ids have no effect.
  void AddToken(std::uint64_t id);
  // A request that has produced nothing is left out.
  void End(std::uint64_t id);

  // Lines that could not be written.
  std::uint64_t num_lost() const { return num_lost_; }

 private:
  struct Running {
    std::int64_t arrival_ns = 0;
    std::uint32_t prompt_tokens = 0;
    std::uint32_t output_tokens = 0;
    std::vector<std::uint64_t> hash_ids;
  };
  std::vector<std::uint64_t> HashIds(std::span<const std::int32_t> prompt);

  const std::string salt_;
  int fd_ = -1;
  std::int64_t first_ns_ = -1;
  std::uint64_t num_lost_ = 0;
  Sha256 sha_;
  std::unordered_map<std::uint64_t, Running> running_;
};

// 32 bytes of the system's randomness. Throws StartError.
std::string DrawSalt();

}  // namespace kvrm
