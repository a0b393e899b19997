// SPDX-License-Identifier: Apache-2.0
#include "step/step_builder.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <limits>
#include <new>

#include "base/check.h"
#include "base/mutant.h"

namespace kvrm {
namespace {

// A cache line, so that no array of a descriptor shares one with its neighbour.
constexpr std::size_t kAlignment = 64;

constexpr std::size_t AlignUp(std::size_t value) {
  return (value + kAlignment - 1) / kAlignment * kAlignment;
}

// Byte offsets of one entry's arrays. The same for every entry, for the life of the ring.
struct EntryOffsets {
  std::size_t token_ids = 0;
  std::size_t positions = 0;
  std::size_t slots = 0;
  std::size_t mirrors = 0;
  std::size_t row_start = 0;
  std::size_t row_seq = 0;
  std::size_t num_runs = 0;
  std::size_t runs = 0;
  std::size_t sample_token = 0;
  std::size_t groups = 0;
  std::size_t entry_bytes = 0;

  explicit EntryOffsets(const StepLimits& limits) {
    std::size_t end = AlignUp(sizeof(StepHeader));
    const auto place = [&end](std::size_t bytes) {
      const std::size_t start = end;
      end += AlignUp(bytes);
      return start;
    };
    token_ids = place(sizeof(std::int32_t) * limits.max_tokens);
    positions = place(sizeof(std::int32_t) * limits.max_tokens);
    slots = place(sizeof(SlotId) * limits.max_tokens);
    mirrors = place(limits.mirrored ? sizeof(SlotId) * limits.max_tokens : 0);
    row_start = place(sizeof(std::uint32_t) * (std::size_t{limits.max_rows} + 1));
    row_seq = place(sizeof(SeqId) * limits.max_rows);
    num_runs = place(sizeof(std::uint32_t) * limits.max_rows);
    runs = place(sizeof(Extent) * limits.max_rows * limits.max_runs);
    sample_token = place(sizeof(std::uint32_t) * limits.max_samples);
    groups = place(sizeof(TransferGroup) * limits.max_groups);
    entry_bytes = end;
  }
};

// Blocks [start, end) of a tier, for the overlap checks of Commit.
struct Interval {
  std::uint32_t tier = 0;
  std::uint32_t start = 0;
  std::uint32_t end = 0;
  friend bool operator<(const Interval& a, const Interval& b) {
    return a.tier != b.tier ? a.tier < b.tier : a.start < b.start;
  }
};

bool Overlap(const Interval& a, const Interval& b) {
  return a.tier == b.tier && a.start < b.end && b.start < a.end;
}

// Whether two intervals of the sorted list share a block.
bool AnyOverlap(std::span<const Interval> sorted) {
  for (std::size_t i = 1; i < sorted.size(); ++i) {
    if (Overlap(sorted[i - 1], sorted[i])) return true;
  }
  return false;
}

// Requires: both sorted, and disjoint within `b`.
bool AnyOverlap(std::span<const Interval> a, std::span<const Interval> b) {
  std::size_t i = 0;
  std::size_t j = 0;
  while (i < a.size() && j < b.size()) {
    if (Overlap(a[i], b[j])) return true;
    const bool a_first = a[i].tier != b[j].tier ? a[i].tier < b[j].tier : a[i].end <= b[j].start;
    ++(a_first ? i : j);
  }
  return false;
}

// Folds a word in. For a given state it is a bijection of the word and for a given word one of the
// state, so a single changed word always changes the result.
std::uint64_t Fold(std::uint64_t state, std::uint64_t word) {
  state = (state ^ word) * 0x9e3779b97f4a7c15u;
  return state ^ (state >> 32);
}

template <typename T>
std::uint64_t FoldSpan(std::uint64_t state, std::span<const T> items) {
  static_assert(std::has_unique_object_representations_v<T>);
  static_assert(sizeof(T) % 4 == 0);
  const auto* bytes = reinterpret_cast<const std::byte*>(items.data());
  std::size_t left = items.size_bytes();
  for (; left >= 8; left -= 8, bytes += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes, 8);
    state = Fold(state, word);
  }
  if (left > 0) {
    std::uint32_t word = 0;
    std::memcpy(&word, bytes, 4);
    state = Fold(state, word);
  }
  return state;
}

}  // namespace

struct StepBuilder::Ring {
  Ring(const StepLimits& limits_in, std::uint32_t num_entries_in)
      : limits(limits_in),
        offsets(limits_in),
        num_entries(num_entries_in),
        memory_bytes(offsets.entry_bytes * num_entries_in),
        memory(
            static_cast<std::byte*>(::operator new (memory_bytes, std::align_val_t{kAlignment}))),
        sealed(std::make_unique<StepHeader[]>(num_entries_in)),
        // A row's new tokens touch at most tokens / block_tokens + 2 blocks and no more runs.
        writes_capacity((limits_in.max_tokens / limits_in.block_tokens + 2 * limits_in.max_rows) *
                        (limits_in.mirrored ? 2 : 1)),
        writes(std::make_unique<Interval[]>(writes_capacity)),
        sources(std::make_unique<Interval[]>(limits_in.max_groups)),
        targets(std::make_unique<Interval[]>(limits_in.max_groups)) {
    std::memset(memory, 0, memory_bytes);
  }
  ~Ring() { ::operator delete (memory, std::align_val_t{kAlignment}); }
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  std::byte* Entry(std::uint64_t step) const {
    return memory + (step % num_entries) * offsets.entry_bytes;
  }
  StepHeader& Header(std::uint64_t step) const {
    return *reinterpret_cast<StepHeader*>(Entry(step));
  }
  template <typename T>
  T* Array(std::uint64_t step, std::size_t offset) const {
    if (IsMutant(Mutant::kTokensInPlace) && offset == offsets.token_ids) step = 0;
    return reinterpret_cast<T*>(Entry(step) + offset);
  }
  StepView View(std::uint64_t step) const;

  // Life of the entry under construction.
  void AppendTokens(const StepRow& row);
  void AppendWrites(const StepRow& row, std::span<const Extent> runs);
  void AppendSlots(const StepRow& row, std::span<const Extent> runs, std::size_t offset);
  void CheckGroups();
  void CheckTargets(std::span<const TransferGroup> groups, std::span<const Interval> from,
                    std::uint32_t layer);
  void CheckPadding();

  const StepLimits limits;
  const EntryOffsets offsets;
  const std::uint32_t num_entries;
  const std::size_t memory_bytes;
  std::byte* const memory;
  // Headers as committed, outside the shared memory: Retire must not trust a header's counts
  // before it knows that the header is intact.
  std::unique_ptr<StepHeader[]> sealed;

  // Blocks written by the step under construction, and scratch of the overlap checks.
  const std::size_t writes_capacity;
  std::unique_ptr<Interval[]> writes;
  std::size_t num_writes = 0;
  std::uint32_t last_deadline = 0;  // of the copies added so far
  std::unique_ptr<Interval[]> sources;
  std::unique_ptr<Interval[]> targets;

  // retired <= latched <= committed <= retired + num_entries: the epochs that have passed each
  // transition. `committed` and `latched` are what the two threads share.
  bool building = false;
  std::uint64_t retired = 0;
  alignas(kAlignment) std::atomic<std::uint64_t> committed{0};
  alignas(kAlignment) std::atomic<std::uint64_t> latched{0};
};

StepView StepBuilder::Ring::View(std::uint64_t step) const {
  const StepHeader& header = Header(step);
  StepView view;
  view.header = &header;
  view.token_ids = {Array<std::int32_t>(step, offsets.token_ids), header.num_tokens};
  view.positions = {Array<std::int32_t>(step, offsets.positions), header.num_tokens};
  view.slots = {Array<SlotId>(step, offsets.slots), header.num_tokens};
  if ((header.flags & kStepMirrored) != 0)
    view.mirrors = {Array<SlotId>(step, offsets.mirrors), header.num_tokens};
  view.row_start = {Array<std::uint32_t>(step, offsets.row_start),
                    std::size_t{header.num_rows} + 1};
  view.row_seq = {Array<SeqId>(step, offsets.row_seq), header.num_rows};
  view.num_runs = {Array<std::uint32_t>(step, offsets.num_runs), header.bucket_rows};
  view.runs = {Array<Extent>(step, offsets.runs),
               std::size_t{header.bucket_rows} * limits.max_runs};
  view.sample_token = {Array<std::uint32_t>(step, offsets.sample_token), header.num_samples};
  view.groups = {Array<TransferGroup>(step, offsets.groups), header.num_groups};
  view.max_runs = limits.max_runs;
  return view;
}

StepBuilder::StepBuilder(const StepLimits& limits, std::uint32_t ring_entries) {
  CHECK(ring_entries > 0);
  CHECK(limits.max_rows > 0 && limits.max_tokens >= limits.max_rows);
  CHECK(limits.max_runs > 0 && limits.block_tokens > 0);
  ring_ = std::make_unique<Ring>(limits, ring_entries);
}

StepBuilder::~StepBuilder() = default;

StepId StepBuilder::building() const noexcept {
  return StepId{ring_->committed.load(std::memory_order_relaxed) + 1};
}

bool StepBuilder::Begin() noexcept {
  CHECK(!ring_->building);
  const std::uint64_t step = Index(building());
  const std::uint32_t too_many = IsMutant(Mutant::kOverrunRing) ? 1 : 0;
  if (step - ring_->retired > ring_->num_entries + too_many) return false;
  ring_->building = true;
  ring_->num_writes = 0;
  ring_->last_deadline = 0;
  StepHeader& header = ring_->Header(step);
  header = StepHeader{};
  header.version = kStepVersion;
  const bool is_stale = IsMutant(Mutant::kStaleEpoch) && step > ring_->num_entries;
  header.step = StepId{is_stale ? step - ring_->num_entries : step};
  ring_->Array<std::uint32_t>(step, ring_->offsets.row_start)[0] = 0;
  return true;
}

void StepBuilder::AddRow(const StepRow& row) noexcept {
  Ring& ring = *ring_;
  CHECK(ring.building);
  const std::uint64_t step = Index(building());
  StepHeader& header = ring.Header(step);
  CHECK(header.num_rows < ring.limits.max_rows);
  CHECK(!row.tokens.empty() && row.tokens.size() <= ring.limits.max_tokens - header.num_tokens);
  CHECK(!row.runs.empty() && row.runs.size() <= ring.limits.max_runs);  // D5
  CHECK(row.num_samples <= row.tokens.size());
  CHECK(row.num_samples <= ring.limits.max_samples - header.num_samples);

  const std::uint64_t context = std::uint64_t{row.first_position} + row.tokens.size();
  CHECK(context <= std::uint64_t{std::numeric_limits<std::int32_t>::max()});
  const auto covers = [&](std::span<const Extent> runs) {
    std::uint64_t num_blocks = 0;
    for (const Extent& run : runs) {
      CHECK(run.num_blocks > 0);
      num_blocks += run.num_blocks;
    }
    return context <= num_blocks * ring.limits.block_tokens;
  };
  const std::span<const Extent> home = row.home.empty() ? row.runs : row.home;
  CHECK(covers(row.runs) && covers(home));  // D5, and the slots of D3
  CHECK(!row.mirror || (ring.limits.mirrored && !row.home.empty()));
  CHECK(row.mirror == ((header.flags & kStepMirrored) != 0) || header.num_rows == 0);
  if (row.mirror) header.flags |= kStepMirrored;

  const std::uint32_t r = header.num_rows;
  ring.AppendTokens(row);
  ring.AppendWrites(row, home);
  if (row.mirror) ring.AppendWrites(row, row.runs);
  ring.Array<SeqId>(step, ring.offsets.row_seq)[r] = row.seq;
  const std::size_t num_lost = IsMutant(Mutant::kLoseLastRun) && row.runs.size() > 1 ? 1 : 0;
  ring.Array<std::uint32_t>(step, ring.offsets.num_runs)[r] =
      static_cast<std::uint32_t>(row.runs.size() - num_lost);
  std::copy(row.runs.begin(), row.runs.end(),
            ring.Array<Extent>(step, ring.offsets.runs) + std::size_t{r} * ring.limits.max_runs);
  ring.Array<std::uint32_t>(step, ring.offsets.row_start)[r + 1] = header.num_tokens;
  for (std::uint32_t i = header.num_tokens - row.num_samples; i < header.num_tokens; ++i) {
    ring.Array<std::uint32_t>(step, ring.offsets.sample_token)[header.num_samples++] = i;
  }
  ++header.num_rows;
}

// Writes token ids, positions and slots of the row and counts them.
void StepBuilder::Ring::AppendTokens(const StepRow& row) {
  const std::uint64_t step = committed.load(std::memory_order_relaxed) + 1;
  StepHeader& header = Header(step);
  const std::uint32_t first = header.num_tokens;
  const auto num_tokens = static_cast<std::uint32_t>(row.tokens.size());
  std::copy(row.tokens.begin(), row.tokens.end(),
            Array<std::int32_t>(step, offsets.token_ids) + first);
  std::int32_t* const row_positions = Array<std::int32_t>(step, offsets.positions) + first;
  for (std::uint32_t i = 0; i < num_tokens; ++i)
    row_positions[i] = static_cast<std::int32_t>(row.first_position + i);
  AppendSlots(row, row.home.empty() ? row.runs : row.home, offsets.slots);
  if (row.mirror) AppendSlots(row, row.runs, offsets.mirrors);
  header.num_tokens += num_tokens;
}

void StepBuilder::Ring::AppendSlots(const StepRow& row, std::span<const Extent> runs_of_row,
                                    std::size_t offset) {
  const std::uint64_t step = committed.load(std::memory_order_relaxed) + 1;
  SlotId* const row_slots = Array<SlotId>(step, offset) + Header(step).num_tokens;
  std::size_t run = 0;
  std::uint64_t run_begin = 0;  // Position of the run's first slot.
  for (std::uint32_t i = 0; i < row.tokens.size(); ++i) {
    const std::uint32_t position = row.first_position + i;
    while (position - run_begin >=
           std::uint64_t{runs_of_row[run].num_blocks} * limits.block_tokens) {
      run_begin += std::uint64_t{runs_of_row[run].num_blocks} * limits.block_tokens;
      ++run;
    }
    CHECK(runs_of_row[run].start != kSentinelBlock);  // D3, D4
    const std::uint64_t slot =
        std::uint64_t{Index(runs_of_row[run].start)} * limits.block_tokens + (position - run_begin);
    CHECK(slot <= std::numeric_limits<std::uint32_t>::max());
    row_slots[i] = SlotId{static_cast<std::uint32_t>(slot)};
  }
}

// Notes which blocks the row writes, for D3 and D7.
void StepBuilder::Ring::AppendWrites(const StepRow& row, std::span<const Extent> runs_of_row) {
  const std::uint32_t first_block = row.first_position / limits.block_tokens;
  const std::uint64_t end_block =
      (std::uint64_t{row.first_position} + row.tokens.size() - 1) / limits.block_tokens + 1;
  std::uint64_t run_begin = 0;  // Index in the sequence of the run's first block.
  for (const Extent& run : runs_of_row) {
    const std::uint64_t run_end = run_begin + run.num_blocks;
    const std::uint64_t low = std::max<std::uint64_t>(run_begin, first_block);
    const std::uint64_t high = std::min(run_end, end_block);
    if (low < high) {
      CHECK(num_writes < writes_capacity);
      writes[num_writes++] = {
          .tier = 0,
          .start = Index(run.start) + static_cast<std::uint32_t>(low - run_begin),
          .end = Index(run.start) + static_cast<std::uint32_t>(high - run_begin)};
    }
    run_begin = run_end;
  }
}

void StepBuilder::AddGroup(const TransferGroup& group) noexcept {
  Ring& ring = *ring_;
  CHECK(ring.building);
  const std::uint64_t step = Index(building());
  StepHeader& header = ring.Header(step);
  CHECK(header.num_groups < ring.limits.max_groups);
  CHECK(group.num_blocks > 0);
  CHECK(group.source_tier != 0 || group.source > kSentinelBlock);  // D6
  CHECK(group.target_tier != 0 || group.target > kSentinelBlock);  // D6
  TransferGroup* const groups = ring.Array<TransferGroup>(step, ring.offsets.groups);
  if (group.kind == GroupKind::kBlocks) {
    CHECK(ring.last_deadline <= group.before_layer);  // D6
    ring.last_deadline = group.before_layer;
  }
  CHECK(group.before_layer == 0 || group.num_layers > 0);            // D8
  CHECK(group.num_layers == 0 || group.kind == GroupKind::kBlocks);  // D8
  groups[header.num_groups++] = group;
}

void StepBuilder::Pad(std::uint32_t num_tokens) noexcept {
  CHECK(ring_->building);
  StepHeader& header = ring_->Header(Index(building()));
  header.padded_tokens = std::max(header.padded_tokens, num_tokens);
}

void StepBuilder::SetLayerWindows() noexcept {
  CHECK(ring_->building);
  ring_->Header(Index(building())).flags |= kStepLayerWindows;
}

std::uint32_t StepBuilder::num_rows() const noexcept {
  CHECK(ring_->building);
  return ring_->Header(Index(building())).num_rows;
}

std::uint32_t StepBuilder::num_tokens() const noexcept {
  CHECK(ring_->building);
  return ring_->Header(Index(building())).num_tokens;
}

std::uint32_t StepBuilder::num_groups() const noexcept {
  CHECK(ring_->building);
  return ring_->Header(Index(building())).num_groups;
}

StepView StepBuilder::Commit(std::uint32_t bucket, std::uint32_t bucket_rows) noexcept {
  Ring& ring = *ring_;
  CHECK(ring.building);
  const std::uint64_t step = Index(building());
  StepHeader& header = ring.Header(step);
  CHECK(header.num_rows <= bucket_rows && bucket_rows <= ring.limits.max_rows);
  CHECK(header.step == StepId{step} || IsMutant(Mutant::kStaleEpoch));  // D1

  std::sort(ring.writes.get(), ring.writes.get() + ring.num_writes);
  CHECK(!AnyOverlap({ring.writes.get(), ring.num_writes}));  // D3
  ring.CheckGroups();
  ring.CheckPadding();

  header.bucket = bucket;
  header.bucket_rows = bucket_rows;
  Extent* const runs = ring.Array<Extent>(step, ring.offsets.runs);
  for (std::uint32_t r = header.num_rows; r < bucket_rows; ++r) {
    if (IsMutant(Mutant::kStalePadding)) break;
    ring.Array<std::uint32_t>(step, ring.offsets.num_runs)[r] = 1;
    runs[std::size_t{r} * ring.limits.max_runs] = {kSentinelBlock, 1};  // D4
  }
  const StepView view = ring.View(step);
  header.checksum = Checksum(view);
  ring.sealed[step % ring.num_entries] = header;
  ring.building = false;
  ring.committed.store(step, std::memory_order_release);
  return view;
}

void StepBuilder::Ring::CheckPadding() {
  const std::uint64_t step = committed.load(std::memory_order_relaxed) + 1;
  const StepHeader& header = Header(step);
  if (header.padded_tokens == 0) return;
  const std::uint32_t* const num_runs = Array<std::uint32_t>(step, offsets.num_runs);
  const Extent* const runs = Array<Extent>(step, offsets.runs);
  for (std::uint32_t r = 0; r < header.num_rows; ++r) {
    std::uint64_t num_blocks = 0;
    for (std::uint32_t i = 0; i < num_runs[r]; ++i)
      num_blocks += runs[std::size_t{r} * limits.max_runs + i].num_blocks;
    CHECK(num_blocks * limits.block_tokens >= header.padded_tokens);  // D5
  }
}

void StepBuilder::Ring::CheckGroups() {
  const std::uint64_t step = committed.load(std::memory_order_relaxed) + 1;
  const std::span<const TransferGroup> groups(Array<TransferGroup>(step, offsets.groups),
                                              Header(step).num_groups);
  if (groups.empty()) return;
  std::uint32_t num_sources = 0;
  for (const TransferGroup& group : groups) {
    if (group.kind != GroupKind::kBlocks) continue;
    sources[num_sources++] = {group.source_tier, Index(group.source),
                              Index(group.source) + group.num_blocks};
  }
  std::sort(sources.get(), sources.get() + num_sources);
  const std::span<const Interval> from(sources.get(), num_sources);
  CHECK(!AnyOverlap(from, {writes.get(), num_writes}));  // D7
  CheckTargets(groups, from, 0);
  std::uint32_t end_layer = 0;
  for (const TransferGroup& group : groups) {
    if (group.num_layers == 0) continue;
    const std::uint32_t end = std::uint32_t{group.before_layer} + group.num_layers;
    if (end == end_layer) continue;
    CHECK(group.before_layer >= end_layer);  // D8
    end_layer = end;
    if (group.before_layer > 0) CheckTargets(groups, from, group.before_layer);
  }
}

// D6 of what is copied in layer `layer`, the first of a deadline's.
void StepBuilder::Ring::CheckTargets(std::span<const TransferGroup> groups,
                                     std::span<const Interval> from, std::uint32_t layer) {
  // The layer buffers are a space of their own.
  constexpr std::uint32_t kLayerSpace = 256;
  std::uint32_t num_targets = 0;
  for (const TransferGroup& group : groups) {
    if (group.num_layers != 0 && group.before_layer != layer) continue;
    const std::uint32_t space =
        group.kind == GroupKind::kLayerSlices ? kLayerSpace : group.target_tier;
    targets[num_targets++] = {space, Index(group.target), Index(group.target) + group.num_blocks};
  }
  std::sort(targets.get(), targets.get() + num_targets);
  const std::span<const Interval> to(targets.get(), num_targets);
  CHECK(!AnyOverlap(to) || IsMutant(Mutant::kTargetTwice));  // D6
  CHECK(!AnyOverlap(from, to));                              // D6
}

void StepBuilder::Abandon() noexcept {
  CHECK(ring_->building);
  ring_->building = false;
}

StepView StepBuilder::Latch() noexcept {
  Ring& ring = *ring_;
  const std::uint64_t step = ring.latched.load(std::memory_order_relaxed) + 1;
  if (ring.committed.load(std::memory_order_acquire) < step) return {};
  const StepView view = ring.View(step);
  CHECK(view.header->step == StepId{step} && view.header->version == kStepVersion);  // D1
  ring.latched.store(step, std::memory_order_release);
  return view;
}

StepId StepBuilder::Retire() noexcept {
  Ring& ring = *ring_;
  const std::uint64_t step = ring.retired + 1;
  CHECK(step <= ring.latched.load(std::memory_order_acquire));  // D1
  const StepHeader& sealed = ring.sealed[step % ring.num_entries];
  CHECK(std::memcmp(&ring.Header(step), &sealed, sizeof(StepHeader)) == 0);  // D2
  CHECK(Checksum(ring.View(step)) == sealed.checksum);                       // D2
  ring.retired = step;
  return StepId{step};
}

std::uint64_t StepBuilder::Checksum(const StepView& view) noexcept {
  StepHeader header = *view.header;
  header.checksum = 0;
  std::uint64_t state = FoldSpan(0, std::span<const StepHeader>(&header, 1));
  state = FoldSpan(state, view.token_ids);
  state = FoldSpan(state, view.positions);
  state = FoldSpan(state, view.slots);
  state = FoldSpan(state, view.mirrors);
  state = FoldSpan(state, view.row_start);
  state = FoldSpan(state, view.row_seq);
  state = FoldSpan(state, view.num_runs);
  for (std::uint32_t r = 0; r < header.bucket_rows; ++r) {
    CHECK(view.num_runs[r] <= view.max_runs);  // D5, or D2 when the count was torn.
    state = FoldSpan(state, view.RowRuns(r));
  }
  state = FoldSpan(state, view.sample_token);
  return FoldSpan(state, view.groups);
}

std::uint64_t StepBuilder::reserved_bytes() const noexcept {
  return ring_->memory_bytes;
}

}  // namespace kvrm
