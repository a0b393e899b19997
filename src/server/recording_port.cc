// SPDX-License-Identifier: Apache-2.0
#include "server/recording_port.h"

#include <utility>
#include <vector>

namespace kvrm {

EnginePort Recording(EnginePort port, TraceWriter& writer, const Clock& clock) {
  port.submit = [submit = std::move(port.submit), &writer, &clock](Request request) {
    const std::vector<std::int32_t> prompt = request.prompt;
    Result<RequestId> id = submit(std::move(request));
    if (id) writer.Begin(static_cast<std::uint64_t>(*id), clock.NowNs(), prompt);
    return id;
  };
  port.poll = [poll = std::move(port.poll), &writer](std::span<TokenEvent> events) {
    const std::size_t count = poll(events);
    for (const TokenEvent& event : events.first(count)) {
      const auto id = static_cast<std::uint64_t>(event.request);
      if (event.token >= 0) writer.AddToken(id);
      if (event.finish != FinishReason::kNone) writer.End(id);
    }
    return count;
  };
  return port;
}

}  // namespace kvrm
