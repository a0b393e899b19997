// SPDX-License-Identifier: Apache-2.0
// ReplayRun: which request is due when, and the record of those that run. What all targets share.
//
// A target takes what is due, says what comes back, and goes on until done(). Times are ns on the
// run's own clock, which begins at 0 (real or virtual).
//
// Threading: one thread. Memory: allocates as it goes; it is a client, not the step path.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <queue>
#include <string>
#include <utility>
#include <vector>

#include "replay/record.h"
#include "trace/workload.h"

namespace kvrm {

// For a progress display.
struct ReplayProgress {
  std::int64_t now_ns = 0;
  std::uint64_t num_sent = 0;
  std::uint64_t num_running = 0;
  std::uint64_t num_ended = 0;
  std::uint64_t num_failed = 0;
  std::uint64_t num_outputs = 0;
  std::string_view phase = {};
};

struct ReplayOptions {
  std::uint64_t warmup_requests = 0;        // the first so many are marked and not counted
  std::int64_t stop_ns = 0;                 // everything that runs then is cancelled; 0: never
  const std::atomic<bool>* stop = nullptr;  // the same once it is true, which a signal may make it
  std::function<void(const ReplayProgress&)> progress = {};
};

inline constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();

class ReplayRun {
 public:
  // All outlive the run.
  ReplayRun(const Workload& workload, const ReplayOptions& options, RecordWriter& writer);

  // The next request whose time has come, which runs from now on.
  std::optional<std::size_t> TakeDue(std::int64_t now_ns);
  // When that will be; kNever: not before another one ends.
  std::int64_t NextDue() const;
  std::int64_t due_ns(std::size_t request) const;

  // Which engine of several serves it.
  void OnRouted(std::size_t request, std::uint32_t replica);
  // When it went out, if not when it was due.
  void OnSent(std::size_t request, std::int64_t now_ns);
  // Output of a running request: a token, or a chunk of them.
  void OnOutput(std::size_t request, std::int64_t now_ns);
  // What the target says of a request that has ended.
  struct End {
    std::uint32_t prompt_tokens = 0;
    std::uint32_t output_tokens = 0;
    std::uint32_t cached_tokens = 0;
    std::string finish = "length";
    std::string error = {};
  };
  void OnEnd(std::size_t request, std::int64_t now_ns, const End& end);
  void OnStep(const StepRecord& step) { writer_.Add(step); }
  void OnMemory(const MemoryRecord& memory) { writer_.Add(memory); }
  bool WantsMap(std::int64_t now_ns) const { return writer_.WantsMap(now_ns); }
  void OnMap(MapRecord map) { writer_.Add(std::move(map)); }

  // Nothing is left to send, and what still runs should be cancelled: closed loops whose time is
  // up, or everything. The target cancels running() and ends each with "cancelled".
  bool ShouldCancel(std::int64_t now_ns) const;
  std::vector<std::size_t> running() const;  // ascending
  bool done() const { return num_live_ == 0 && num_pending_ == 0; }

  void ShowProgress(std::int64_t now_ns);
  const Workload& workload() const { return workload_; }

 private:
  struct Due {
    std::int64_t at_ns = 0;
    std::uint32_t request = 0;
    bool operator<(const Due& other) const {  // the queue's top is the earliest
      return at_ns != other.at_ns ? at_ns > other.at_ns : request > other.request;
    }
  };

  void PushNextClosed(std::int64_t now_ns);
  // Closed requests that will not be sent any more.
  void EndClosedLoop();
  // It and those after it will not be taken.
  void DropFrom(std::uint32_t request);
  bool IsOver(std::int64_t now_ns) const;

  const Workload& workload_;
  const ReplayOptions& options_;
  RecordWriter& writer_;
  std::priority_queue<Due> queue_;
  std::vector<std::uint32_t> next_;    // the request after this one; kNone: none
  std::vector<bool> is_closed_;        // closed, or after one that is: a client's conversation
  std::vector<std::uint32_t> closed_;  // in order
  std::vector<std::int64_t> due_ns_;   // of requests taken
  std::size_t next_closed_ = 0;
  // A request that runs.
  struct Live {
    RequestRecord record;
    std::int64_t last_ns = 0;
  };
  Live& Begin(std::uint32_t request);
  Live& LiveOf(std::size_t request);
  void Release(std::size_t request);
  // A place in live_ for every request that runs, kNone for the others: who asks for one asks once
  // a token.
  std::vector<std::uint32_t> place_;
  std::vector<Live> live_;
  std::vector<std::uint32_t> free_places_;
  std::size_t num_live_ = 0;
  std::uint64_t num_open_ = 0;     // requests of no client that have not ended
  std::uint64_t num_pending_ = 0;  // requests that have not been taken
  bool closed_over_ = false;
  ReplayProgress progress_;
};

}  // namespace kvrm
