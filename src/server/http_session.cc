// SPDX-License-Identifier: Apache-2.0
#include "server/http_session.h"

#include <algorithm>
#include <utility>

namespace kvrm {
namespace {

namespace asio = boost::asio;
using ErrorCodeOf = boost::system::error_code;

IoResult ResultOf(const ErrorCodeOf& error, std::size_t num_bytes, IoState blocked) {
  if (!error) return {IoState::kDone, num_bytes};
  if (error == asio::error::would_block || error == asio::error::try_again) return {blocked, 0};
  return {error == asio::error::eof ? IoState::kEnd : IoState::kFailed, 0};
}

}  // namespace

HttpSession::HttpSession(std::uint64_t session_id, Socket accepted, const ParserLimits& limits)
    : id(session_id), socket(std::move(accepted)), parser(limits) {}

IoResult HttpSession::Read(std::span<char> buffer) {
  if (tls) return tls->Read(buffer);
  ErrorCodeOf error;
  const std::size_t num_read = socket.read_some(asio::buffer(buffer.data(), buffer.size()), error);
  return ResultOf(error, num_read, IoState::kWantRead);
}

IoResult HttpSession::WriteUnsent() {
  const std::string_view bytes = std::string_view(out).substr(out_offset);
  IoResult result;
  if (tls) {
    result = tls->Write(bytes);
  } else {
    ErrorCodeOf error;
    const std::size_t num_sent = socket.write_some(asio::buffer(bytes.data(), bytes.size()), error);
    result = ResultOf(error, num_sent, IoState::kWantWrite);
  }
  if (result.state == IoState::kDone) out_offset += result.num_bytes;
  return result;
}

void HttpSession::Skip(std::string_view* bytes) {
  const std::size_t num_skipped = std::min<std::uint64_t>(skip_bytes, bytes->size());
  skip_bytes -= num_skipped;
  bytes->remove_prefix(num_skipped);
}

void HttpSession::EndSending() {
  if (tls) tls->EndSending();
  ErrorCodeOf ignored;
  socket.shutdown(Socket::shutdown_send, ignored);
}

}  // namespace kvrm
