// SPDX-License-Identifier: Apache-2.0
// Any bytes, cut anywhere: the parser's verdict does not depend on the cuts, its limits hold, and
// what it accepts Boost.Beast, a second parser, accepts too and reads the same.
//
// Not covered: sockets and time (server_test.cc).
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "base/rng.h"
#include "server/http_parser.h"

namespace kvrm {
namespace {

namespace http = boost::beast::http;
using State = RequestParser::State;

const ParserLimits kLimits = {.max_head_bytes = 4096,
                              .max_target_bytes = 512,
                              .max_fields = 16,
                              .max_body_bytes = 4096,
                              .max_chunks = 64};

struct Verdict {
  State state = State::kHead;
  int status = 0;
  std::size_t consumed = 0;
  HttpRequest request;
};

template <typename NextSize>
Verdict Judge(std::string_view bytes, NextSize next_size) {
  RequestParser parser(kLimits);
  Verdict verdict;
  const auto ended = [&] {
    return parser.state() == State::kDone || parser.state() == State::kFailed;
  };
  while (!bytes.empty() && !ended()) {
    std::string_view piece = bytes.substr(0, next_size());
    while (!piece.empty() && !ended()) {
      const std::size_t used = parser.Feed(piece);
      CHECK(used <= piece.size());
      piece.remove_prefix(used);
      bytes.remove_prefix(used);
      verdict.consumed += used;
      if (parser.state() == State::kHeadDone) parser.ContinueToBody();
    }
  }
  verdict.state = parser.state();
  verdict.status = parser.error_status();
  verdict.request = parser.request();
  return verdict;
}

void CheckSame(const Verdict& a, const Verdict& b) {
  CHECK(a.state == b.state && a.status == b.status && a.consumed == b.consumed);
  CHECK(a.request.body == b.request.body && a.request.path == b.request.path);
  CHECK(a.request.fields.size() == b.request.fields.size());
}

void CheckLimits(const Verdict& verdict) {
  CHECK(verdict.request.body.size() <= kLimits.max_body_bytes);
  CHECK(verdict.request.fields.size() <= kLimits.max_fields);
  CHECK(verdict.request.path.size() <= kLimits.max_target_bytes);
  CHECK((verdict.state == State::kFailed) == (verdict.status != 0));
}

void CheckAgainstBeast(std::string_view message, const HttpRequest& ours) {
  http::request_parser<http::string_body> beast;
  beast.eager(true);
  beast.header_limit(16384);
  beast.body_limit(1u << 20);
  boost::system::error_code error;
  while (!message.empty() && !beast.is_done()) {
    const std::size_t used = beast.put(boost::asio::buffer(message.data(), message.size()), error);
    CHECK(!error || error == http::error::need_more);
    CHECK(used > 0);
    message.remove_prefix(used);
  }
  CHECK(beast.is_done() && message.empty());
  const auto& theirs = beast.get();
  CHECK(theirs.method_string() == ours.method);
  CHECK(theirs.target() == (ours.query.empty() ? ours.path : ours.path + "?" + ours.query) ||
        theirs.target() == ours.path + "?");
  CHECK(theirs.body() == ours.body);
  CHECK(static_cast<std::size_t>(std::distance(theirs.begin(), theirs.end())) ==
        ours.fields.size());
}

void FuzzOne(std::string_view bytes) {
  const Verdict whole = Judge(bytes, [&] { return bytes.size(); });
  CheckLimits(whole);
  CheckSame(whole, Judge(bytes, [] { return std::size_t{1}; }));
  std::uint64_t seed = bytes.size();
  for (const char c : bytes)
    seed = Mix64(seed ^ static_cast<unsigned char>(c));
  Rng rng(seed);
  CheckSame(whole, Judge(bytes, [&] { return static_cast<std::size_t>(rng.Between(1, 64)); }));
  if (whole.state == State::kDone) {
    CheckAgainstBeast(bytes.substr(0, whole.consumed), whole.request);
  }
}

}  // namespace
}  // namespace kvrm

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  kvrm::FuzzOne({reinterpret_cast<const char*>(data), size});
  return 0;
}
