// SPDX-License-Identifier: Apache-2.0
#include "server/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "server/text_marks.h"

namespace kvrm {

StopMatcher::StopMatcher(std::vector<std::string> stops, bool include)
    : stops_(std::move(stops)), include_(include) {
  for (const std::string& stop : stops_)
    CHECK(!stop.empty());
}

std::string StopMatcher::Push(std::string_view text) {
  if (matched_) return {};
  held_ += text;
  std::size_t first_end = std::string::npos;
  std::size_t first_begin = 0;
  for (const std::string& stop : stops_) {
    const std::size_t begin = held_.find(stop);
    if (begin == std::string::npos) continue;
    const std::size_t end = begin + stop.size();
    if (end < first_end || (end == first_end && begin < first_begin)) {
      first_end = end;
      first_begin = begin;
    }
  }
  if (first_end != std::string::npos) {
    matched_ = true;
    match_ = held_.substr(first_begin, first_end - first_begin);
    held_.resize(include_ ? first_end : first_begin);
    return std::exchange(held_, {});
  }
  const std::size_t num_certain = held_.size() - HeldBytes();
  std::string certain = held_.substr(0, num_certain);
  held_.erase(0, num_certain);
  return certain;
}

std::string StopMatcher::Finish() {
  return std::exchange(held_, {});
}

std::size_t StopMatcher::HeldBytes() const {
  std::size_t longest = 0;
  for (const std::string& stop : stops_)
    longest = std::max(longest, kvrm::HeldBytes(held_, stop));
  return longest;
}

}  // namespace kvrm
