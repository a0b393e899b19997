// SPDX-License-Identifier: Apache-2.0
// RequestParser: bytes of one HTTP/1.1 request to an HttpRequest, strictly.
//
// Framing is decided once and never guessed (H1). What RFC 9112 lets a server repair, this parser
// refuses: bare CR or LF, obs-fold, Content-Length together with Transfer-Encoding, lists and
// repeats of either, any coding but exactly `chunked`, chunk extensions, trailers, absolute-form
// targets, bytes outside ASCII in the target. The verdict is the same however the bytes are cut
// into pieces.
//
// Threading: none of its own. Memory: at most max_head_bytes + max_body_bytes, grown as bytes
// arrive; nothing is reserved on the word of a header.
//
//   kHead     -> kHeadDone   the empty line          the caller routes, then refuses or goes on
//   kHeadDone -> kBody|kDone ContinueToBody
//   kBody     -> kDone       last byte of the body
//   any       -> kFailed     error_status() and error_message(); the connection must be closed
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kvrm {

struct ParserLimits {
  std::size_t max_head_bytes = 16 << 10;  // request line, fields and the empty line
  std::size_t max_target_bytes = 4 << 10;
  std::size_t max_fields = 64;
  std::size_t max_body_bytes = 8u << 20;
  std::size_t max_chunks = 65536;
};

struct HttpField {
  std::string name;   // lower case
  std::string value;  // without surrounding blanks
};

struct HttpRequest {
  std::string method;
  std::string path;   // starts with '/', or is "*"; as sent, percent signs and all
  std::string query;  // after '?', without it
  int version_minor = 1;
  bool keep_alive = true;
  bool expects_continue = false;
  std::vector<HttpField> fields;
  std::string body;
  std::string request_id;  // the server's word: not the parser's

  // The value of the first field of that (lower-case) name, or "".
  std::string_view Field(std::string_view name) const;
};

class RequestParser {
 public:
  enum class State { kHead, kHeadDone, kBody, kDone, kFailed };

  explicit RequestParser(const ParserLimits& limits) : limits_(limits) {}

  // Consumes bytes until the head is done, the message is done or it fails; returns how many.
  std::size_t Feed(std::string_view bytes);
  // Requires: state() == kHeadDone.
  void ContinueToBody();
  // Ready for the next request.
  void Reset();

  State state() const { return state_; }
  // Whether any byte of the current request has arrived.
  bool begun() const { return begun_; }
  // Whether bytes of a body will follow or have followed the head.
  bool has_body() const { return chunked_ || content_length_ > 0; }
  // What Content-Length says; 0 for chunks.
  std::uint64_t declared_bytes() const { return content_length_; }
  std::uint64_t num_body_bytes() const { return request_.body.size(); }
  HttpRequest& request() { return request_; }
  int error_status() const { return error_status_; }
  std::string_view error_message() const { return error_message_; }

 private:
  enum class ChunkState { kSize, kSizeLf, kData, kDataCr, kDataLf, kEndCr, kEndLf };

  std::size_t FeedHead(std::string_view bytes);
  std::size_t FeedBody(std::string_view bytes);
  std::size_t FeedChunked(std::string_view bytes);
  void FeedChunkByte(char c);
  void ParseHead();
  void ParseRequestLine(std::string_view line);
  void ParseVersion(std::string_view version);
  void ParseTarget(std::string_view target);
  void ParseField(std::string_view line);
  void CheckFraming();
  void CheckHost(std::string_view host);
  void CheckConnection(std::string_view value);
  // Returns how often the field occurs; `value` gets the first.
  std::size_t Count(std::string_view name, std::string_view* value) const;
  void Fail(int status, const char* message);

  ParserLimits limits_;
  State state_ = State::kHead;
  bool begun_ = false;
  std::string head_;
  HttpRequest request_;
  bool chunked_ = false;
  std::uint64_t content_length_ = 0;
  ChunkState chunk_state_ = ChunkState::kSize;
  std::uint64_t chunk_left_ = 0;  // of the size read so far, then of the data
  std::size_t chunk_digits_ = 0;
  std::size_t num_chunks_ = 0;
  int error_status_ = 0;
  const char* error_message_ = "";
};

}  // namespace kvrm
