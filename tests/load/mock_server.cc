// SPDX-License-Identifier: Apache-2.0
// kvrm_mock_server: the real server over an engine that only keeps time, for load tests of
// everything in front of the engine (docs/load.md).
//
// A step takes STEP_MS; a request gets a token every TOKEN_STEPS of them, or every step when it
// asks for at most 4. A token's text is the time at which the engine gave it, in microseconds of
// the steady clock modulo 2^30, so that a client on this machine sees how long delivery took. The
// tokenizer is the demo model's own.
//
//   kvrm_mock_server PORT STEP_MS TOKEN_STEPS
#include <signal.h>
#include <sys/types.h>

#include <charconv>
#include <chrono>
#include <cstdio>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "base/result.h"
#include "model/weights.h"
#include "server/api.h"

namespace kvrm {
namespace {

constexpr std::int64_t kTimeMask = (std::int64_t{1} << 30) - 1;

class MockEngine {
 public:
  MockEngine(std::int64_t step_ms, std::uint64_t token_steps)
      : step_ms_(step_ms), token_steps_(token_steps) {}

  EnginePort Port() {
    return {.submit = [this](Request request) { return Submit(std::move(request)); },
            .cancel = [this](RequestId id) { Cancel(id); },
            .poll = [this](std::span<TokenEvent> events) { return Poll(events); },
            .poll_logprobs = [](TopLogprobs*) { return false; },
            .poll_embedding = [](Embedding*) { return false; },
            .set_wake = [this](std::function<void()> wake) { wake_ = std::move(wake); },
            .ledger = [this] { return Ledger(); },
            .max_context = 8u << 20,
            .max_requests = 1u << 20};
  }
  // Never returns.
  void Run() {
    auto next = std::chrono::steady_clock::now();
    for (;;) {
      next += std::chrono::milliseconds(step_ms_);
      std::this_thread::sleep_until(next);
      Step();
    }
  }

 private:
  struct Running {
    std::uint64_t next_step = 0;
    std::uint64_t interval = 1;
    std::uint32_t left = 1;
  };

  Result<RequestId> Submit(Request request) {
    const std::lock_guard lock(mutex_);
    const std::uint64_t first = next_id_;
    for (std::uint32_t i = 0; i < request.num_samples; ++i) {
      const std::uint64_t interval = request.max_tokens <= 4 ? 1 : token_steps_;
      // Spread over the interval, as arrivals are.
      running_[next_id_++] = {.next_step = step_ + 1 + next_id_ % interval,
                              .interval = interval,
                              .left = request.max_tokens};
    }
    return RequestId{first};
  }
  void Cancel(RequestId id) {
    const std::lock_guard lock(mutex_);
    if (running_.erase(static_cast<std::uint64_t>(id)) == 0) return;
    events_.push_back({.request = id, .token = -1, .finish = FinishReason::kAborted});
  }
  std::size_t Poll(std::span<TokenEvent> events) {
    const std::lock_guard lock(mutex_);
    const std::size_t count = std::min(events.size(), events_.size() - taken_);
    std::copy_n(events_.begin() + static_cast<std::ptrdiff_t>(taken_), count, events.begin());
    taken_ += count;
    if (taken_ == events_.size()) {
      events_.clear();
      taken_ = 0;
    }
    return count;
  }
  EngineLedger Ledger() {
    const std::lock_guard lock(mutex_);
    EngineLedger ledger;
    ledger.engine.num_running = static_cast<std::uint32_t>(running_.size());
    ledger.engine.num_steps = step_;
    return ledger;
  }
  void Step() {
    bool any = false;
    {
      const std::lock_guard lock(mutex_);
      ++step_;
      const auto token = static_cast<std::int32_t>(SystemClock().NowNs() / 1000 & kTimeMask);
      for (auto at = running_.begin(); at != running_.end();) {
        Running& running = at->second;
        if (running.next_step > step_) {
          ++at;
          continue;
        }
        running.next_step += running.interval;
        const bool last = --running.left == 0;
        events_.push_back({.request = RequestId{at->first},
                           .token = token,
                           .finish = last ? FinishReason::kLength : FinishReason::kNone});
        at = last ? running_.erase(at) : std::next(at);
        any = true;
      }
    }
    if (any) wake_();
  }

  const std::int64_t step_ms_;
  const std::uint64_t token_steps_;
  std::mutex mutex_;
  std::uint64_t step_ = 0;
  std::uint64_t next_id_ = 1;
  std::unordered_map<std::uint64_t, Running> running_;
  std::vector<TokenEvent> events_;
  std::size_t taken_ = 0;
  std::function<void()> wake_ = [] {};
};

std::uint64_t NumberOf(const char* text) {
  std::uint64_t number = 0;
  std::from_chars(text, text + std::char_traits<char>::length(text), number);
  return number;
}

int Main(char** argv) {
  ::signal(SIGPIPE, SIG_IGN);
  SetLogLevel(LogLevel::kError);
  const SystemClock clock;
  const Model model = OrThrow(Model::LoadDemo());
  const ChatSupport chat = LoadChatSupport(model);
  MockEngine engine(static_cast<std::int64_t>(NumberOf(argv[2])), NumberOf(argv[3]));
  ModelPort port = PortOf(model, chat);
  port.served_name = "mock";
  port.open_stream = [](StreamDecoder::Start, bool) -> TextStream {
    return [](std::optional<std::int32_t> id) { return id ? std::to_string(*id) + ' ' : ""; };
  };
  ServerOptions options;
  options.port = static_cast<std::uint16_t>(NumberOf(argv[1]));
  options.max_preparing = 4096;
  options.access_log = false;
  Server server(engine.Port(), std::move(port), options, clock);
  std::printf("listening on http://127.0.0.1:%u\n", server.Listen());
  std::fflush(stdout);
  server.Start();
  engine.Run();
  return 0;
}

}  // namespace
}  // namespace kvrm

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  return kvrm::Main(argv);
}
