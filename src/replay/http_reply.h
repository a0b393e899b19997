// SPDX-License-Identifier: Apache-2.0
// HttpReply: one HTTP/1.x response from bytes as they come, and SSE events from its body.
//
// Strict where a mistake would be taken for data: lengths, chunk sizes and framing. The connection
// is used for one exchange, so that what follows the response is of no account.
//
// Threading: plain objects. Memory: at most the limits below.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace kvrm {

inline constexpr std::size_t kMaxReplyHeadBytes = 64u << 10;
inline constexpr std::size_t kMaxReplyChunkLine = 1024;
inline constexpr std::size_t kMaxSseEventBytes = 16u << 20;

class HttpReply {
 public:
  using OnBody = std::function<void(std::string_view)>;

  // Takes bytes in the order they came; the body goes to `on_body` in pieces.
  Status Feed(std::string_view bytes, const OnBody& on_body);
  // The peer has closed. Whether the response was whole.
  bool Close();
  bool done() const { return state_ == State::kDone; }
  // 0 before the status line.
  int status() const { return status_; }

 private:
  enum class State : std::uint8_t {
    kHead,
    kLength,     // left_ bytes of body
    kUntilEnd,   // body up to the close
    kChunkSize,  // a line
    kChunk,      // left_ bytes
    kChunkEnd,   // the CRLF behind them
    kTrailer,    // lines up to an empty one
    kDone,
  };

  Status ParseHead(std::string_view head);
  Status ParseField(std::string_view line, bool* chunked, std::optional<std::uint64_t>* length);
  Status TakeLine(std::string_view* bytes, bool* whole);
  Status EndLine();
  Status FeedHead(std::string_view* bytes);

  State state_ = State::kHead;
  std::string line_;  // of what has begun: the head or a line
  std::uint64_t left_ = 0;
  int status_ = 0;
};

// Splits a body into the data of its events (WHATWG, section 9.2): comments and other fields are
// passed over, data lines of one event are joined by line feeds.
class SseParser {
 public:
  using OnData = std::function<void(std::string_view)>;
  Status Feed(std::string_view bytes, const OnData& on_data);

 private:
  void EndLine(const OnData& on_data);

  std::string line_;
  std::string data_;
  bool has_data_ = false;
  bool after_cr_ = false;
};

}  // namespace kvrm
