// SPDX-License-Identifier: Apache-2.0
// What a server may send: any bytes in any pieces give a response, events and chunks, or an error.
// In one piece and in many it is the same.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "replay/completion_chunk.h"
#include "replay/http_reply.h"

namespace kvrm {
namespace {

struct Seen {
  bool failed = false;
  int status = 0;
  std::string body;
  std::string events;
  friend bool operator==(const Seen&, const Seen&) = default;
};

Seen Read(std::string_view bytes, std::size_t piece) {
  Seen seen;
  HttpReply reply;
  SseParser sse;
  while (!bytes.empty() && !seen.failed) {
    const std::size_t take = std::min(piece, bytes.size());
    const Status fed = reply.Feed(bytes.substr(0, take), [&](std::string_view body) {
      seen.body += body;
      const Status event = sse.Feed(body, [&seen](std::string_view data) {
        seen.events += std::string(data) + "\n";
        const CompletionChunk chunk = ParseCompletionChunk(data);
        CHECK(chunk.error.empty() || !chunk.has_output);
      });
      seen.failed |= !event;
    });
    seen.failed |= !fed;
    bytes.remove_prefix(take);
  }
  seen.status = reply.status();
  return seen;
}

}  // namespace
}  // namespace kvrm

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  CHECK(kvrm::Read(bytes, size + 1) == kvrm::Read(bytes, 1));
  return 0;
}
