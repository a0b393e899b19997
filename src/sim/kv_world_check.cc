// SPDX-License-Identifier: Apache-2.0
// What KvWorld checks, and how its schedules end.
#include <algorithm>

#include "base/check.h"
#include "sim/kv_world.h"

namespace kvrm {
namespace {

constexpr std::uint64_t kMany = ~std::uint64_t{0};

}  // namespace

void KvWorld::Check() {
  cache_.CheckInvariants();
  const KvStats stats = cache_.stats();
  CHECK(stats.num_free + stats.num_held + stats.num_cached + stats.num_limbo == stats.num_blocks);
  // Nothing waits for nothing: without a step in flight or abandoned, limbo is empty.
  if (steps_.empty() && !is_building_ && abandoned_ != builder_.building())
    CHECK(stats.num_limbo == 0);
  for (std::uint32_t s = 0; s < seqs_.size(); ++s) {
    std::uint32_t num_blocks = 0;
    for (const Extent& run : cache_.home(SeqId{s}))
      num_blocks += run.num_blocks;
    CHECK(num_blocks >= BlocksFor(seqs_[s].target));
  }
}

// K7: what each row saw is what its history says.
void KvWorld::CheckRows(const Step& step) const {
  for (std::uint32_t row = 0; row < step.rows.size(); ++row)
    CHECK(executor_.digest(row) == step.rows[row].digest);
}

// K6: whoever else holds a block may count on its content: nobody is writing it, and unless it is
// on the move it is there.
void KvWorld::CheckSealed(std::uint32_t s) const {
  const Seq& seq = seqs_[s];
  const bool is_still = !is_building_ && abandoned_ != builder_.building() &&
                        device_.FirstLanded(device_.num_flights(), kAllDeadlines);
  for (const Extent& run : cache_.home(SeqId{s})) {
    for (std::uint32_t b = 0; b < run.num_blocks; ++b) {
      for (const Step& step : steps_)
        CHECK(run.start == kSentinelBlock || !step.written[Index(run.start) + b]);
    }
  }
  std::uint32_t p = 0;
  for (const Extent& run : cache_.home(SeqId{s})) {
    for (std::uint32_t b = 0; b < run.num_blocks && is_still; ++b) {
      for (std::uint32_t end = p + limits_.block_tokens; p < end && p < seq.length; ++p) {
        for (std::uint32_t layer = 0; layer < kSimLayers; ++layer)
          CHECK(executor_.Home(layer, BlockId{Index(run.start) + b})[p % limits_.block_tokens] ==
                seq.history.stamp(layer, p));  // P14
      }
    }
  }
}

// By block of the pool and of the windows, mapped ones as the pool's block that they show.
void KvWorld::NoteTouched(Step& step) const {
  const StepView& view = step.view;
  const auto num_blocks = cache_.memory().size() / scenario_.cache.layout.block_bytes();
  step.reader.assign(num_blocks, 0);
  step.written.assign(num_blocks, false);
  const auto read = [&](std::uint32_t block, std::uint64_t life) {
    std::uint64_t& reader = step.reader[block];
    reader = reader == 0 || reader == life ? life : kMany;
    const std::uint32_t first_window = scenario_.cache.num_blocks;
    if (!device_.is_mapped() || block < first_window) return;
    if (const auto shown = device_.Shown(block - first_window)) {
      std::uint64_t& shown_reader = step.reader[*shown];
      shown_reader = shown_reader == 0 || shown_reader == life ? life : kMany;
    }
  };
  const bool in_layers = (view.header->flags & kStepLayerWindows) != 0;
  for (std::uint32_t row = 0; row < view.header->num_rows; ++row) {
    const std::uint64_t life = step.rows[row].life;
    const auto last = static_cast<std::uint32_t>(view.positions[view.row_start[row + 1] - 1]);
    std::uint32_t left = in_layers ? 0 : last / limits_.block_tokens + 1;
    for (const Extent& run : view.RowRuns(row)) {
      const std::uint32_t count = std::min(left, run.num_blocks);
      left -= count;
      if (run.start == kSentinelBlock) continue;
      for (std::uint32_t b = 0; b < count; ++b)
        read(Index(run.start) + b, life);
    }
    for (std::uint32_t t = view.row_start[row]; t < view.row_start[row + 1]; ++t) {
      step.written[Index(view.slots[t]) / limits_.block_tokens] = true;
      read(Index(view.slots[t]) / limits_.block_tokens, life);
      if (!view.mirrors.empty()) step.written[Index(view.mirrors[t]) / limits_.block_tokens] = true;
    }
  }
  for (const TransferGroup& group : view.groups) {
    for (std::uint32_t b = 0; b < group.num_blocks; ++b) {
      if (group.kind == GroupKind::kLayerSlices) read(Index(group.source) + b, kMany);
    }
  }
}

// The step about to be launched against every step that has not retired.
void KvWorld::CheckFences(const Step& next) const {
  const StepView& view = next.view;
  for (const Step& step : steps_) {
    for (const TransferGroup& group : view.groups) {
      if (group.target_tier == 1) CheckHostFences(step, group);
      if (group.kind != GroupKind::kBlocks) continue;
      for (std::uint32_t b = 0; b < group.num_blocks; ++b) {
        if (group.target_tier == 0) {
          CHECK(step.reader[Index(group.target) + b] == 0);  // K4
          CHECK(!step.written[Index(group.target) + b]);     // K4
        }
        if (group.source_tier == 0) CHECK(!step.written[Index(group.source) + b]);  // P8
      }
    }
    for (std::uint32_t row = 0; row < view.header->num_rows; ++row) {
      for (std::uint32_t t = view.row_start[row]; t < view.row_start[row + 1]; ++t) {
        const std::uint64_t life = step.reader[Index(view.slots[t]) / limits_.block_tokens];
        CHECK(life == 0 || life == next.rows[row].life || life == kMany);  // K4
      }
    }
  }
}

// No host block that the step copies from or into is filled anew.
void KvWorld::CheckHostFences(const Step& step, const TransferGroup& next) {
  const auto overlaps = [&next](BlockId start, std::uint32_t num_blocks) {
    return Index(start) < Index(next.target) + next.num_blocks &&
           Index(next.target) < Index(start) + num_blocks;
  };
  for (const TransferGroup& group : step.view.groups) {
    CHECK(group.source_tier != 1 || !overlaps(group.source, group.num_blocks));  // Y3
    CHECK(group.target_tier != 1 || !overlaps(group.target, group.num_blocks));  // Y3
  }
}

// Which of the sequence's tokens are as they should be in its home and in its window. The stamps
// themselves would tell apart states that differ in garbage alone.
std::uint64_t KvWorld::ContentHash(std::uint32_t s) const {
  const Seq& seq = seqs_[s];
  const KvView view = scenario_.cache.view;
  const bool has_window = view == KvView::kStagedWindows || view == KvView::kMapped;
  const std::uint32_t window = scenario_.cache.num_blocks + s * scenario_.cache.max_blocks_per_seq;
  std::vector<BlockId> home;
  for (const Extent& run : cache_.home(SeqId{s})) {
    for (std::uint32_t b = 0; b < run.num_blocks; ++b)
      home.push_back(run.start == kSentinelBlock ? kSentinelBlock : BlockId{Index(run.start) + b});
  }
  std::uint64_t hash = 0;
  for (std::uint32_t p = 0; p < seq.length; ++p) {
    const std::uint32_t number = p / limits_.block_tokens;
    if (home[number] == kSentinelBlock) continue;
    for (std::uint32_t layer = 0; layer < kSimLayers; ++layer) {
      const auto is_right = [&](BlockId block) -> std::uint64_t {
        const std::uint64_t* const stamps = executor_.Home(layer, block);
        return stamps != nullptr && stamps[p % limits_.block_tokens] == seq.history.stamp(layer, p)
                   ? 1
                   : 0;
      };
      hash = Mix64(hash ^ is_right(home[number]));
      if (has_window) hash = Mix64(hash ^ is_right(BlockId{window + number}));
    }
  }
  return hash;
}

std::uint64_t KvWorld::StateHash() const {
  std::uint64_t hash = cache_.StateHash();
  const auto mix = [&hash](std::uint64_t value) { hash = Mix64(hash ^ value); };
  for (std::uint32_t s = 0; s < seqs_.size(); ++s) {
    const Seq& seq = seqs_[s];
    mix(std::uint64_t{seq.length} << 32 | seq.target);
    mix(ContentHash(s));
    mix(seq.length > 0 ? seq.history.digest() : 0);
    mix(std::uint64_t{seq.own_from} << 32 | seq.own_seed);
  }
  for (const Seq& seq : parked_) {
    mix(seq.open ? std::uint64_t{seq.length} << 32 | 1 : 0);
    mix(seq.length > 0 ? seq.history.digest() : 0);
    mix(std::uint64_t{seq.own_from} << 32 | seq.own_seed);
  }
  for (const Step& step : steps_) {
    mix(std::uint64_t{step.num_layers_run} << 32 | step.view.header->num_tokens);
    for (const SlotId slot : step.view.slots)
      mix(Index(slot));
    for (const TransferGroup& group : step.view.groups)
      mix((std::uint64_t{Index(group.source)} << 32 | Index(group.target)) ^
          std::uint64_t{group.source_tier} << 63 ^ std::uint64_t{group.target_tier} << 31);
    for (const Row& row : step.rows)
      mix(std::uint64_t{row.seq} << 32 | (seqs_[row.seq].life == row.life ? 1 : 0));
  }
  return hash;
}

void KvWorld::RunAll() {
  while (!steps_.empty()) {
    RunLayer();
    Retire();
  }
}

// The youngest other sequence gives its place up. False: there is none.
bool KvWorld::EndYoungestBut(std::uint32_t s) {
  std::uint32_t youngest = s;
  for (std::uint32_t other = 0; other < seqs_.size(); ++other) {
    if (other == s || !seqs_[other].open) continue;
    if (youngest == s || seqs_[other].life > seqs_[youngest].life) youngest = other;
  }
  if (youngest == s) return false;
  Release(youngest);
  return true;
}

// A few more tokens, one a step, and then the end, as an engine would bring it about: who is in the
// way is preempted, and what is in too many pieces even then begins anew.
void KvWorld::FinishSequence(std::uint32_t s) {
  const KvView view = scenario_.cache.view;
  const bool moves_runs = view == KvView::kExtents || view == KvView::kStagedLayers;
  const std::uint32_t goal = std::min(seqs_[s].length + limits_.block_tokens / 2, max_tokens());
  // The window of a sequence is filled by at least one block or one mapping a step, and before it
  // come those who are on their way to the host tier or back.
  const std::uint32_t most_steps =
      4 * scenario_.cache.max_blocks_per_seq * static_cast<std::uint32_t>(1 + parked_.size()) + 8;
  std::uint32_t patience = most_steps;
  while (seqs_[s].length < goal) {
    const std::uint32_t length = seqs_[s].length;
    CHECK(Begin());
    const bool extended = length < seqs_[s].target || Extend(s, length + 1);
    Plan();
    const bool added = extended && AddRow(s, 1);
    Commit();
    RunAll();
    if (added) continue;
    if (--patience > 0 && extended) continue;
    if (EndYoungestBut(s)) {
      patience = most_steps;
      continue;
    }
    const bool in_pieces = moves_runs && cache_.home(SeqId{s}).size() > scenario_.cache.max_runs;
    CHECK(in_pieces || patience > 0);  // R5
    if (in_pieces) break;
  }
  Release(s);
  RunAll();
}

// What lies in the host tier comes back once all others have ended, and goes on.
void KvWorld::FinishParked() {
  for (std::uint32_t parked = 0; parked < parked_.size(); ++parked) {
    if (!parked_[parked].open) continue;
    std::uint32_t patience =
        2 * scenario_.cache.max_blocks_per_seq * static_cast<std::uint32_t>(1 + parked_.size()) + 8;
    const auto is_back = [&] {
      if (cache_.is_parked(ParkedId{parked})) Resume(parked, 0, 0);
      return seqs_[0].open;
    };
    // The pool is empty, and it was in it once; but blocks under the copies of a step that was
    // given up are free only when another step has made them.
    while (!is_back()) {
      CHECK(--patience > 0);  // R5
      CHECK(Begin());
      Plan();
      Commit();
      RunAll();
    }
    FinishSequence(0);
    Check();
  }
}

void KvWorld::Finish() {
  Note("faults end");
  device_.EndFaults();
  device_rng_ = Rng(1, "device");
  RunAll();
  for (;;) {
    std::uint32_t oldest = 0;
    for (std::uint32_t s = 1; s < seqs_.size(); ++s) {
      if (!seqs_[s].open) continue;
      if (!seqs_[oldest].open || seqs_[s].life < seqs_[oldest].life) oldest = s;
    }
    if (!seqs_[oldest].open) break;
    FinishSequence(oldest);
    Check();
  }
  FinishParked();
  // A step without rows carries what an abandoned step had planned.
  CHECK(Begin());
  Plan();
  Commit();
  RunAll();
  Check();
  const KvStats stats = cache_.stats();
  CHECK(stats.num_held == 0 && stats.num_limbo == 0 && stats.num_promised == 0);  // K1
  CHECK(stats.num_host_free == stats.num_host_blocks);                            // K1
  cache_.DropCached();
  Check();
  CHECK(cache_.stats().num_free == stats.num_blocks);
}

SimTotals KvWorld::totals() const {
  const KvStats stats = cache_.stats();
  return {.num_steps = num_steps_,
          .num_rows = num_rows_,
          .num_copies = stats.num_groups,
          .num_maps = stats.num_maps,
          .num_cow_blocks = stats.num_cow_blocks,
          .num_prefix_hits = stats.num_prefix_hits,
          .num_evictions = stats.num_evictions,
          .num_run_overflows = stats.num_run_overflows,
          .num_waits = stats.num_waits,
          .num_parks = stats.num_parks,
          .num_resumes = stats.num_resumes,
          .num_resumed_blocks = stats.num_resumed_blocks,
          .num_proved_reads = verifier_.totals().num_reads};
}

}  // namespace kvrm
