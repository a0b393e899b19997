// SPDX-License-Identifier: Apache-2.0
// GrammarCache: grammars compiled lately, by what they were compiled from.
//
// Programs ask for the same schema again and again; one that takes 200 ms to compile is compiled
// once. The least recently asked for goes first when the bytes are more than the limit. What is
// refused is not kept.
//
// Threading: one thread (the server's worker); what Get gives may go anywhere. Memory: at most
// `max_bytes` of grammars and their texts, and what outputs still hold.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <string>
#include <unordered_map>

#include "base/result.h"
#include "grammar/grammar.h"

namespace kvrm {

constexpr std::size_t kGrammarCacheBytes = std::size_t{64} << 20;

class GrammarCache {
 public:
  explicit GrammarCache(std::size_t max_bytes = kGrammarCacheBytes) : max_bytes_(max_bytes) {}
  GrammarCache(const GrammarCache&) = delete;
  GrammarCache& operator=(const GrammarCache&) = delete;

  // Errors: as Grammar::Compile. Requires: spec.kind != kNone.
  Result<SharedGrammar> Get(const GrammarSpec& spec);

  std::size_t bytes() const { return bytes_; }
  std::size_t size() const { return entries_.size(); }
  std::uint64_t num_hits() const { return num_hits_; }

 private:
  struct Entry {
    std::string key;
    SharedGrammar grammar;
    std::size_t bytes = 0;
  };

  const std::size_t max_bytes_;
  std::size_t bytes_ = 0;
  std::uint64_t num_hits_ = 0;
  std::list<Entry> entries_;  // the most recently asked for in front
  std::unordered_map<std::string, std::list<Entry>::iterator> by_key_;
};

}  // namespace kvrm
