// SPDX-License-Identifier: Apache-2.0
// KvWorld: KvCache and StepBuilder driven directly, by every verb at every point that their
// contract allows, with up to three steps in flight.
//
// Simulated: a device whose copies land when they like (SimDevice), an executor that runs a step
// layer by layer at any moment after it was committed (SimExecutor). Faults: steps given up, copies
// late, reordered and made twice, mappings refused, sequences ended while their row is built.
//
// Checked after every operation: the cache's own invariants (K1 to K3), limbo empty when nothing is
// in flight. At every commit: fences, what a step writes or copies is touched by no unretired step
// of anyone else (K4), host blocks included. At every prefix hit: no step in flight writes the
// blocks (K6). At the end of every step: what each row saw is what its history says (K7). And
// StepVerifier is told what a descriptor log would hold, as it happens: it must find nothing to
// object to.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/rng.h"
#include "kv/kv_cache.h"
#include "sim/history.h"
#include "sim/sim_device.h"
#include "sim/sim_executor.h"
#include "sim/world.h"
#include "step/step_builder.h"
#include "step/step_verifier.h"

namespace kvrm {

struct KvScenario {
  KvCacheOptions cache;
  SimDeviceOptions device;
  std::uint32_t depth = 2;  // most steps committed and not retired
  std::uint32_t max_step_tokens = 256;
  std::uint32_t abandon_percent = 0;
  std::uint32_t end_inside_percent = 0;  // rows whose sequence ends while the step is built
  std::uint32_t interlude_percent = 0;   // verbs between the parts of a step
  std::uint32_t key_bits = 64;           // of what tells the keys of siblings apart
};
KvScenario RandomKvScenario(std::uint64_t seed);
std::string ToString(const KvScenario& scenario);

class KvWorld {
 public:
  enum Kind : std::uint8_t {
    kStep,
    kRun,
    kRetire,
    kTick,
    kOpen,
    kOpenCached,
    kFork,
    kReserve,
    kExtend,
    kTruncate,
    kTrim,
    kRelease,
    kPublish,
    kDropCached,
    kPark,
    kResume,
    kDiscard,
    kNumKinds
  };
  // The swarm: each schedule has its own mix of operations.
  static std::vector<std::uint8_t> OpMix(std::uint64_t seed);

  KvWorld(std::uint64_t seed, SimTrace trace) : KvWorld(RandomKvScenario(seed), trace) {}
  KvWorld(const KvScenario& scenario, SimTrace trace);

  void Do(const SimOp& op);
  // Liveness: faults end, everything that was begun ends, and nothing is left.
  void Finish();
  SimTotals totals() const;

  // The verbs, on a sequence of the world's choice or a given one. They do nothing where the
  // contract forbids them.
  void Open(std::uint32_t s, std::uint32_t reserve_tokens, std::uint32_t family);
  void OpenCached(std::uint32_t s, std::uint32_t num_tokens, std::uint32_t family);
  // Tokens that are the same for all up to `own_from`, and from there on always the same for `s`.
  void OpenFixed(std::uint32_t s, std::uint32_t num_tokens, std::uint32_t own_from);
  void Fork(std::uint32_t child, std::uint32_t parent, std::uint32_t num_tokens);
  void Reserve(std::uint32_t s, std::uint32_t num_tokens);
  void Truncate(std::uint32_t s, std::uint32_t num_tokens);
  void Trim(std::uint32_t s, std::uint32_t from, std::uint32_t to);
  void Release(std::uint32_t s);
  void Publish(std::uint32_t s);
  void Park(std::uint32_t s);
  void Resume(std::uint32_t parked, std::uint32_t s, std::uint32_t reserve_tokens);
  void Discard(std::uint32_t parked);
  bool Extend(std::uint32_t s, std::uint32_t num_tokens);
  bool Begin();
  void Plan();
  bool AddRow(std::uint32_t s, std::uint32_t num_tokens);
  void Commit();
  void Abandon();
  void RunLayer();
  void Retire();
  void Check();

  KvCache& cache() { return cache_; }
  SimDevice& device() { return device_; }
  bool is_open(std::uint32_t s) const { return seqs_[s].open; }
  std::uint32_t length(std::uint32_t s) const { return seqs_[s].length; }
  std::uint32_t target(std::uint32_t s) const { return seqs_[s].target; }
  std::uint32_t max_tokens() const;
  // Of everything that decides what can happen next, the content of homes and windows included;
  // numbers of lives and epochs left out.
  std::uint64_t StateHash() const;

 private:
  struct Seq {
    explicit Seq(std::uint32_t block_tokens) : history(block_tokens) {}
    bool open = false;
    std::uint64_t life = 0;  // another one for each Open and Fork
    std::uint32_t family = 0;
    std::uint32_t own_from = 0;  // tokens from here on are this life's alone
    std::uint64_t own_seed = 0;  // what tells them from others; the life's number
    std::uint32_t length = 0;    // of committed steps; `history` is ahead while a row is built
    std::uint32_t target = 0;
    std::uint32_t reserved = 0;  // tokens that Extend owes
    bool in_step = false;        // its row is in the step being built
    bool ended_in_step = false;  // the identity is, though its sequence has ended
    History history;
  };
  struct Row {
    std::uint32_t seq = 0;
    std::uint64_t life = 0;
    std::uint64_t digest = 0;  // what it must see
  };
  struct Step {
    StepView view;
    std::vector<Row> rows;
    std::uint32_t num_layers_run = 0;
    bool started = false;
    std::uint64_t num_flights = 0;  // of the device, when it was launched
    // By block, windows included: the life that reads it (many: ~0), and whether it is written.
    std::vector<std::uint64_t> reader;
    std::vector<bool> written;
  };

  std::int32_t TokenAt(const Seq& seq, std::uint32_t position) const;
  std::vector<std::int32_t> PlannedTokens(const Seq& seq, std::uint32_t num_tokens) const;
  std::vector<PrefixKey> Keys(std::span<const std::int32_t> tokens) const;
  std::uint32_t BlocksFor(std::uint32_t num_tokens) const;
  std::uint32_t RandomTokens(Rng& rng) const;
  bool CanEdit(std::uint32_t s) const {
    return seqs_[s].open && !seqs_[s].in_step && !planned_ && !cache_.is_resuming(SeqId{s});
  }
  std::uint32_t PickParked(Rng& rng) const;
  std::uint32_t Pick(bool open, Rng& rng) const;
  // A prefix of `tokens`, as far as it is found; it goes on as `like` would.
  void OpenLike(std::uint32_t s, const std::vector<std::int32_t>& tokens, const Seq& like);
  std::uint64_t ContentHash(std::uint32_t s) const;
  StepLogHeader LogHeader() const;
  void Tell(const StepLogRecord& record);
  void TellLanded(const Step& step, std::uint32_t deadline);
  void DoVerb(std::uint8_t kind, Rng& rng);
  void DoStep(Rng& rng);
  void Interlude(Rng& rng);
  void AddRows(std::vector<std::uint32_t>& want, Rng& rng);
  void NoteTouched(Step& step) const;
  void CheckFences(const Step& next) const;
  static void CheckHostFences(const Step& step, const TransferGroup& next);
  void CheckSealed(std::uint32_t s) const;
  void CheckRows(const Step& step) const;
  void RunAll();
  void FinishSequence(std::uint32_t s);
  void FinishParked();
  bool EndYoungestBut(std::uint32_t s);
  void Note(const std::string& text) const {
    if (trace_) trace_.Line(text);
  }

  const KvScenario scenario_;
  const SimTrace trace_;
  Rng device_rng_{0};
  SimDevice device_;
  KvCache cache_;
  StepLimits limits_;
  StepBuilder builder_;
  SimExecutor executor_;
  StepVerifier verifier_;
  std::vector<Seq> seqs_;
  std::vector<Seq> parked_;  // by ParkedId
  std::deque<Step> steps_;   // committed, not retired
  Step building_;
  bool is_building_ = false;
  bool planned_ = false;
  StepId last_flight_{};
  StepId abandoned_{};  // a given-up step of this epoch may have left planned moves
  std::uint64_t num_lives_ = 0;
  std::uint64_t num_rows_ = 0;
  std::uint64_t num_steps_ = 0;
};

}  // namespace kvrm
