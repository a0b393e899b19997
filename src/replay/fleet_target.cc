// SPDX-License-Identifier: Apache-2.0
#include "replay/fleet_target.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <queue>
#include <utility>

#include "base/check.h"
#include "base/result.h"
#include "replay/cost_device.h"
#include "replay/engine_client.h"
#include "sim/sim_clock.h"

namespace kvrm {

struct FleetTarget::Replica {
  Replica(const DeviceProfile& profile, const EngineOptions& options, std::uint64_t seed)
      : engine(ProfileParts(profile, device, &probe, &clock, seed), options, clock) {}

  SimClock clock;
  CostDevice device;
  StepProbe probe;
  Engine engine;
};

class FleetTarget::Session {
 public:
  Session(FleetTarget& fleet, ReplayRun& run)
      : fleet_(fleet),
        run_(run),
        router_(fleet.options_.route, fleet.options_.num_replicas, run.workload()) {
    const EngineClientOptions options = {.vocab = {.first_id = 0, .vocab_size = kProfileVocab},
                                         .bytes_scale = ProfileBytesScale(fleet.profile_)};
    for (std::uint32_t i = 0; i < fleet.options_.num_replicas; ++i) {
      Replica& replica = *fleet.replicas_[i];
      EngineClientOptions each = options;
      each.replica = i;
      each.on_end = [this, i](std::size_t request) { router_.Ended(i, request); };
      seats_.push_back({.client = std::make_unique<EngineClient>(replica.engine, replica.probe,
                                                                 replica.clock, run, each)});
    }
  }

  void Run() {
    while (!run_.done()) {
      const std::int64_t now_ns = NextMoment();
      if (now_ns == kNever) throw StartError("no engine runs and no request is due");
      fleet_.now_ns_ = now_ns;
      TakeResults(now_ns);
      while (const std::optional<std::size_t> request = run_.TakeDue(now_ns))
        Route(*request);
      if (run_.ShouldCancel(now_ns)) is_cancelled_ = true;
      run_.ShowProgress(now_ns);
      for (const std::uint32_t replica : turns_)
        TakeTurn(replica, now_ns);
    }
  }

 private:
  struct Seat {
    std::unique_ptr<EngineClient> client;
    std::vector<std::size_t> inbox = {};  // routed, and not submitted yet
    bool is_busy = false;                 // it has a turn at the end of its step, or now
    bool heard = false;                   // something came of its last step
    std::uint32_t patience = kPatience;
  };
  struct StepEnd {
    std::int64_t at_ns = 0;
    std::uint32_t replica = 0;
    friend auto operator<=>(const StepEnd&, const StepEnd&) = default;
  };

  std::int64_t NextMoment() const {
    return std::min(run_.NextDue(), ends_.empty() ? kNever : ends_.top().at_ns);
  }

  void TakeResults(std::int64_t now_ns) {
    turns_.clear();
    while (!ends_.empty() && ends_.top().at_ns <= now_ns) {
      const std::uint32_t replica = ends_.top().replica;
      ends_.pop();
      seats_[replica].heard = seats_[replica].client->Poll();
      turns_.push_back(replica);
    }
  }

  void Route(std::size_t request) {
    const std::uint32_t replica = router_.Route(request);
    run_.OnRouted(request, replica);
    Seat& seat = seats_[replica];
    seat.inbox.push_back(request);
    if (!std::exchange(seat.is_busy, true)) turns_.push_back(replica);
  }

  void TakeTurn(std::uint32_t replica, std::int64_t now_ns) {
    Seat& seat = seats_[replica];
    SimClock& clock = fleet_.replicas_[replica]->clock;
    clock.Advance(now_ns - clock.NowNs());
    for (const std::size_t request : seat.inbox)
      seat.client->Submit(request);
    seat.inbox.clear();
    if (is_cancelled_) seat.client->CancelAll();
    const bool worked = seat.client->Step();
    const bool idle = !worked && seat.client->num_running() == 0;
    seat.patience = worked || seat.heard || idle ? kPatience : seat.patience - 1;
    if (seat.patience == 0) throw StartError("an engine makes no progress with requests waiting");
    seat.is_busy = !idle;
    if (seat.is_busy) ends_.push({clock.NowNs(), replica});
  }

  FleetTarget& fleet_;
  ReplayRun& run_;
  Router router_;
  std::vector<Seat> seats_;
  // The earliest first.
  std::priority_queue<StepEnd, std::vector<StepEnd>, std::greater<>> ends_;
  std::vector<std::uint32_t> turns_;  // replicas that begin a step at this moment
  bool is_cancelled_ = false;
};

FleetTarget::FleetTarget(const DeviceProfile& profile, const FleetOptions& options)
    : profile_(profile), options_(options) {
  CHECK(options.num_replicas >= 1 && options.num_replicas <= kMaxReplicas);
  for (std::uint32_t i = 0; i < options.num_replicas; ++i)
    replicas_.push_back(std::make_unique<Replica>(profile_, options.engine, options.seed + i));
}

FleetTarget::~FleetTarget() = default;

const Engine& FleetTarget::engine() const {
  return replicas_.front()->engine;
}

void FleetTarget::Run(ReplayRun& run) {
  CHECK(now_ns_ == 0);
  Session(*this, run).Run();
}

}  // namespace kvrm
