// SPDX-License-Identifier: Apache-2.0
// KvModel: KvCache driven by random operations against a slow, obvious model. Tests only.
//
// What stands behind the cache here: a device whose copies land at any moment up to Wait, in any
// order; an executor that runs a step at any moment after it was committed and landed, up to
// `depth` steps after the host planned it. What is compared, after every operation:
//
//   books    held, promised and live figures against counts kept per sequence; conservation; the
//            cache's own CheckInvariants
//   content  (K7) the executor writes a stamp of (sequence, position, step) into each slot of the
//            descriptor, then reads every position of every row through the descriptor's runs: a
//            block that is wrong, stale, reused or not yet landed shows at once
//   fences   (K4) what a step writes or copies into is touched by no unretired step of anyone else
//   credit   an Extend within a sequence's credit succeeds, and no call succeeds that the books
//            do not allow
//
// A violation aborts through CHECK, so that the same code serves tests, death tests and libFuzzer.
// Not covered: several tiers, sharing, more than one thread.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <deque>
#include <span>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/rng.h"
#include "device/device.h"
#include "kv/kv_cache.h"
#include "step/step_builder.h"

namespace kvrm {

// Decisions, from a seed or from a fuzzer's bytes.
class Choices {
 public:
  explicit Choices(std::uint64_t seed) : rng_(seed, "kv model") {}
  explicit Choices(std::span<const std::uint8_t> bytes) : rng_(0), bytes_(bytes), replay_(true) {}

  // Uniform in [0, bound) from a seed; one byte, or two for a large bound, from a fuzzer.
  std::uint32_t Below(std::uint32_t bound) {
    if (!replay_) return static_cast<std::uint32_t>(rng_.Below(bound));
    std::uint32_t value = TakeByte();
    if (bound > 256) value = value << 8 | TakeByte();
    return value % bound;
  }
  bool Chance(std::uint32_t percent) { return Below(100) < percent; }
  bool exhausted() const { return replay_ && bytes_.empty(); }

 private:
  std::uint8_t TakeByte() {
    if (bytes_.empty()) return 0;
    const std::uint8_t byte = bytes_.front();
    bytes_ = bytes_.subspan(1);
    return byte;
  }
  Rng rng_;
  std::span<const std::uint8_t> bytes_;
  bool replay_ = false;
};

// Copies land one by one when ticked, in any order, and all by Wait.
class LaggingDevice final : public Device {
 public:
  explicit LaggingDevice(Choices& choices) : choices_(choices) {}

  std::span<std::byte> Reserve(std::size_t bytes, const char*) override {
    CHECK(memory_.empty());
    memory_.resize((bytes + sizeof(std::uint64_t) - 1) / sizeof(std::uint64_t));
    return std::as_writable_bytes(std::span(memory_)).first(bytes);
  }
  PoolMemory ReservePool(std::size_t pool_bytes, std::size_t window_bytes, bool mapped,
                         std::size_t) override {
    CHECK(!mapped);
    const std::span<std::byte> memory = Reserve(pool_bytes + window_bytes, "kv pool");
    return {memory.first(pool_bytes), memory.subspan(pool_bytes)};
  }
  bool Map(std::size_t, std::size_t, std::size_t) noexcept override { return false; }
  FlightId Submit(std::span<const CopyOp> copies) noexcept override {
    ++num_flights_;
    for (const CopyOp& copy : copies)
      waiting_.push_back({FlightId{num_flights_}, copy});
    return FlightId{num_flights_};
  }
  bool Landed(FlightId flight) noexcept override {
    return std::none_of(waiting_.begin(), waiting_.end(),
                        [flight](const auto& entry) { return entry.first == flight; });
  }
  void Wait(FlightId flight) noexcept override {
    while (!Landed(flight))
      Tick();
  }
  void Tick() {
    if (waiting_.empty()) return;
    const std::size_t which = choices_.Below(static_cast<std::uint32_t>(waiting_.size()));
    const CopyOp copy = waiting_[which].second;
    waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(which));
    std::memcpy(copy.target, copy.source, copy.bytes);
  }

 private:
  Choices& choices_;
  std::vector<std::uint64_t> memory_;
  std::vector<std::pair<FlightId, CopyOp>> waiting_;
  std::uint64_t num_flights_ = 0;
};

struct KvModelOptions {
  std::uint32_t num_blocks = 32;  // sentinel included
  std::uint32_t max_seqs = 4;
  std::uint32_t max_runs = 4;
  std::uint32_t max_groups = 4;
  std::uint32_t max_move_blocks = 8;
  std::uint32_t depth = 2;  // most steps committed and not retired
  std::uint64_t placement_seed = 0;
  bool check_books = true;
  bool check_fences = true;
};

class KvModel {
 public:
  static constexpr std::uint32_t kBlockTokens = 16;
  static constexpr std::uint32_t kMaxStepTokens = 512;
  // 16 tokens of 8 bytes: one stamp per slot.
  static constexpr KvLayout kLayout = {.num_layers = 1,
                                       .num_kv_heads = 1,
                                       .head_dim = 1,
                                       .block_tokens = kBlockTokens,
                                       .dtype = DType::kF32};

  KvModel(const KvModelOptions& options, Choices& choices)
      : options_(options),
        choices_(choices),
        device_(choices),
        cache_({.layout = kLayout,
                .num_blocks = options.num_blocks,
                .max_seqs = options.max_seqs,
                .max_blocks_per_seq = options.num_blocks,
                .max_runs = options.max_runs,
                .max_groups = options.max_groups,
                .max_move_bytes_per_step = options.max_move_blocks * kLayout.block_bytes(),
                .placement = options.placement_seed != 0 ? PlacementPolicy::kScattered
                                                         : PlacementPolicy::kInPlace,
                .placement_seed = options.placement_seed},
               device_),
        builder_({.max_rows = options.max_seqs,
                  .max_tokens = kMaxStepTokens,
                  .max_runs = options.max_runs,
                  .max_groups = options.max_groups,
                  .block_tokens = kBlockTokens},
                 options.depth),
        seqs_(options.max_seqs) {}

  KvCache& cache() { return cache_; }
  std::uint32_t max_tokens() const { return (options_.num_blocks - 1) * kBlockTokens; }
  std::uint64_t num_executed() const { return num_executed_; }
  bool is_open(std::uint32_t s) const { return seqs_[s].open; }
  std::uint32_t length(std::uint32_t s) const {
    return static_cast<std::uint32_t>(seqs_[s].stamps.size());
  }

  // One operation of the random mix.
  void RandomOp() {
    const std::uint32_t seq = choices_.Below(options_.max_seqs);
    const std::uint32_t kind = choices_.Below(32);
    if (kind < 4) {
      seqs_[seq].open ? TryReserve(seq, RandomTokens()) : TryOpen(seq, RandomTokens());
    } else if (kind < 5) {
      if (seqs_[seq].open) Truncate(seq, choices_.Below(seqs_[seq].target + 1));
    } else if (kind < 6) {
      if (seqs_[seq].open) Release(seq);
    } else if (kind < 16) {
      RandomStep();
    } else if (kind < 18) {
      device_.Tick();
    } else if (kind < 25) {
      Execute();
    } else {
      Retire();
    }
    Check();
  }

  void TryOpen(std::uint32_t s, std::uint32_t reserve_tokens) {
    Seq& seq = seqs_[s];
    const bool fits = Blocks(reserve_tokens) + Promised() <= cache_.stats().num_free;
    const bool opened = cache_.Open(SeqId{s}, reserve_tokens);
    if (options_.check_books) CHECK(opened == fits);
    if (!opened) return;
    seq = Seq{};
    seq.open = true;
    seq.life = ++num_lives_;
    seq.reserved = Blocks(reserve_tokens);
  }
  void TryReserve(std::uint32_t s, std::uint32_t reserve_tokens) {
    Seq& seq = seqs_[s];
    Seq after = seq;
    after.reserved = std::max(seq.reserved, Blocks(reserve_tokens));
    const bool fits = Promised() - seq.Credit() + after.Credit() <= cache_.stats().num_free;
    const bool reserved = cache_.Reserve(SeqId{s}, reserve_tokens);
    if (options_.check_books) CHECK(reserved == fits);
    if (reserved) seq = after;
  }
  bool TryExtend(std::uint32_t s, std::uint32_t num_tokens) {
    Seq& seq = seqs_[s];
    const std::uint32_t need = Blocks(num_tokens);
    const std::uint32_t more = need > seq.held ? need - seq.held : 0;
    const bool fits = more + Promised() - seq.Credit() <= cache_.stats().num_free || more == 0;
    const bool within_credit = more <= seq.Credit();
    const bool extended = cache_.Extend(SeqId{s}, num_tokens);
    CHECK(extended || !within_credit);  // P5
    if (options_.check_books) CHECK(extended == fits);
    if (!extended) return false;
    seq.held = std::max(seq.held, need);
    seq.target = std::max(seq.target, num_tokens);
    return true;
  }
  void Truncate(std::uint32_t s, std::uint32_t num_tokens) {
    Seq& seq = seqs_[s];
    cache_.Truncate(SeqId{s}, num_tokens);
    seq.target = num_tokens;
    if (seq.stamps.size() > num_tokens) seq.stamps.resize(num_tokens);
    seq.held = std::min(seq.held, std::max(Blocks(num_tokens), seq.reserved));
  }
  void Release(std::uint32_t s) {
    cache_.Release(SeqId{s});
    seqs_[s] = Seq{};
  }

  // A step of some rows that write some tokens, now and then given up, now and then with a row
  // whose sequence ends while the step is being built.
  void RandomStep() {
    if (!Begin()) return;
    std::array<std::uint32_t, 64> want = {};
    std::uint32_t budget = kMaxStepTokens;
    const bool plan_first = choices_.Chance(20);
    if (plan_first) Plan();
    for (std::uint32_t s = 0; s < options_.max_seqs; ++s) {
      if (!seqs_[s].open || choices_.Chance(30)) continue;
      const auto length = static_cast<std::uint32_t>(seqs_[s].stamps.size());
      const std::uint32_t most = std::min(max_tokens() - length, budget);
      if (most == 0) continue;
      const std::uint32_t more =
          1 + choices_.Below(std::min(most, choices_.Chance(50) ? 1u : 3 * kBlockTokens));
      if (length + more > seqs_[s].target && !TryExtend(s, length + more)) continue;
      want[s] = more;
      budget -= more;
    }
    if (!plan_first) Plan();
    for (std::uint32_t s = 0; s < options_.max_seqs; ++s) {
      if (want[s] > 0 && AddRow(s, want[s]) && choices_.Chance(3)) Release(s);
    }
    choices_.Chance(5) ? Abandon() : Commit();
  }

  bool Begin() {
    if (!builder_.Begin()) return false;
    building_ = Step{};
    return true;
  }
  void Plan() { cache_.Plan(builder_, builder_.building()); }
  // False when the sequence needs too many runs.
  bool AddRow(std::uint32_t s, std::uint32_t num_tokens) {
    Seq& seq = seqs_[s];
    const auto length = static_cast<std::uint32_t>(seq.stamps.size());
    Row row = {.seq = s, .life = seq.life, .first = length, .stamps = seq.stamps};
    for (std::uint32_t i = 0; i < num_tokens; ++i)
      row.stamps.push_back(Mix64(Mix64(seq.life << 20 | (length + i)) ^ ++num_stamps_));
    static constexpr std::array<std::int32_t, kMaxStepTokens> kTokens = {};
    if (!cache_.AddRow(builder_, {.seq = SeqId{s},
                                  .first_position = length,
                                  .tokens = std::span(kTokens).first(num_tokens)}))
      return false;
    building_.rows.push_back(std::move(row));
    return true;
  }
  void Commit() {
    building_.view = builder_.Commit(0, options_.max_seqs);
    if (options_.check_fences) CheckFences();
    cache_.Launch(building_.view);
    if (!building_.view.groups.empty()) last_flight_ = building_.view.header->step;
    for (const Row& row : building_.rows) {
      Seq& seq = seqs_[row.seq];
      if (seq.life == row.life) seq.stamps = row.stamps;
    }
    steps_.push_back(std::move(building_));
  }
  // Gives the step up and tells the cache, or builds it anew at once, in which case Plan notices.
  void Abandon() {
    builder_.Abandon();
    abandoned_ = builder_.building();
    if (choices_.Chance(50)) {
      cache_.Abandon();
    } else {
      CHECK(Begin());
      Plan();
      Commit();
    }
  }

  // Runs the oldest committed step that has not run.
  void Execute() {
    const auto step =
        std::find_if(steps_.begin(), steps_.end(), [](const Step& s) { return !s.executed; });
    if (step == steps_.end()) return;
    CHECK(builder_.Latch().header == step->view.header);
    if (last_flight_ <= step->view.header->step) cache_.Land();
    const StepView& view = step->view;
    for (std::uint32_t r = 0; r < view.header->num_rows; ++r) {
      const Row& row = step->rows[r];
      for (std::uint32_t t = view.row_start[r]; t < view.row_start[r + 1]; ++t)
        *Slot(Index(view.slots[t])) = row.stamps[static_cast<std::size_t>(view.positions[t])];
    }
    for (std::uint32_t r = 0; r < view.header->num_rows; ++r) {
      const Row& row = step->rows[r];
      std::size_t position = 0;
      for (const Extent& run : view.RowRuns(r)) {
        for (std::uint32_t i = 0; i < run.num_blocks * kBlockTokens; ++i, ++position) {
          if (position == row.stamps.size()) break;
          CHECK(*Slot(Index(run.start) * kBlockTokens + i) == row.stamps[position]);  // K7
        }
      }
      CHECK(position == row.stamps.size());
    }
    step->executed = true;
    ++num_executed_;
  }
  void Retire() {
    if (steps_.empty() || !steps_.front().executed) return;
    cache_.Retire(builder_.Retire());
    steps_.pop_front();
  }

  // Runs and retires everything in flight, ends every sequence: every block is free again.
  void Drain() {
    while (!steps_.empty()) {
      Execute();
      Retire();
      Check();
    }
    for (std::uint32_t s = 0; s < options_.max_seqs; ++s) {
      if (seqs_[s].open) Release(s);
    }
    // A step without rows carries what an abandoned step had planned.
    CHECK(Begin());
    Plan();
    Commit();
    Execute();
    Retire();
    Check();
    if (options_.check_books) CHECK(cache_.stats().num_free == options_.num_blocks - 1);
  }

  void Check() const {
    if (!options_.check_books) return;
    cache_.CheckInvariants();
    const KvStats stats = cache_.stats();
    std::uint32_t num_held = 0;
    std::uint64_t num_live = 0;
    for (const Seq& seq : seqs_) {
      num_held += seq.held;
      num_live += seq.stamps.size();
    }
    CHECK(stats.num_held == num_held);
    CHECK(stats.num_promised == Promised());
    CHECK(stats.live_bytes == num_live * kLayout.token_bytes());
    CHECK(stats.mapped_bytes == num_held * kLayout.block_bytes());
    CHECK(stats.num_free + stats.num_held + stats.num_limbo == stats.num_blocks);
    // Nothing waits for nothing: without a step in flight or abandoned, limbo is empty.
    if (steps_.empty() && abandoned_ != builder_.building()) CHECK(stats.num_limbo == 0);
  }

 private:
  struct Seq {
    bool open = false;
    std::uint64_t life = 0;  // another one at each Open
    std::uint32_t target = 0;
    std::uint32_t reserved = 0;         // blocks
    std::uint32_t held = 0;             // blocks
    std::vector<std::uint64_t> stamps;  // of each position written by committed steps
    std::uint32_t Credit() const { return reserved > held ? reserved - held : 0; }
  };
  struct Row {
    std::uint32_t seq = 0;
    std::uint64_t life = 0;
    std::uint32_t first = 0;
    std::vector<std::uint64_t> stamps;  // of each position, after the step
  };
  struct Step {
    StepView view;
    std::vector<Row> rows;
    bool executed = false;
  };

  static std::uint32_t Blocks(std::uint32_t num_tokens) {
    return (num_tokens + kBlockTokens - 1) / kBlockTokens;
  }
  std::uint32_t RandomTokens() {
    return choices_.Chance(70) ? 0 : choices_.Below(max_tokens() / 3 + 1);
  }
  std::uint32_t Promised() const {
    std::uint32_t sum = 0;
    for (const Seq& seq : seqs_)
      sum += seq.Credit();
    return sum;
  }
  std::uint64_t* Slot(std::uint32_t slot) {
    return reinterpret_cast<std::uint64_t*>(cache_.memory().data()) + slot;
  }

  // The step about to be launched against every step that has not retired.
  void CheckFences() const {
    const StepView& view = building_.view;
    for (const Step& step : steps_) {
      std::vector<std::uint64_t> reader(options_.num_blocks, 0);  // life that touches the block
      std::vector<bool> written(options_.num_blocks, false);
      for (std::uint32_t r = 0; r < step.view.header->num_rows; ++r) {
        for (const Extent& run : step.view.RowRuns(r)) {
          for (std::uint32_t b = 0; b < run.num_blocks; ++b)
            reader[Index(run.start) + b] = step.rows[r].life;
        }
        for (std::uint32_t t = step.view.row_start[r]; t < step.view.row_start[r + 1]; ++t)
          written[Index(step.view.slots[t]) / kBlockTokens] = true;
      }
      for (const TransferGroup& group : view.groups) {
        for (std::uint32_t b = 0; b < group.num_blocks; ++b) {
          CHECK(reader[Index(group.target) + b] == 0);  // K4
          CHECK(!written[Index(group.source) + b]);     // P8
        }
      }
      for (std::uint32_t r = 0; r < view.header->num_rows; ++r) {
        for (std::uint32_t t = view.row_start[r]; t < view.row_start[r + 1]; ++t) {
          const std::uint64_t life = reader[Index(view.slots[t]) / kBlockTokens];
          CHECK(life == 0 || life == building_.rows[r].life);  // K4
        }
      }
    }
  }

  const KvModelOptions options_;
  Choices& choices_;
  LaggingDevice device_;
  KvCache cache_;
  StepBuilder builder_;
  std::vector<Seq> seqs_;
  std::deque<Step> steps_;  // committed, not retired
  Step building_;
  StepId last_flight_{};
  StepId abandoned_{};  // A given-up step of this epoch may have left planned moves.
  std::uint64_t num_lives_ = 0;
  std::uint64_t num_stamps_ = 0;
  std::uint64_t num_executed_ = 0;
};

// The whole range of shapes that the tests and the fuzzer try.
inline KvModelOptions RandomKvModelOptions(Choices& choices) {
  KvModelOptions options;
  options.num_blocks = 3 + (choices.Chance(30) ? choices.Below(8) : choices.Below(90));
  options.max_seqs = 1 + choices.Below(8);
  options.max_runs = 2 + choices.Below(7);
  options.max_groups = 1 + choices.Below(8);
  options.max_move_blocks = choices.Below(16);
  options.depth = 1 + choices.Below(3);
  options.placement_seed = choices.Chance(60) ? 1 + choices.Below(1000) : 0;
  return options;
}

}  // namespace kvrm
