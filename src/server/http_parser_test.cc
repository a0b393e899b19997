// SPDX-License-Identifier: Apache-2.0
#include "server/http_parser.h"

#include <gtest/gtest.h>

#include "base/rng.h"

namespace kvrm {
namespace {

using State = RequestParser::State;

struct Verdict {
  int status = 0;  // 0: accepted; -1: wants more
  std::size_t consumed = 0;
  std::string body;
  bool operator==(const Verdict&) const = default;
};

// Feeds the bytes in pieces whose sizes `next_size` gives.
template <typename NextSize>
Verdict Judge(std::string_view bytes, const ParserLimits& limits, NextSize next_size) {
  RequestParser parser(limits);
  Verdict verdict;
  while (!bytes.empty() && parser.state() != State::kDone && parser.state() != State::kFailed) {
    std::string_view piece = bytes.substr(0, next_size());
    while (!piece.empty()) {
      const std::size_t used = parser.Feed(piece);
      piece.remove_prefix(used);
      bytes.remove_prefix(used);
      verdict.consumed += used;
      if (parser.state() == State::kHeadDone) parser.ContinueToBody();
      if (parser.state() == State::kDone || parser.state() == State::kFailed) break;
    }
  }
  verdict.status = parser.state() == State::kDone     ? 0
                   : parser.state() == State::kFailed ? parser.error_status()
                                                      : -1;
  if (verdict.status == 0) verdict.body = parser.request().body;
  return verdict;
}

Verdict Judge(std::string_view bytes, const ParserLimits& limits = {}) {
  return Judge(bytes, limits, [&] { return bytes.size(); });
}

struct Case {
  const char* name;
  std::string bytes;
  int status;
};

std::string Get(std::string_view fields) {
  return "GET / HTTP/1.1\r\nHost: a\r\n" + std::string(fields) + "\r\n";
}
std::string Post(std::string_view fields, std::string_view body) {
  return "POST / HTTP/1.1\r\nHost: a\r\n" + std::string(fields) + "\r\n" + std::string(body);
}
std::string Chunked(std::string_view body) {
  return Post("Transfer-Encoding: chunked\r\n", body);
}

std::vector<Case> Cases() {
  const std::string nul(1, '\0');
  return {
      {"plain", Get(""), 0},
      {"body", Post("Content-Length: 5\r\n", "hello"), 0},
      {"zero body", Post("Content-Length: 0\r\n", ""), 0},
      {"leading zeros of a length", Post("Content-Length: 005\r\n", "hello"), 0},
      {"short body", Post("Content-Length: 5\r\n", "hell"), -1},
      {"chunked", Chunked("5\r\nhello\r\n0\r\n\r\n"), 0},
      {"chunked capital", Post("Transfer-Encoding: Chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"), 0},
      {"two chunks, hex sizes", Chunked("A\r\n0123456789\r\n1\r\nx\r\n0\r\n\r\n"), 0},
      {"unfinished chunks", Chunked("5\r\nhello\r\n0\r\n"), -1},
      {"1.0", "GET / HTTP/1.0\r\n\r\n", 0},
      {"query", "GET /a?b=c%20d HTTP/1.1\r\nHost: a\r\n\r\n", 0},
      {"host with port", "GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n", 0},
      {"obs-text in a value", Get("X: caf\xc3\xa9\r\n"), 0},
      {"tab around a value", Get("X:\tv\t\r\n"), 0},
      {"options asterisk", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 0},
      {"continue", Post("Content-Length: 1\r\nExpect: 100-continue\r\n", "x"), 0},

      {"length twice equal", Post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"), 400},
      {"length twice differing", Post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello"), 400},
      {"length list", Post("Content-Length: 5, 5\r\n", "hello"), 400},
      {"length plus", Post("Content-Length: +5\r\n", "hello"), 400},
      {"length minus", Post("Content-Length: -1\r\n", "hello"), 400},
      {"length hex", Post("Content-Length: 0x5\r\n", "hello"), 400},
      {"length empty", Post("Content-Length:\r\n", "hello"), 400},
      {"length 2^64", Post("Content-Length: 18446744073709551616\r\n", ""), 400},
      {"length over the limit", Post("Content-Length: 8388609\r\n", ""), 413},
      {"length then chunked",
       Post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), 400},
      {"chunked then length",
       Post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"), 400},
      {"coding gzip", Post("Transfer-Encoding: gzip\r\n", ""), 400},
      {"coding chunked, gzip", Post("Transfer-Encoding: chunked, gzip\r\n", ""), 400},
      {"coding gzip, chunked", Post("Transfer-Encoding: gzip, chunked\r\n", ""), 400},
      {"coding xchunked", Post("Transfer-Encoding: xchunked\r\n", ""), 400},
      {"coding with VT",
       Post("Transfer-Encoding: \x0b"
            "chunked\r\n",
            ""),
       400},
      {"coding twice",
       Post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), 400},
      {"coding gzip then length", Post("Transfer-Encoding: gzip\r\nContent-Length: 5\r\n", "hello"),
       400},
      {"coding in 1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
      {"coding folded", Post("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n"), 400},

      {"folded field", Get("X: a\r\n b\r\n"), 400},
      {"first field begins with a blank", "GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400},
      {"blank before the colon", Get("X : a\r\n"), 400},
      {"field without colon", Get("nonsense\r\n"), 400},
      {"field without name", Get(": a\r\n"), 400},
      {"bare LF", "GET / HTTP/1.1\nHost: a\n\n", 400},
      {"bare LF in a value", Get("X: a\nY: b\r\n"), 400},
      {"bare CR", Get("X: a\rb\r\n"), 400},
      {"NUL", Get("X: a" + nul + "b\r\n"), 400},
      {"escape character", Get("X: a\x1b[0m\r\n"), 400},
      {"DEL in the path", "GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n", 400},
      {"raw 0x80 in the path", "GET /\x80 HTTP/1.1\r\nHost: a\r\n\r\n", 400},
      {"fragment", "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400},
      {"absolute target", "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400},
      {"target without slash", "GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400},
      {"asterisk for GET", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400},
      {"two blanks", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
      {"lower-case method", "get / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
      {"empty line first", "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
      {"HTTP/1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505},
      {"HTTP/9.9", "GET / HTTP/9.9\r\nHost: a\r\n\r\n", 505},
      {"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\n", 505},
      {"no version", "GET /\r\nHost: a\r\n\r\n", 400},
      {"TLS hello", std::string("\x16\x03\x01\x02", 4), 400},

      {"no host", "GET / HTTP/1.1\r\n\r\n", 400},
      {"two hosts", Get("Host: b\r\n"), 400},
      {"host like a URL", "GET / HTTP/1.1\r\nHost: localhost/v1/models?\r\n\r\n", 400},
      {"two keys", Get("Authorization: Bearer a\r\nAuthorization: Bearer b\r\n"), 400},
      {"connection that is no list of tokens", Get("Connection: keep-ali{e\r\n"), 400},
      {"unknown expectation", Post("Content-Length: 1\r\nExpect: foo\r\n", "x"), 417},

      {"chunk extension", Chunked("5;a=b\r\nhello\r\n0\r\n\r\n"), 400},
      {"chunk extension on the last", Chunked("5\r\nhello\r\n0;a\r\n\r\n"), 400},
      {"blank after the size", Chunked("5 \r\nhello\r\n0\r\n\r\n"), 400},
      {"trailer", Chunked("5\r\nhello\r\n0\r\nAuthorization: Bearer x\r\n\r\n"), 400},
      {"trailer Content-Length", Chunked("5\r\nhello\r\n0\r\nContent-Length: 9\r\n\r\n"), 400},
      {"trailer Transfer-Encoding", Chunked("0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400},
      {"trailer of 9,000 bytes", Chunked("0\r\nX: " + std::string(9000, 'a') + "\r\n\r\n"), 400},
      {"chunk of 17 digits", Chunked("10000000000000005\r\nhello\r\n0\r\n\r\n"), 400},
      {"chunk of 4 MB of zeros", Chunked(std::string(4u << 20, '0') + "5\r\n"), 400},
      {"no line end after the data", Chunked("5\r\nhello0\r\n\r\n"), 400},
      {"folded host", "GET / HTTP/1.1\r\nHost:\r\n a\r\n\r\n", 400},
      {"negative chunk", Chunked("-1\r\n"), 400},
      {"chunk 0x5", Chunked("0x5\r\nhello\r\n0\r\n\r\n"), 400},
      {"chunk of nine digits", Chunked("000000005\r\nhello\r\n0\r\n\r\n"), 400},
      {"chunk without size", Chunked("\r\nhello\r\n0\r\n\r\n"), 400},
      {"chunk LF only", Chunked("5\nhello\n0\n\n"), 400},
      {"chunk data too long", Chunked("4\r\nhello\r\n0\r\n\r\n"), 400},
      {"chunk over the limit", Chunked("800001\r\n"), 413},
      {"head over the limit", Get("X: " + std::string(17000, 'a') + "\r\n"), 431},
      {"target over the limit", "GET /" + std::string(4096, 'a') + " HTTP/1.1\r\nHost: a\r\n\r\n",
       414},
      {"endless request line", "GET /" + std::string(20000, 'a'), 414},
  };
}

TEST(RequestParser, FramingTable) {
  for (const Case& test : Cases())
    EXPECT_EQ(Judge(test.bytes).status, test.status) << test.name;
}

TEST(RequestParser, VerdictDoesNotDependOnSegmentation) {
  Rng rng(7);
  for (const Case& test : Cases()) {
    const Verdict whole = Judge(test.bytes);
    EXPECT_EQ(Judge(test.bytes, {}, [] { return 1; }), whole) << test.name;
    for (int i = 0; i < 20; ++i) {
      EXPECT_EQ(Judge(test.bytes, {}, [&] { return rng.Between(1, 40); }), whole) << test.name;
    }
  }
}

TEST(RequestParser, LeavesWhatFollowsTheMessage) {
  const std::string first = Chunked("5\r\nhello\r\n0\r\n\r\n");
  const Verdict verdict = Judge(first + "GET /admin HTTP/1.1\r\n");
  EXPECT_EQ(verdict.status, 0);
  EXPECT_EQ(verdict.consumed, first.size());
  EXPECT_EQ(verdict.body, "hello");
}

TEST(RequestParser, GivesTheParts) {
  RequestParser parser({});
  parser.Feed(
      "POST /v1/x?y=1 HTTP/1.1\r\nHOST: a\r\nX-Thing: \t v w \t\r\nContent-Length: 2\r\n\r\n");
  ASSERT_EQ(parser.state(), State::kHeadDone);
  const HttpRequest& request = parser.request();
  EXPECT_EQ(request.method, "POST");
  EXPECT_EQ(request.path, "/v1/x");
  EXPECT_EQ(request.query, "y=1");
  EXPECT_EQ(request.Field("x-thing"), "v w");
  EXPECT_EQ(request.Field("absent"), "");
  EXPECT_TRUE(request.keep_alive);
  EXPECT_TRUE(parser.has_body());
}

TEST(RequestParser, KeepAliveFollowsVersionAndConnection) {
  const auto keep = [](std::string_view text) {
    RequestParser parser({});
    parser.Feed(text);
    EXPECT_EQ(parser.state(), State::kHeadDone);
    return parser.request().keep_alive;
  };
  EXPECT_TRUE(keep("GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
  EXPECT_FALSE(keep("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n"));
  EXPECT_FALSE(keep("GET / HTTP/1.0\r\n\r\n"));
  EXPECT_TRUE(keep("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"));
  EXPECT_FALSE(
      keep("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n"));
}

TEST(RequestParser, CountsFieldsAndChunks) {
  std::string fields;
  for (int i = 0; i < 63; ++i)
    fields += "A: b\r\n";
  EXPECT_EQ(Judge(Get(fields)).status, 0);
  EXPECT_EQ(Judge(Get(fields + "A: b\r\n")).status, 431);

  const ParserLimits limits{.max_chunks = 3};  // the last, empty one counts
  EXPECT_EQ(Judge(Chunked("1\r\na\r\n1\r\nb\r\n0\r\n\r\n"), limits).status, 0);
  EXPECT_EQ(Judge(Chunked("1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n"), limits).status, 413);
}

TEST(RequestParser, ChunksTogetherObeyTheBodyLimit) {
  const ParserLimits limits{.max_body_bytes = 6};
  EXPECT_EQ(Judge(Chunked("3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n"), limits).body, "abcdef");
  EXPECT_EQ(Judge(Chunked("3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"), limits).status, 413);
}

TEST(RequestParser, SurvivesResetBetweenRequests) {
  RequestParser parser({});
  for (int i = 0; i < 3; ++i) {
    const std::string text = Post("Content-Length: 2\r\n", "ab");
    std::string_view rest = text;
    rest.remove_prefix(parser.Feed(rest));
    parser.ContinueToBody();
    EXPECT_EQ(parser.Feed(rest), 2u);
    ASSERT_EQ(parser.state(), State::kDone);
    EXPECT_EQ(parser.request().fields.size(), 2u);
    parser.Reset();
    EXPECT_FALSE(parser.begun());
  }
}

}  // namespace
}  // namespace kvrm
