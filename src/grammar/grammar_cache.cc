// SPDX-License-Identifier: Apache-2.0
#include "grammar/grammar_cache.h"

#include <utility>

namespace kvrm {

Result<SharedGrammar> GrammarCache::Get(const GrammarSpec& spec) {
  std::string key = std::to_string(static_cast<int>(spec.kind)) + ":" + spec.text;
  if (const auto found = by_key_.find(key); found != by_key_.end()) {
    ++num_hits_;
    entries_.splice(entries_.begin(), entries_, found->second);
    return entries_.front().grammar;
  }
  Result<SharedGrammar> grammar = Grammar::Compile(spec);
  if (!grammar) return grammar;
  // The key is in the list and in the map.
  const std::size_t bytes = (*grammar)->bytes() + 2 * key.size() + sizeof(Entry) + 128;
  if (bytes > max_bytes_) return grammar;
  entries_.push_front({.key = key, .grammar = *grammar, .bytes = bytes});
  by_key_.emplace(std::move(key), entries_.begin());
  bytes_ += bytes;
  while (bytes_ > max_bytes_) {
    bytes_ -= entries_.back().bytes;
    by_key_.erase(entries_.back().key);
    entries_.pop_back();
  }
  return grammar;
}

}  // namespace kvrm
