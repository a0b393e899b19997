// SPDX-License-Identifier: Apache-2.0
// KvModel: KvCache driven by random operations against a slow, obvious model. Tests only.
//
// What stands behind the cache here: a device whose copies land at any moment up to Wait, in any
// order; an executor that runs a step at any moment after it was committed and landed, up to
// `depth` steps after the host planned it. What is compared, after every operation:
//
//   books    held, promised and live figures against counts kept per sequence (only without
//            sharing, where they are sums); conservation; the cache's own CheckInvariants
//   content  (K7) the executor writes a stamp into each slot of the descriptor, then reads every
//            position of every row through the descriptor's runs. A stamp is a hash of all tokens
//            up to its position, so a block that is wrong, stale, reused, not yet landed or another
//            sequence's shows at once
//   fences   (K4) what a step writes or copies into is touched by no unretired step of anyone else
//   credit   an Extend within a sequence's credit succeeds, and no call succeeds that the books
//            do not allow
//   waits    with nothing else to do, every row that waits is served in the end
//
// A violation aborts through CHECK, so that the same code serves tests, death tests and libFuzzer.
// Not covered: more than one thread.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/rng.h"
#include "kv/kv_cache.h"
#include "kv/kv_model_device.h"
#include "step/step_builder.h"
#include "step/step_log.h"

namespace kvrm {

struct KvModelOptions {
  std::uint32_t num_blocks = 32;  // sentinel included; static views: as many as they need
  std::uint32_t max_seqs = 4;
  std::uint32_t max_blocks_per_seq = 0;  // 0: all of the pool
  std::uint32_t max_runs = 4;
  std::uint32_t max_groups = 4;
  std::uint32_t max_move_blocks = 8;
  std::uint32_t depth = 2;  // most steps committed and not retired
  KvView view = KvView::kExtents;
  PlacementPolicy placement = PlacementPolicy::kInPlace;
  std::uint64_t placement_seed = 0;
  std::uint32_t host_blocks = 0;
  std::uint32_t max_parked = 0;
  bool sharing = false;     // forks, prefix hits and trims as well
  bool short_keys = false;  // first blocks of different content have one name
  bool check_books = true;
  bool check_fences = true;
  bool check_content = true;
  // Told what a descriptor log would hold, for StepVerifier.
  std::function<void(const StepLogRecord&)> on_record = {};
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
      : options_(Resolved(options)),
        choices_(choices),
        device_(choices),
        cache_(CacheOptions(options_), device_),
        builder_(Limits(options_), options_.depth),
        seqs_(options_.max_seqs),
        parked_(cache_.options().max_parked) {}

  KvCache& cache() { return cache_; }
  std::uint32_t max_tokens() const { return options_.max_blocks_per_seq * kBlockTokens; }
  std::uint64_t num_executed() const { return num_executed_; }
  StepLogHeader log_header() const {
    const std::uint64_t num_blocks = cache_.memory().size() / kLayout.block_bytes();
    return {.limits = Limits(options_),
            .layout = kLayout,
            .num_pool_blocks = options_.num_blocks,
            .num_window_blocks = static_cast<std::uint32_t>(num_blocks) - options_.num_blocks,
            .num_layer_blocks = static_cast<std::uint32_t>(cache_.layer_buffers().size() /
                                                           (2 * kLayout.layer_bytes())),
            .num_lanes = options_.max_seqs,
            .lane_blocks = options_.max_blocks_per_seq,
            .ring_entries = options_.depth,
            .num_host_blocks = cache_.options().host_blocks,
            .max_parked = cache_.options().max_parked,
            .has_lives = true,
            .view = KvViewName(options_.view),
            .placement = PlacementPolicyName(options_.placement)};
  }
  bool is_open(std::uint32_t s) const { return seqs_[s].open; }
  std::uint32_t length(std::uint32_t s) const { return seqs_[s].length(); }

  // One operation of the random mix.
  void RandomOp() {
    const std::uint32_t seq = choices_.Below(options_.max_seqs);
    const std::uint32_t kind = choices_.Below(options_.host_blocks > 0 ? 40 : 36);
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
    } else if (kind < 32) {
      Retire();
    } else if (kind >= 36) {
      RandomParking(kind, seq);
    } else if (options_.sharing) {
      RandomSharing(kind, seq);
    }
    Check();
  }

  void TryOpen(std::uint32_t s, std::uint32_t reserve_tokens) {
    Seq seq;
    seq.open = true;
    seq.life = ++num_lives_;
    seq.reserved = Blocks(reserve_tokens);
    const KvStats before = cache_.stats();
    bool opened = false;
    if (options_.sharing && choices_.Chance(70)) {
      seq.prompt = choices_.Below(3);
      seq.num_scripted = choices_.Below(std::min(max_tokens(), 8 * kBlockTokens) + 1);
      opened = OpenCached(s, seq, reserve_tokens);
    } else {
      opened = cache_.Open(SeqId{s}, reserve_tokens);
    }
    if (options_.check_books) {
      const std::uint32_t spare = before.num_free + before.num_cached - before.num_promised;
      const std::uint32_t most = std::max(seq.reserved, Blocks(seq.num_scripted));
      if (seq.num_scripted == 0) CHECK(opened == (seq.reserved <= spare));
      if (!opened) CHECK(most > spare);
    }
    if (!opened) return;
    Tell({.kind = StepLogKind::kOpened,
          .opened = {.seq = SeqId{s},
                     .num_tokens = seq.length(),
                     .request = seq.life,
                     .tokens = seq.tokens}});
    seqs_[s] = std::move(seq);
  }
  void TryReserve(std::uint32_t s, std::uint32_t reserve_tokens) {
    Seq& seq = seqs_[s];
    const std::uint32_t reserved = std::max(seq.reserved, Blocks(reserve_tokens));
    const std::uint32_t held = Held(s);
    const KvStats before = cache_.stats();
    const std::uint32_t more = std::max(reserved, held) - std::max(seq.reserved, held);
    const bool done = cache_.Reserve(SeqId{s}, reserve_tokens);
    if (options_.check_books && !options_.sharing)
      CHECK(done == (more + before.num_promised <= before.num_free + before.num_cached));
    if (done) seq.reserved = reserved;
  }
  bool TryExtend(std::uint32_t s, std::uint32_t num_tokens) {
    Seq& seq = seqs_[s];
    const std::uint32_t held = Held(s);
    const std::uint32_t more = std::max(Blocks(num_tokens), held) - held;
    const std::uint32_t credit = std::max(seq.reserved, held) - held;
    const KvStats before = cache_.stats();
    const bool extended = cache_.Extend(SeqId{s}, num_tokens);
    // A lane waits for what its identity held before; a shared block needs a copy.
    const bool may_wait = IsStatic(options_.view) && !steps_.empty();
    if (!may_wait && before.num_shared == 0) CHECK(extended || more > credit);  // P5
    if (options_.check_books && !options_.sharing) {
      const bool fits =
          more == 0 || more + before.num_promised - credit <= before.num_free + before.num_cached;
      CHECK(extended ? fits : (may_wait || !fits));
    }
    if (extended) seq.target = std::max(seq.target, num_tokens);
    return extended;
  }
  void Truncate(std::uint32_t s, std::uint32_t num_tokens) {
    Seq& seq = seqs_[s];
    if (cache_.is_resuming(SeqId{s})) return;
    const std::uint32_t last = num_tokens / kBlockTokens;
    if (num_tokens < seq.length() && num_tokens % kBlockTokens != 0 && seq.IsDropped(last)) return;
    cache_.Truncate(SeqId{s}, num_tokens);
    seq.target = num_tokens;
    if (seq.length() > num_tokens) {
      seq.tokens.resize(num_tokens);
      seq.stamps.resize(num_tokens);
      seq.num_scripted = std::min(seq.num_scripted, num_tokens);  // Another text from here on.
    }
    // The promise may have been given up with what was shared.
    if (options_.sharing) seq.reserved = 0;
    seq.dropped.resize(std::min<std::size_t>(seq.dropped.size(), Blocks(num_tokens)));
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
      const std::uint32_t length = seqs_[s].length();
      const std::uint32_t most = std::min(max_tokens() - length, budget);
      if (most == 0) continue;
      const std::uint32_t more =
          1 + choices_.Below(std::min(most, choices_.Chance(50) ? 1u : 3 * kBlockTokens));
      if (!TryExtend(s, length + more)) continue;
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
  // False when the row must wait: too many runs, a copy, a window.
  bool AddRow(std::uint32_t s, std::uint32_t num_tokens) {
    const Seq& seq = seqs_[s];
    const std::uint32_t length = seq.length();
    Row row = {.seq = s,
               .life = seq.life,
               .tokens = seq.tokens,
               .stamps = seq.stamps,
               .dropped = seq.dropped};
    for (std::uint32_t t = length; t < length + num_tokens; ++t)
      Append(row.tokens, row.stamps, NextToken(seq, t));
    if (!cache_.AddRow(builder_, {.seq = SeqId{s},
                                  .first_position = length,
                                  .tokens = std::span(row.tokens).subspan(length)}))
      return false;
    building_.rows.push_back(std::move(row));
    return true;
  }
  void Commit() {
    building_.view = builder_.Commit(0, options_.max_seqs);
    Tell({.kind = StepLogKind::kStep, .view = building_.view});
    NoteTouches();
    if (options_.check_fences) CheckFences();
    cache_.Launch(building_.view);
    // It waits for the copies of the steps before.
    TellOf(StepLogKind::kLanded, StepId{Index(building_.view.header->step) - 1});
    if (std::ranges::any_of(building_.view.groups,
                            [](const auto& g) { return g.kind == GroupKind::kBlocks; })) {
      last_flight_ = building_.view.header->step;
    }
    for (const Row& row : building_.rows) {
      Seq& seq = seqs_[row.seq];
      if (seq.life != row.life) continue;
      seq.tokens = row.tokens;
      seq.stamps = row.stamps;
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
    if (last_flight_ <= step->view.header->step) {
      cache_.Land();
      if (device_.idle()) TellOf(StepLogKind::kLanded, step->view.header->step);
    }
    TellOf(StepLogKind::kLatched, step->view.header->step);
    const StepView& view = step->view;
    for (std::uint32_t r = 0; r < view.header->num_rows; ++r) {
      const Row& row = step->rows[r];
      for (std::uint32_t t = view.row_start[r]; t < view.row_start[r + 1]; ++t) {
        const std::uint64_t stamp = row.stamps[static_cast<std::size_t>(view.positions[t])];
        *Slot(Index(view.slots[t])) = stamp;
        if (!view.mirrors.empty()) *Slot(Index(view.mirrors[t])) = stamp;
      }
    }
    Gather(view);
    for (std::uint32_t r = 0; r < view.header->num_rows && options_.check_content; ++r)
      CheckRow(view, r, step->rows[r]);
    step->executed = true;
    ++num_executed_;
  }
  void Retire() {
    if (steps_.empty() || !steps_.front().executed) return;
    Tell({.kind = StepLogKind::kRetired,
          .step = steps_.front().view.header->step,
          .value = StepBuilder::Checksum(steps_.front().view)});
    cache_.Retire(builder_.Retire());
    steps_.pop_front();
  }

  // Runs and retires everything in flight, serves who waits, ends every sequence: every block is
  // free again.
  void Drain() {
    Settle();
    for (std::uint32_t s = 0; s < options_.max_seqs; ++s) {
      if (seqs_[s].open) Serve(s);
    }
    for (std::uint32_t s = 0; s < options_.max_seqs; ++s) {
      if (seqs_[s].open) Release(s);
    }
    for (std::uint32_t p = 0; p < parked_.size(); ++p) {
      if (parked_[p].open) Discard(p);
    }
    // A step without rows carries what an abandoned step had planned.
    EmptyStep();
    cache_.DropCached();
    Check();
    if (options_.check_books) CHECK(cache_.stats().num_free == options_.num_blocks - 1);
    if (options_.check_books) CHECK(cache_.stats().num_host_free == cache_.options().host_blocks);
  }

  // What the sequence has written leaves the pool, in the steps to come.
  void Park(std::uint32_t s) {
    Seq& seq = seqs_[s];
    const bool was_resuming = cache_.is_resuming(SeqId{s});
    const KvStats before = cache_.stats();
    const auto parked = cache_.Park(SeqId{s});
    if (options_.check_books) {
      const bool has_place =
          before.num_parking + before.num_parked + before.num_resuming < parked_.size();
      const bool has_room = HostBlocks(seq) > 0 && HostBlocks(seq) <= before.num_host_free;
      CHECK(parked.has_value() ==
            (was_resuming || (has_place && has_room && options_.max_move_blocks > 0)));
    }
    if (!parked) return;
    Tell({.kind = StepLogKind::kParked, .value = Index(*parked), .seq = SeqId{s}});
    CHECK(!parked_[Index(*parked)].open);
    seq.target = seq.length();
    seq.reserved = 0;
    seq.dropped.resize(std::min<std::size_t>(seq.dropped.size(), Blocks(seq.length())));
    parked_[Index(*parked)] = std::exchange(seq, Seq{});
  }
  void TryResume(std::uint32_t p, std::uint32_t s, std::uint32_t reserve_tokens) {
    Seq& seq = parked_[p];
    const KvStats before = cache_.stats();
    const bool is_there = cache_.is_parked(ParkedId{p});
    const std::vector<PrefixKey> keys =
        options_.sharing ? Keys(seq.tokens) : std::vector<PrefixKey>();
    const bool resumed = cache_.Resume(ParkedId{p}, SeqId{s}, seq.tokens, keys, reserve_tokens);
    if (options_.check_books && !options_.sharing) {
      const std::uint32_t need = std::max(Blocks(reserve_tokens), Blocks(seq.length()));
      CHECK(resumed ==
            (is_there && need + before.num_promised <= before.num_free + before.num_cached));
    }
    if (!resumed) return;
    seq.life = ++num_lives_;
    seq.reserved = Blocks(reserve_tokens);
    Tell({.kind = StepLogKind::kResumed, .value = p, .seq = SeqId{s}});
    seqs_[s] = std::exchange(seq, Seq{});
    ++num_resumed_;
  }
  void Discard(std::uint32_t p) {
    cache_.Discard(ParkedId{p});
    parked_[p] = Seq{};
  }
  std::uint64_t num_resumed() const { return num_resumed_; }

  void Check() const {
    if (!options_.check_books) return;
    cache_.CheckInvariants();
    const KvStats stats = cache_.stats();
    CHECK(stats.num_free + stats.num_held + stats.num_cached + stats.num_limbo == stats.num_blocks);
    // Nothing waits for nothing: without a step in flight or abandoned, limbo is empty.
    if (steps_.empty() && abandoned_ != builder_.building()) CHECK(stats.num_limbo == 0);
    if (options_.sharing) return;
    std::uint32_t num_held = 0;
    std::uint32_t num_promised = 0;
    std::uint64_t num_live = 0;
    for (std::uint32_t s = 0; s < options_.max_seqs; ++s) {
      const std::uint32_t held = Held(s);
      num_held += held;
      num_promised += std::max(seqs_[s].reserved, held) - held;
      num_live += seqs_[s].length();
    }
    CHECK(stats.num_held == num_held + stats.num_leaving);
    std::uint32_t num_host = 0;
    for (const Seq& seq : parked_)
      num_host += HostBlocks(seq);
    if (stats.num_resuming == 0) CHECK(stats.num_host_held == num_host);
    CHECK(stats.num_host_held >= num_host);
    CHECK(stats.num_promised == num_promised);
    CHECK(stats.live_bytes >= num_live * kLayout.token_bytes());
    if (stats.num_leaving == 0) CHECK(stats.live_bytes == num_live * kLayout.token_bytes());
    if (stats.window_bytes == 0)
      CHECK(stats.mapped_bytes == stats.num_held * kLayout.block_bytes());
  }

 private:
  struct Seq {
    bool open = false;
    std::uint64_t life = 0;  // another one at each Open
    std::uint32_t target = 0;
    std::uint32_t reserved = 0;  // blocks
    std::uint32_t prompt = 0;
    std::uint32_t num_scripted = 0;     // tokens of the prompt; what follows is its own
    std::vector<std::int32_t> tokens;   // written by committed steps
    std::vector<std::uint64_t> stamps;  // of the same positions
    std::vector<bool> dropped;          // of each block: trimmed
    std::uint32_t length() const { return static_cast<std::uint32_t>(tokens.size()); }
    bool IsDropped(std::uint32_t block) const { return block < dropped.size() && dropped[block]; }
  };
  struct Row {
    std::uint32_t seq = 0;
    std::uint64_t life = 0;
    std::vector<std::int32_t> tokens;   // of each position, after the step
    std::vector<std::uint64_t> stamps;  // the same
    std::vector<bool> dropped;
  };
  // Slots [begin, end), where they really lie, that a step reads or writes.
  struct Touch {
    std::uint64_t life = 0;
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
    bool write = false;
  };
  struct Step {
    StepView view;
    std::vector<Row> rows;
    std::vector<Touch> touches;
    bool executed = false;
  };

  void Tell(const StepLogRecord& record) const {
    if (options_.on_record) options_.on_record(record);
  }
  void TellOf(StepLogKind kind, StepId step) const { Tell({.kind = kind, .step = step}); }

  static bool IsStatic(KvView view) {
    return view == KvView::kStatic || view == KvView::kStaticPadded ||
           view == KvView::kStaticBucketed;
  }
  static KvModelOptions Resolved(KvModelOptions options) {
    if (options.max_blocks_per_seq == 0) options.max_blocks_per_seq = options.num_blocks - 1;
    if (IsStatic(options.view)) {
      options.host_blocks = 0;
      options.num_blocks = static_cast<std::uint32_t>(
          KvCache::MinBlocks(options.view, options.max_seqs, options.max_blocks_per_seq));
    }
    return options;
  }
  static KvCacheOptions CacheOptions(const KvModelOptions& options) {
    return {.layout = kLayout,
            .num_blocks = options.num_blocks,
            .max_seqs = options.max_seqs,
            .max_blocks_per_seq = options.max_blocks_per_seq,
            .max_runs = options.max_runs,
            .max_groups = options.max_groups,
            .max_move_bytes_per_step = options.max_move_blocks * kLayout.block_bytes(),
            .view = options.view,
            .placement = options.placement,
            .placement_seed = options.placement_seed,
            .prefix_cache = options.sharing,
            .host_blocks = options.host_blocks,
            .max_parked = options.max_parked};
  }
  static StepLimits Limits(const KvModelOptions& options) {
    StepLimits limits = {.max_rows = options.max_seqs,
                         .max_tokens = kMaxStepTokens,
                         .max_runs = options.max_runs,
                         .max_groups = options.max_groups,
                         .block_tokens = kBlockTokens};
    KvCache::RaiseLimits(CacheOptions(options), &limits);
    return limits;
  }
  static std::uint32_t Blocks(std::uint32_t num_tokens) {
    return (num_tokens + kBlockTokens - 1) / kBlockTokens;
  }
  // That a parked history takes.
  static std::uint32_t HostBlocks(const Seq& seq) {
    std::uint32_t count = 0;
    for (std::uint32_t b = 0; b < Blocks(seq.length()); ++b)
      count += seq.IsDropped(b) ? 0u : 1u;
    return count;
  }
  static void Append(std::vector<std::int32_t>& tokens, std::vector<std::uint64_t>& stamps,
                     std::int32_t token) {
    const std::uint64_t before = stamps.empty() ? 1 : stamps.back();
    tokens.push_back(token);
    stamps.push_back(Mix64(before ^ Mix64(static_cast<std::uint64_t>(token))));
  }
  std::uint32_t RandomTokens() {
    return choices_.Chance(70) ? 0 : choices_.Below(max_tokens() / 3 + 1);
  }
  // Blocks the sequence has places for, holes included.
  std::uint32_t Held(std::uint32_t s) const {
    std::uint32_t sum = 0;
    for (const Extent& run : cache_.home(SeqId{s}))
      sum += run.num_blocks;
    return seqs_[s].open ? sum : 0;
  }
  // The three prompts agree in their first block and a half, so that prefixes end in many places.
  std::int32_t NextToken(const Seq& seq, std::uint32_t position) {
    if (position >= seq.num_scripted)
      return static_cast<std::int32_t>(Mix64(++num_own_tokens_) % 1000000000 + 1000);
    return position < kBlockTokens * 3 / 2 ? 7 : static_cast<std::int32_t>(10 + seq.prompt);
  }
  // Names of the full blocks of `tokens`. Short ones: only whether the tokens agree tells two first
  // blocks apart.
  std::vector<PrefixKey> Keys(std::span<const std::int32_t> tokens) const {
    std::vector<PrefixKey> keys;
    PrefixKey parent = root_;
    for (std::size_t end = kBlockTokens; end <= tokens.size(); end += kBlockTokens) {
      parent = NextPrefixKey(parent, tokens.subspan(end - kBlockTokens, kBlockTokens));
      keys.push_back(parent);
    }
    if (options_.short_keys && !keys.empty()) keys[0] = {};
    return keys;
  }

  void RandomParking(std::uint32_t kind, std::uint32_t s) {
    const std::uint32_t p = choices_.Below(static_cast<std::uint32_t>(parked_.size()));
    if (kind == 36) {
      if (seqs_[s].open) Park(s);
    } else if (kind == 37) {
      if (parked_[p].open && choices_.Chance(20)) Discard(p);
    } else if (parked_[p].open && !seqs_[s].open) {
      TryResume(p, s, choices_.Chance(50) ? 0 : RandomTokens());
    }
  }
  void RandomSharing(std::uint32_t kind, std::uint32_t s) {
    Seq& seq = seqs_[s];
    if (!seq.open || (cache_.is_resuming(SeqId{s}) && kind < 34)) return;
    if (kind == 32) {
      const std::uint32_t child = choices_.Below(options_.max_seqs);
      if (!seqs_[child].open) Fork(child, s, choices_.Below(seq.length() + 1));
    } else if (kind == 33) {
      const std::uint32_t from = choices_.Below(seq.length() + 1);
      Trim(s, from, from + choices_.Below(seq.length() - from + 1));
    } else if (kind == 34) {
      cache_.Publish(SeqId{s}, seq.tokens, Keys(seq.tokens));
    } else if (choices_.Chance(5)) {
      cache_.DropCached();
    }
  }
  bool OpenCached(std::uint32_t s, Seq& seq, std::uint32_t reserve_tokens) {
    Seq wish = seq;
    for (std::uint32_t t = 0; t < seq.num_scripted; ++t)
      Append(wish.tokens, wish.stamps, NextToken(seq, t));
    const std::vector<PrefixKey> keys = Keys(wish.tokens);
    const auto found = cache_.OpenCached(SeqId{s}, wish.tokens, keys, reserve_tokens);
    if (!found) return false;
    CHECK(*found % kBlockTokens == 0 && *found <= keys.size() * kBlockTokens);
    seq.tokens.assign(wish.tokens.begin(), wish.tokens.begin() + *found);
    seq.stamps.assign(wish.stamps.begin(), wish.stamps.begin() + *found);
    seq.target = *found;
    return true;
  }
  void Fork(std::uint32_t child, std::uint32_t parent, std::uint32_t num_tokens) {
    const Seq& from = seqs_[parent];
    if (num_tokens % kBlockTokens != 0 && from.target != from.length()) return;
    const std::uint32_t reserve_tokens = RandomTokens();
    const KvStats before = cache_.stats();
    const bool forked = cache_.Fork(SeqId{child}, SeqId{parent}, num_tokens, reserve_tokens);
    const bool is_lost =
        num_tokens % kBlockTokens != 0 && from.IsDropped(num_tokens / kBlockTokens);
    const std::uint32_t most = std::max(Blocks(reserve_tokens), Blocks(num_tokens)) + 1;
    if (is_lost || IsStatic(options_.view)) {
      CHECK(!forked);
    } else if (most + before.num_promised <= before.num_free + before.num_cached) {
      CHECK(forked);
    }
    if (!forked) return;
    Seq seq = from;
    seq.life = ++num_lives_;
    Tell({.kind = StepLogKind::kOpened,
          .opened = {.seq = SeqId{child},
                     .parent = SeqId{parent},
                     .num_tokens = num_tokens,
                     .request = seq.life}});
    seq.target = num_tokens;
    seq.reserved = Blocks(reserve_tokens);
    seq.tokens.resize(num_tokens);
    seq.stamps.resize(num_tokens);
    seq.num_scripted = std::min(seq.num_scripted, num_tokens);
    seq.dropped.resize(std::min<std::size_t>(seq.dropped.size(), Blocks(num_tokens)));
    seqs_[child] = std::move(seq);
  }
  // Either every whole block inside the range is gone now, or nothing has changed.
  void Trim(std::uint32_t s, std::uint32_t from, std::uint32_t to) {
    Seq& seq = seqs_[s];
    cache_.Trim(SeqId{s}, from, to);
    Tell({.kind = StepLogKind::kTrimmed, .seq = SeqId{s}, .from = from, .to = to});
    std::vector<bool> dropped;
    for (const Extent& run : cache_.home(SeqId{s}))
      dropped.insert(dropped.end(), run.num_blocks, run.start == kSentinelBlock);
    const bool changed = dropped != seq.dropped &&
                         std::ranges::count(dropped, true) != std::ranges::count(seq.dropped, true);
    for (std::uint32_t b = 0; b < dropped.size(); ++b) {
      const bool inside = b >= Blocks(from) && b < to / kBlockTokens;
      CHECK(!options_.check_content || dropped[b] == (seq.IsDropped(b) || (changed && inside)));
    }
    seq.dropped = std::move(dropped);
  }

  std::uint64_t* Slot(std::uint64_t slot) {
    const std::size_t offset = device_.At(slot * sizeof(std::uint64_t));
    return reinterpret_cast<std::uint64_t*>(cache_.memory().data() + offset);
  }
  // The layer buffers of a model of one layer are one buffer.
  std::uint64_t* BufferSlot(std::uint64_t slot) {
    return reinterpret_cast<std::uint64_t*>(cache_.layer_buffers().data()) + slot;
  }
  void Gather(const StepView& view) {
    for (const TransferGroup& group : view.groups) {
      if (group.kind != GroupKind::kLayerSlices) continue;
      for (std::uint64_t i = 0; i < std::uint64_t{group.num_blocks} * kBlockTokens; ++i)
        *BufferSlot(Index(group.target) * kBlockTokens + i) =
            *Slot(Index(group.source) * kBlockTokens + i);
    }
  }
  void CheckRow(const StepView& view, std::uint32_t r, const Row& row) {
    const bool buffered = (view.header->flags & kStepLayerWindows) != 0;
    std::size_t position = 0;
    for (const Extent& run : view.RowRuns(r)) {
      for (std::uint64_t i = 0; i < std::uint64_t{run.num_blocks} * kBlockTokens; ++i, ++position) {
        if (position == row.stamps.size()) break;
        const bool is_dropped =
            position / kBlockTokens < row.dropped.size() && row.dropped[position / kBlockTokens];
        CHECK(is_dropped == (run.start == kSentinelBlock));
        if (is_dropped) continue;
        const std::uint64_t slot = Index(run.start) * std::uint64_t{kBlockTokens} + i;
        CHECK((buffered ? *BufferSlot(slot) : *Slot(slot)) == row.stamps[position]);  // K7
      }
    }
    CHECK(position == row.stamps.size());
  }

  // What the step about to be launched reads and writes.
  void NoteTouches() {
    const StepView& view = building_.view;
    const bool buffered = (view.header->flags & kStepLayerWindows) != 0;
    const auto note = [this](std::uint64_t life, std::uint64_t slot, std::uint64_t n, bool write) {
      const std::uint64_t begin = device_.At(slot * sizeof(std::uint64_t)) / sizeof(std::uint64_t);
      building_.touches.push_back({life, begin, begin + n, write});
    };
    for (std::uint32_t r = 0; r < view.header->num_rows; ++r) {
      const Row& row = building_.rows[r];
      for (std::uint32_t t = view.row_start[r]; t < view.row_start[r + 1]; ++t) {
        note(row.life, Index(view.slots[t]), 1, true);
        if (!view.mirrors.empty()) note(row.life, Index(view.mirrors[t]), 1, true);
      }
      std::uint64_t left = row.stamps.size();
      const std::span<const Extent> runs = buffered ? cache_.home(SeqId{row.seq}) : view.RowRuns(r);
      for (const Extent& run : runs) {
        for (std::uint32_t b = 0; b < run.num_blocks && left > 0; ++b) {
          const std::uint64_t count = std::min<std::uint64_t>(left, kBlockTokens);
          if (run.start != kSentinelBlock)
            note(row.life, (Index(run.start) + b) * std::uint64_t{kBlockTokens}, count, false);
          left -= count;
        }
      }
    }
  }
  // The step about to be launched against every step that has not retired.
  void CheckFences() const {
    for (const Step& step : steps_) {
      for (const TransferGroup& old : step.view.groups)
        CheckHostFences(old);
      for (const Touch& old : step.touches) {
        for (const Touch& touch : building_.touches) {
          const bool overlap = old.begin < touch.end && touch.begin < old.end;
          CHECK(!overlap || !touch.write || old.life == touch.life);  // K4
        }
        for (const TransferGroup& group : building_.view.groups) {
          if (group.kind != GroupKind::kBlocks) continue;
          // Numbers of host blocks are others than the pool's.
          const auto overlaps = [&](BlockId start) {
            const std::uint64_t begin = Index(start) * std::uint64_t{kBlockTokens};
            const std::uint64_t end = begin + std::uint64_t{group.num_blocks} * kBlockTokens;
            return old.begin < end && begin < old.end;
          };
          CHECK(group.target_tier != 0 || !overlaps(group.target));                // K4
          CHECK(group.source_tier != 0 || !old.write || !overlaps(group.source));  // P8
        }
      }
    }
  }
  // No host block that an unretired step copies from or into is filled anew.
  void CheckHostFences(const TransferGroup& old) const {
    for (const TransferGroup& group : building_.view.groups) {
      if (group.target_tier != 1) continue;
      const auto overlaps = [&group](BlockId start, std::uint32_t num_blocks) {
        return Index(start) < Index(group.target) + group.num_blocks &&
               Index(group.target) < Index(start) + num_blocks;
      };
      CHECK(old.source_tier != 1 || !overlaps(old.source, old.num_blocks));  // Y3
      CHECK(old.target_tier != 1 || !overlaps(old.target, old.num_blocks));  // Y3
    }
  }

  void Settle() {
    while (!steps_.empty()) {
      Execute();
      Retire();
      Check();
    }
  }
  void EmptyStep() {
    CHECK(Begin());
    Plan();
    Commit();
    Execute();
    Retire();
    Check();
  }
  // One more token, however often it must wait. Only a row with too many runs may wait for ever:
  // there may be no hole that helps; and the budget must allow one block.
  void Serve(std::uint32_t s) {
    if (length(s) == max_tokens() || options_.max_move_blocks == 0) return;
    const std::uint64_t overflows = cache_.stats().num_run_overflows;
    for (std::uint32_t tries = 0; tries < 1000; ++tries) {
      CHECK(Begin());
      const bool extended = TryExtend(s, length(s) + 1);
      Plan();
      const bool added = extended && AddRow(s, 1);
      Commit();
      Settle();
      if (added || !extended || cache_.stats().num_run_overflows > overflows) return;
    }
    CHECK(false);
  }

  const KvModelOptions options_;
  Choices& choices_;
  LaggingDevice device_;
  KvCache cache_;
  StepBuilder builder_;
  const PrefixKey root_ = PrefixRoot("model", kLayout, "");
  std::vector<Seq> seqs_;
  std::vector<Seq> parked_;
  std::deque<Step> steps_;  // committed, not retired
  Step building_;
  StepId last_flight_{};
  StepId abandoned_{};  // A given-up step of this epoch may have left planned moves.
  std::uint64_t num_lives_ = 0;
  std::uint64_t num_own_tokens_ = 0;
  std::uint64_t num_resumed_ = 0;
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
  if (choices.Chance(60)) {
    options.placement = PlacementPolicy::kScattered;
    options.placement_seed = 1 + choices.Below(1000);
  } else {
    options.placement = static_cast<PlacementPolicy>(
        choices.Below(static_cast<std::uint32_t>(PlacementPolicy::kScattered)));
  }
  options.view = static_cast<KvView>(choices.Below(kNumKvViews));
  if (choices.Chance(50)) options.max_blocks_per_seq = 1 + choices.Below(options.num_blocks - 1);
  options.sharing = choices.Chance(60);
  options.short_keys = options.sharing && choices.Chance(20);
  if (choices.Chance(60)) options.host_blocks = 1 + choices.Below(choices.Chance(50) ? 8 : 80);
  options.max_parked = 1 + choices.Below(6);
  return options;
}

}  // namespace kvrm
