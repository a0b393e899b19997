// SPDX-License-Identifier: Apache-2.0
#include "server/http_parser.h"

#include <algorithm>
#include <charconv>

#include "base/check.h"

namespace kvrm {
namespace {

// 8 hexadecimal digits hold any size below 4 GiB, far above the body limit; more are either leading
// zeros, which only a forger sends, or too large.
constexpr std::size_t kMaxChunkDigits = 8;

bool IsDigit(char c) {
  return c >= '0' && c <= '9';
}
bool IsAlpha(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

bool Contains(std::string_view set, char c) {
  return set.find(c) != std::string_view::npos;
}

// RFC 9110, tchar.
bool IsTokenChar(char c) {
  return IsAlpha(c) || IsDigit(c) || Contains("!#$%&'*+-.^_`|~", c);
}

char LowerChar(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

std::string Lower(std::string_view text) {
  std::string lower(text);
  std::transform(lower.begin(), lower.end(), lower.begin(), LowerChar);
  return lower;
}

std::string_view Trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t'))
    text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t'))
    text.remove_suffix(1);
  return text;
}

int HexValue(char c) {
  if (IsDigit(c)) return c - '0';
  const char lower = LowerChar(c);
  return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

}  // namespace

std::string_view HttpRequest::Field(std::string_view name) const {
  for (const HttpField& field : fields) {
    if (field.name == name) return field.value;
  }
  return {};
}

void RequestParser::Fail(int status, const char* message) {
  state_ = State::kFailed;
  error_status_ = status;
  error_message_ = message;
}

void RequestParser::Reset() {
  *this = RequestParser(limits_);
}

std::size_t RequestParser::Feed(std::string_view bytes) {
  if (bytes.empty()) return 0;
  if (state_ == State::kHead) return FeedHead(bytes);
  if (state_ == State::kBody) return FeedBody(bytes);
  return 0;
}

// Every byte is judged as it arrives, so that a client which never sends a proper line end is
// refused at its first wrong byte and not at a time-out.
std::size_t RequestParser::FeedHead(std::string_view bytes) {
  begun_ = true;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const char c = bytes[i];
    const char last = head_.empty() ? '\0' : head_.back();
    if (c == '\n' && last != '\r') {
      Fail(400, "line feed without carriage return");
    } else if (last == '\r' && c != '\n') {
      Fail(400, "carriage return without line feed");
    } else if (c == 0x7f ||
               (static_cast<unsigned char>(c) < 0x20 && c != '\r' && c != '\n' && c != '\t')) {
      Fail(400, "control character in the request head");
    } else if (head_.size() == limits_.max_head_bytes) {
      const bool in_first_line = head_.find('\n') == std::string::npos;
      Fail(in_first_line ? 414 : 431, "request head is larger than the limit");
    }
    if (state_ == State::kFailed) return i;
    head_.push_back(c);
    if (c == '\n' && (head_.size() == 2 || head_.ends_with("\r\n\r\n"))) {
      ParseHead();
      head_ = std::string();
      return i + 1;
    }
  }
  return bytes.size();
}

void RequestParser::ParseHead() {
  std::string_view rest = head_;
  const std::size_t first_end = rest.find("\r\n");
  ParseRequestLine(rest.substr(0, first_end));
  rest.remove_prefix(first_end + 2);
  while (state_ != State::kFailed && rest != "\r\n") {
    const std::size_t end = rest.find("\r\n");
    ParseField(rest.substr(0, end));
    rest.remove_prefix(end + 2);
  }
  if (state_ != State::kFailed) CheckFraming();
  if (state_ != State::kFailed) state_ = State::kHeadDone;
}

void RequestParser::ParseRequestLine(std::string_view line) {
  const std::size_t method_end = line.find(' ');
  if (method_end == std::string_view::npos || method_end == 0 || method_end > 16) {
    return Fail(400, "malformed request line");
  }
  const std::string_view method = line.substr(0, method_end);
  if (!std::all_of(method.begin(), method.end(), [](char c) { return c >= 'A' && c <= 'Z'; })) {
    return Fail(400, "malformed method");
  }
  request_.method = method;
  line.remove_prefix(method_end + 1);
  const std::size_t target_end = line.find(' ');
  if (target_end == std::string_view::npos) return Fail(400, "malformed request line");
  const std::string_view version = line.substr(target_end + 1);
  if (version.find(' ') != std::string_view::npos) return Fail(400, "malformed request line");
  ParseVersion(version);
  if (state_ != State::kFailed) ParseTarget(line.substr(0, target_end));
}

void RequestParser::ParseVersion(std::string_view version) {
  if (version.size() != 8 || !version.starts_with("HTTP/") || !IsDigit(version[5]) ||
      version[6] != '.' || !IsDigit(version[7])) {
    return Fail(400, "malformed HTTP version");
  }
  if (version != "HTTP/1.1" && version != "HTTP/1.0")
    return Fail(505, "HTTP version not supported");
  request_.version_minor = version[7] - '0';
  request_.keep_alive = request_.version_minor == 1;
}

void RequestParser::ParseTarget(std::string_view target) {
  if (target.size() > limits_.max_target_bytes) return Fail(414, "request target is too long");
  const bool asterisk = target == "*" && request_.method == "OPTIONS";
  if (!asterisk && (target.empty() || target[0] != '/')) {
    return Fail(400, "request target must begin with a slash");
  }
  for (const char c : target) {
    if (c <= ' ' || c >= 0x7f || c == '#') return Fail(400, "bad character in the request target");
  }
  const std::size_t mark = target.find('?');
  request_.path = target.substr(0, mark);
  if (mark != std::string_view::npos) request_.query = target.substr(mark + 1);
}

void RequestParser::ParseField(std::string_view line) {
  if (request_.fields.size() == limits_.max_fields) return Fail(431, "too many header fields");
  if (line[0] == ' ' || line[0] == '\t') return Fail(400, "folded header line");
  const std::size_t colon = line.find(':');
  if (colon == std::string_view::npos || colon == 0) return Fail(400, "malformed header field");
  const std::string_view name = line.substr(0, colon);
  if (!std::all_of(name.begin(), name.end(), IsTokenChar)) {
    return Fail(400, "malformed header field name");
  }
  request_.fields.push_back({Lower(name), std::string(Trim(line.substr(colon + 1)))});
}

std::size_t RequestParser::Count(std::string_view name, std::string_view* value) const {
  std::size_t count = 0;
  for (const HttpField& field : request_.fields) {
    if (field.name != name) continue;
    if (count++ == 0 && value != nullptr) *value = field.value;
  }
  return count;
}

// H1: length or chunks, never both, never a guess.
void RequestParser::CheckFraming() {
  std::string_view host;
  const std::size_t num_hosts = Count("host", &host);
  if (num_hosts > 1 || (num_hosts == 0 && request_.version_minor == 1)) {
    return Fail(400, "exactly one Host field is required");
  }
  if (num_hosts == 1) CheckHost(host);
  // These decide who the client is and what the body means: two of them are two opinions.
  for (const std::string_view name : {"authorization", "x-api-key", "content-type", "expect"}) {
    if (Count(name, nullptr) > 1) return Fail(400, "repeated header field");
  }

  std::string_view length;
  std::string_view coding;
  const std::size_t num_lengths = Count("content-length", &length);
  const std::size_t num_codings = Count("transfer-encoding", &coding);
  if (num_lengths + num_codings > 1) return Fail(400, "ambiguous message framing");
  if (num_codings == 1) {
    if (Lower(coding) != "chunked" || request_.version_minor == 0) {
      return Fail(400, "unsupported Transfer-Encoding");
    }
    chunked_ = true;
  }
  if (num_lengths == 1) {
    if (length.empty() || length.size() > 19 ||
        !std::all_of(length.begin(), length.end(), IsDigit)) {
      return Fail(400, "malformed Content-Length");
    }
    std::from_chars(length.data(), length.data() + length.size(), content_length_);
    if (content_length_ > limits_.max_body_bytes) {
      return Fail(413, "request body is larger than the limit");
    }
  }
  std::string_view expect;
  if (Count("expect", &expect) == 1) {
    if (Lower(expect) != "100-continue") return Fail(417, "unknown expectation");
    request_.expects_continue = has_body() && request_.version_minor == 1;
  }
  for (const HttpField& field : request_.fields) {
    if (field.name == "connection") CheckConnection(field.value);
  }
}

// The host is only validated, never used (H2).
void RequestParser::CheckHost(std::string_view host) {
  const bool clean = std::all_of(host.begin(), host.end(), [](char c) {
    return IsAlpha(c) || IsDigit(c) || Contains("-._~:[]", c);
  });
  if (host.empty() || !clean) Fail(400, "malformed Host");
}

void RequestParser::CheckConnection(std::string_view value) {
  while (!value.empty()) {
    const std::size_t comma = value.find(',');
    const std::string option = Lower(Trim(value.substr(0, comma)));
    if (!std::all_of(option.begin(), option.end(), IsTokenChar)) {
      return Fail(400, "malformed Connection");
    }
    if (option == "close") request_.keep_alive = false;
    if (option == "keep-alive" && request_.version_minor == 0) request_.keep_alive = true;
    value = comma == std::string_view::npos ? std::string_view() : value.substr(comma + 1);
  }
}

void RequestParser::ContinueToBody() {
  CHECK(state_ == State::kHeadDone);
  state_ = has_body() ? State::kBody : State::kDone;
}

std::size_t RequestParser::FeedBody(std::string_view bytes) {
  if (chunked_) return FeedChunked(bytes);
  const std::uint64_t left = content_length_ - request_.body.size();
  const std::size_t taken = std::min<std::uint64_t>(left, bytes.size());
  request_.body.append(bytes.substr(0, taken));
  if (request_.body.size() == content_length_) state_ = State::kDone;
  return taken;
}

std::size_t RequestParser::FeedChunked(std::string_view bytes) {
  std::size_t used = 0;
  while (used < bytes.size() && state_ == State::kBody) {
    if (chunk_state_ == ChunkState::kData) {
      const std::size_t taken = std::min<std::uint64_t>(chunk_left_, bytes.size() - used);
      request_.body.append(bytes.substr(used, taken));
      chunk_left_ -= taken;
      used += taken;
      if (chunk_left_ == 0) chunk_state_ = ChunkState::kDataCr;
    } else {
      FeedChunkByte(bytes[used]);
      if (state_ != State::kFailed) ++used;
    }
  }
  return used;
}

// Everything between the data of chunks: size CR LF data CR LF ... 0 CR LF CR LF, and not one byte
// more. A ';' (extension), a blank or a trailer field is simply a wrong byte here.
void RequestParser::FeedChunkByte(char c) {
  const auto expect = [&](char wanted, ChunkState next) {
    if (c != wanted) return Fail(400, "malformed chunked body");
    chunk_state_ = next;
  };
  switch (chunk_state_) {
    case ChunkState::kSize: {
      const int digit = HexValue(c);
      if (digit < 0) {
        if (chunk_digits_ == 0) return Fail(400, "malformed chunk size");
        return expect('\r', ChunkState::kSizeLf);
      }
      if (++chunk_digits_ > kMaxChunkDigits) return Fail(400, "chunk size is too long");
      chunk_left_ = chunk_left_ * 16 + static_cast<std::uint64_t>(digit);
      return;
    }
    case ChunkState::kSizeLf:
      if (c != '\n') return Fail(400, "malformed chunked body");
      chunk_state_ = chunk_left_ == 0 ? ChunkState::kEndCr : ChunkState::kData;
      chunk_digits_ = 0;
      if (++num_chunks_ > limits_.max_chunks ||
          request_.body.size() + chunk_left_ > limits_.max_body_bytes) {
        Fail(413, "request body is larger than the limit");
      }
      return;
    case ChunkState::kDataCr:
      return expect('\r', ChunkState::kDataLf);
    case ChunkState::kDataLf:
      return expect('\n', ChunkState::kSize);
    case ChunkState::kEndCr:
      return expect('\r', ChunkState::kEndLf);
    case ChunkState::kEndLf:
      expect('\n', ChunkState::kEndLf);
      if (state_ != State::kFailed) state_ = State::kDone;
      return;
    case ChunkState::kData:
      CHECK(false);
  }
}

}  // namespace kvrm
