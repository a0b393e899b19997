// SPDX-License-Identifier: Apache-2.0
#include "replay/http_reply.h"

#include <algorithm>
#include <cctype>
#include <charconv>

namespace kvrm {
namespace {

Error Bad(const std::string& what) {
  return {ErrorCode::kInvalidArgument, "the response " + what};
}

std::string_view Trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t'))
    text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t'))
    text.remove_suffix(1);
  return text;
}

bool EqualsIgnoringCase(std::string_view a, std::string_view b) {
  return std::ranges::equal(a, b, [](char x, char y) {
    return std::tolower(static_cast<unsigned char>(x)) ==
           std::tolower(static_cast<unsigned char>(y));
  });
}

std::optional<std::uint64_t> Number(std::string_view text, int base) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (text.empty() || error != std::errc() || end != text.data() + text.size() ||
      value > (std::uint64_t{1} << 62)) {
    return std::nullopt;
  }
  return value;
}

}  // namespace

Status HttpReply::ParseField(std::string_view line, bool* chunked,
                             std::optional<std::uint64_t>* length) {
  const std::size_t colon = line.find(':');
  if (colon == std::string_view::npos || colon == 0) return Bad("has a header line without a name");
  const std::string_view name = line.substr(0, colon);
  const std::string_view value = Trim(line.substr(colon + 1));
  if (EqualsIgnoringCase(name, "transfer-encoding")) {
    if (!EqualsIgnoringCase(value, "chunked")) return Bad("has an unknown transfer coding");
    *chunked = true;
  }
  if (EqualsIgnoringCase(name, "content-length")) {
    const std::optional<std::uint64_t> number = Number(value, 10);
    if (!number || (*length && **length != *number)) return Bad("has a bad Content-Length");
    *length = number;
  }
  return Done{};
}

Status HttpReply::ParseHead(std::string_view head) {
  const std::size_t end = head.find('\n');
  std::string_view first = head.substr(0, end);
  if (first.ends_with('\r')) first.remove_suffix(1);
  const std::uint64_t code = first.size() >= 12 ? Number(first.substr(9, 3), 10).value_or(0) : 0;
  if (!first.starts_with("HTTP/1.") || first[8] != ' ' || code < 100 || code > 599 ||
      (first.size() > 12 && first[12] != ' ')) {
    return Bad("has no status line");
  }
  bool chunked = false;
  std::optional<std::uint64_t> length;
  head.remove_prefix(std::min(head.size(), end == head.npos ? head.size() : end + 1));
  while (!head.empty()) {
    const std::size_t next = head.find('\n');
    std::string_view line = head.substr(0, next);
    head.remove_prefix(next == head.npos ? head.size() : next + 1);
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) break;
    if (Status field = ParseField(line, &chunked, &length); !field) return field;
  }
  if (chunked && length) return Bad("has both a Content-Length and chunks");
  line_.clear();
  if (code < 200) return Done{};  // 100 Continue: the response is still to come
  status_ = static_cast<int>(code);
  state_ = State::kUntilEnd;
  if (code == 204 || code == 304) {
    state_ = State::kDone;
  } else if (chunked) {
    state_ = State::kChunkSize;
  } else if (length) {
    left_ = *length;
    state_ = left_ == 0 ? State::kDone : State::kLength;
  }
  return Done{};
}

// Up to the empty line.
Status HttpReply::FeedHead(std::string_view* bytes) {
  const std::size_t end = bytes->find('\n');
  const std::size_t take = end == bytes->npos ? bytes->size() : end + 1;
  line_ += bytes->substr(0, take);
  bytes->remove_prefix(take);
  if (line_.size() > kMaxReplyHeadBytes) return Bad("has a head of more than 64 KiB");
  if (line_.ends_with("\n\r\n") || line_.ends_with("\n\n")) return ParseHead(std::string(line_));
  return Done{};
}

Status HttpReply::TakeLine(std::string_view* bytes, bool* whole) {
  const std::size_t end = bytes->find('\n');
  *whole = end != bytes->npos;
  line_ += bytes->substr(0, end);
  bytes->remove_prefix(*whole ? end + 1 : bytes->size());
  if (line_.size() > kMaxReplyChunkLine) return Bad("has a chunk line that is too long");
  if (*whole && line_.ends_with('\r')) line_.pop_back();
  return Done{};
}

// A line of the framing is whole.
Status HttpReply::EndLine() {
  const std::string line = std::move(line_);
  line_.clear();
  if (state_ == State::kTrailer) {
    if (line.empty()) state_ = State::kDone;
    return Done{};
  }
  if (state_ == State::kChunkEnd) {
    if (!line.empty()) return Bad("has bytes behind a chunk");
    state_ = State::kChunkSize;
    return Done{};
  }
  const std::optional<std::uint64_t> size =
      Number(Trim(std::string_view(line).substr(0, line.find(';'))), 16);
  if (!size) return Bad("has a bad chunk size");
  left_ = *size;
  state_ = left_ == 0 ? State::kTrailer : State::kChunk;
  return Done{};
}

Status HttpReply::Feed(std::string_view bytes, const OnBody& on_body) {
  while (!bytes.empty() && state_ != State::kDone) {
    if (state_ == State::kHead) {
      if (Status fed = FeedHead(&bytes); !fed) return fed;
    } else if (state_ == State::kUntilEnd) {
      on_body(bytes);
      return Done{};
    } else if (state_ == State::kLength || state_ == State::kChunk) {
      const auto take = static_cast<std::size_t>(std::min<std::uint64_t>(left_, bytes.size()));
      on_body(bytes.substr(0, take));
      bytes.remove_prefix(take);
      left_ -= take;
      if (left_ == 0) state_ = state_ == State::kLength ? State::kDone : State::kChunkEnd;
    } else {
      bool whole = false;
      if (Status line = TakeLine(&bytes, &whole); !line) return line;
      if (!whole) return Done{};
      if (Status ended = EndLine(); !ended) return ended;
    }
  }
  return Done{};
}

bool HttpReply::Close() {
  if (state_ == State::kUntilEnd) state_ = State::kDone;
  return state_ == State::kDone;
}

void SseParser::EndLine(const OnData& on_data) {
  std::string_view line = line_;
  if (line.empty()) {
    if (has_data_) on_data(data_);
    data_.clear();
    has_data_ = false;
  } else if (line.starts_with("data:") || line == "data") {
    line.remove_prefix(std::min<std::size_t>(5, line.size()));
    if (line.starts_with(' ')) line.remove_prefix(1);
    if (has_data_) data_ += '\n';
    data_ += line;
    has_data_ = true;
  }
  line_.clear();
}

Status SseParser::Feed(std::string_view bytes, const OnData& on_data) {
  for (const char c : bytes) {
    if (c == '\n' && after_cr_) {
      after_cr_ = false;
      continue;
    }
    after_cr_ = c == '\r';
    if (c == '\n' || c == '\r') {
      EndLine(on_data);
      continue;
    }
    line_ += c;
    if (line_.size() + data_.size() > kMaxSseEventBytes) return Bad("has an event over 16 MiB");
  }
  return Done{};
}

}  // namespace kvrm
