// SPDX-License-Identifier: Apache-2.0
// StepVerifier against logs written by hand: good ones pass, and each rule has defects that break
// it and nothing before it.
#include "step/step_verifier.h"

#include <gtest/gtest.h>

#include <deque>
#include <functional>
#include <map>
#include <numeric>
#include <vector>

#include "step/step_builder.h"
#include "step/step_replay.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kBlockTokens = 4;
constexpr std::uint32_t kPool = 32;
constexpr std::uint32_t kLanes = 4;
constexpr std::uint32_t kLaneBlocks = 8;
constexpr std::uint32_t kWindow0 = kPool;  // the first window's first block

StepLogHeader Header() {
  return {.limits = {.max_rows = 4,
                     .max_tokens = 64,
                     .max_runs = 4,
                     .max_groups = 4,
                     .max_samples = 4,
                     .block_tokens = kBlockTokens,
                     .mirrored = true},
          .layout = {.num_layers = 2,
                     .num_kv_heads = 1,
                     .head_dim = 8,
                     .block_tokens = kBlockTokens,
                     .dtype = DType::kF16},
          .num_pool_blocks = kPool,
          .num_window_blocks = kLanes * kLaneBlocks,
          .num_layer_blocks = 1 + kLanes * kLaneBlocks,
          .num_lanes = kLanes,
          .lane_blocks = kLaneBlocks,
          .ring_entries = 3,
          .num_host_blocks = 8,
          .max_parked = 2,
          .has_lives = true,
          .view = "extents",
          .placement = "in-place"};
}

constexpr Extent Blocks(std::uint32_t start, std::uint32_t num_blocks) {
  return {BlockId{start}, num_blocks};
}

// One record with memory of its own, to be edited.
struct Record {
  StepLogRecord record;
  StepHeader header{};
  std::vector<std::int32_t> token_ids;
  std::vector<std::int32_t> positions;
  std::vector<SlotId> slots;
  std::vector<SlotId> mirrors;
  std::vector<std::uint32_t> row_start = {0};
  std::vector<SeqId> row_seq;
  std::vector<std::uint32_t> num_runs;
  std::vector<Extent> runs;
  std::vector<std::uint32_t> sample_token;
  std::vector<TransferGroup> groups;

  void Refresh() {
    if (record.kind == StepLogKind::kOpened) record.opened.tokens = token_ids;
    if (record.kind == StepLogKind::kSampled) record.tokens = token_ids;
    if (record.kind != StepLogKind::kStep) return;
    record.view = {.header = &header,
                   .token_ids = token_ids,
                   .positions = positions,
                   .slots = slots,
                   .mirrors = mirrors,
                   .row_start = row_start,
                   .row_seq = row_seq,
                   .num_runs = num_runs,
                   .runs = runs,
                   .sample_token = sample_token,
                   .groups = groups,
                   .max_runs = 4};
  }
  void Seal() {
    Refresh();
    header.checksum = StepBuilder::Checksum(record.view);
  }
};

struct RowSpec {
  std::uint32_t seq = 0;
  std::uint32_t first = 0;
  std::vector<std::int32_t> tokens;
  std::vector<Extent> runs;
  std::vector<Extent> home = {};
};

// A log under construction, which does not check what it is told.
class Log {
 public:
  explicit Log(const StepLogHeader& header = Header()) : header_(header) {}

  Record& Add(StepLogKind kind) {
    records_.emplace_back().record.kind = kind;
    return records_.back();
  }
  void Open(std::uint32_t seq, std::vector<std::int32_t> tokens = {}, std::uint64_t salt = 0) {
    Record& record = Add(StepLogKind::kOpened);
    record.record.opened = {.seq = SeqId{seq},
                            .num_tokens = static_cast<std::uint32_t>(tokens.size()),
                            .request = 100 + seq,
                            .salt = salt};
    record.token_ids = std::move(tokens);
  }
  void Fork(std::uint32_t child, std::uint32_t parent, std::uint32_t num_tokens) {
    Add(StepLogKind::kOpened).record.opened = {.seq = SeqId{child},
                                               .parent = SeqId{parent},
                                               .num_tokens = num_tokens,
                                               .request = 100 + child};
  }
  void Park(std::uint32_t seq, std::uint32_t number) {
    StepLogRecord& record = Add(StepLogKind::kParked).record;
    record.seq = SeqId{seq};
    record.value = number;
  }
  void Resume(std::uint32_t seq, std::uint32_t number) {
    StepLogRecord& record = Add(StepLogKind::kResumed).record;
    record.seq = SeqId{seq};
    record.value = number;
  }
  void Trim(std::uint32_t seq, std::uint32_t from, std::uint32_t to) {
    StepLogRecord& record = Add(StepLogKind::kTrimmed).record;
    record.seq = SeqId{seq};
    record.from = from;
    record.to = to;
  }
  Record& Step(const std::vector<RowSpec>& rows, const std::vector<TransferGroup>& groups = {},
               std::uint32_t flags = 0) {
    Record& step = Add(StepLogKind::kStep);
    step.header = {.version = kStepVersion,
                   .bucket = 0,
                   .step = StepId{++committed_},
                   .num_rows = static_cast<std::uint32_t>(rows.size()),
                   .bucket_rows = 4,
                   .num_tokens = 0,
                   .num_samples = 0,
                   .num_groups = static_cast<std::uint32_t>(groups.size()),
                   .padded_tokens = 0,
                   .flags = flags,
                   .reserved = 0,
                   .checksum = 0};
    step.num_runs.assign(4, 1);
    step.runs.assign(16, Extent{});
    for (std::uint32_t r = 0; r < 4; ++r)
      step.runs[4 * r] = {kSentinelBlock, 1};
    for (std::uint32_t r = 0; r < rows.size(); ++r)
      AddRow(step, r, rows[r]);
    step.groups = groups;
    step.header.num_tokens = static_cast<std::uint32_t>(step.token_ids.size());
    step.header.num_samples = static_cast<std::uint32_t>(step.sample_token.size());
    return step;
  }
  void Landed(std::uint64_t step, std::uint64_t deadline = 0) {
    StepLogRecord& record = Add(StepLogKind::kLanded).record;
    record.step = StepId{step};
    record.value = deadline;
  }
  void Latched(std::uint64_t step) { Add(StepLogKind::kLatched).record.step = StepId{step}; }
  void Retired(std::uint64_t step) { Add(StepLogKind::kRetired).record.step = StepId{step}; }
  void Finish(std::uint64_t step) {
    Landed(step);
    Latched(step);
    Retired(step);
  }
  // The same, in one step that has run when this returns.
  void Run(const std::vector<RowSpec>& rows, const std::vector<TransferGroup>& groups = {},
           std::uint32_t flags = 0) {
    Step(rows, groups, flags);
    Finish(committed_);
  }
  Record& at(std::size_t i) { return records_[i]; }
  Record& last(StepLogKind kind) {
    for (auto it = records_.rbegin(); it != records_.rend(); ++it)
      if (it->record.kind == kind) return *it;
    ADD_FAILURE() << "no such record";
    return records_.back();
  }
  std::deque<Record>& records() { return records_; }

  // Fills in checksums where `seal`, and has everything verified.
  std::optional<StepViolation> Verify(bool seal = true) {
    std::map<std::uint64_t, std::uint64_t> checksums;
    StepVerifier verifier(header_);
    for (Record& record : records_) {
      if (record.record.kind == StepLogKind::kStep) {
        seal ? record.Seal() : record.Refresh();
        checksums[Index(record.header.step)] = record.header.checksum;
      } else if (record.record.kind == StepLogKind::kRetired && record.record.value == 0) {
        record.record.value = checksums[Index(record.record.step)];
      }
      record.Refresh();
      if (!verifier.Consume(record.record)) break;
    }
    totals = verifier.totals();
    return verifier.violation();
  }
  std::map<std::uint64_t, SequenceDigest> Digests() {
    StepReplay replay(header_);
    for (Record& record : records_) {
      record.Refresh();
      EXPECT_TRUE(replay.Consume(record.record));
    }
    return replay.digests();
  }
  StepTotals totals;

 private:
  static std::uint32_t SlotOf(const std::vector<Extent>& runs, std::uint32_t position) {
    std::uint32_t block = position / kBlockTokens;
    for (const Extent& run : runs) {
      if (block < run.num_blocks)
        return (Index(run.start) + block) * kBlockTokens + position % kBlockTokens;
      block -= run.num_blocks;
    }
    return 0;
  }
  static void AddRow(Record& step, std::uint32_t r, const RowSpec& row) {
    for (std::uint32_t i = 0; i < row.tokens.size(); ++i) {
      const std::uint32_t position = row.first + i;
      step.token_ids.push_back(row.tokens[i]);
      step.positions.push_back(static_cast<std::int32_t>(position));
      step.slots.push_back(SlotId{SlotOf(row.home.empty() ? row.runs : row.home, position)});
      if ((step.header.flags & kStepMirrored) != 0)
        step.mirrors.push_back(SlotId{SlotOf(row.runs, position)});
    }
    step.row_start.push_back(static_cast<std::uint32_t>(step.token_ids.size()));
    step.row_seq.push_back(SeqId{row.seq});
    step.num_runs[r] = static_cast<std::uint32_t>(row.runs.size());
    std::copy(row.runs.begin(), row.runs.end(), step.runs.begin() + 4 * r);
    step.sample_token.push_back(step.row_start.back() - 1);
  }

  const StepLogHeader header_;
  std::deque<Record> records_;
  std::uint64_t committed_ = 0;
};

std::vector<std::int32_t> Tokens(std::uint32_t count, std::int32_t first = 10) {
  std::vector<std::int32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

constexpr TransferGroup Group(std::uint32_t source, std::uint32_t target, std::uint32_t num_blocks,
                              GroupKind kind = GroupKind::kBlocks) {
  return {
      .source = BlockId{source}, .target = BlockId{target}, .num_blocks = num_blocks, .kind = kind};
}

constexpr TransferGroup Layers(std::uint32_t source, std::uint32_t target, std::uint32_t num_blocks,
                               std::uint16_t first, std::uint16_t num_layers) {
  return {.source = BlockId{source},
          .target = BlockId{target},
          .num_blocks = num_blocks,
          .before_layer = first,
          .num_layers = num_layers};
}

void ExpectRule(Log& log, StepRule rule, std::uint64_t step, bool seal = true) {
  const auto violation = log.Verify(seal);
  ASSERT_TRUE(violation.has_value()) << "nothing was found";
  EXPECT_STREQ(StepRuleName(violation->rule), StepRuleName(rule)) << violation->Text();
  EXPECT_EQ(violation->step, StepId{step}) << violation->Text();
  EXPECT_FALSE(violation->message.empty());
}
void ExpectGood(Log& log) {
  const auto violation = log.Verify();
  EXPECT_FALSE(violation.has_value()) << violation->Text();
}

// Sequence 0 has 10 tokens in blocks 5, 6 and 9; sequence 1 has 6 in blocks 12 and 13. Both steps
// have retired.
Log TwoSequences() {
  Log log;
  log.Open(0);
  log.Open(1);
  log.Run(
      {{0, 0, Tokens(9), {Blocks(5, 2), Blocks(9, 1)}}, {1, 0, Tokens(5, 50), {Blocks(12, 2)}}});
  log.Run({{0, 9, {90}, {Blocks(5, 2), Blocks(9, 1)}}, {1, 5, {91}, {Blocks(12, 2)}}});
  return log;
}
RowSpec Row0(std::uint32_t first = 10) {
  return {0, first, {7}, {Blocks(5, 2), Blocks(9, 1)}};
}
RowSpec Row1(std::uint32_t first = 6) {
  return {1, first, {8}, {Blocks(12, 2)}};
}

TEST(StepVerifier, AcceptsTwoSequencesAndCountsThem) {
  Log log = TwoSequences();
  log.Run({Row0(), Row1()});
  ExpectGood(log);
  EXPECT_EQ(log.totals.num_steps, 3u);
  EXPECT_EQ(log.totals.num_rows, 6u);
  EXPECT_EQ(log.totals.num_tokens, 18u);
  EXPECT_EQ(log.totals.num_sequences, 2u);
  EXPECT_EQ(log.totals.num_reads, 9u + 5 + 10 + 6);
  EXPECT_EQ(log.totals.num_unknown_reads, 0u);
  EXPECT_EQ(log.totals.most_in_flight, 1u);
}

TEST(StepVerifier, AcceptsMovesForksSharingAndTrims) {
  Log log = TwoSequences();
  log.Fork(2, 0, 10);
  log.Open(3, Tokens(8));  // A prefix hit: two full blocks of sequence 0.
  // Sequence 2 gets a block of its own, sequence 0 is moved together, sequence 3 shares.
  log.Run({{2, 10, {70}, {Blocks(5, 2), Blocks(20, 1)}},
           {3, 8, {71, 72}, {Blocks(5, 2), Blocks(25, 1)}}},
          {Group(9, 20, 1)});
  log.Run({{0, 10, {73}, {Blocks(21, 3)}}}, {Group(5, 21, 2), Group(9, 23, 1)});
  log.Trim(3, 1, 8);
  log.Run({{3, 10, {74}, {Blocks(5, 1), Blocks(0, 1), Blocks(25, 1)}}});
  ExpectGood(log);
  EXPECT_EQ(log.totals.num_copied_blocks, 4u);
}

TEST(StepVerifier, Epochs) {
  {
    Log log = TwoSequences();
    log.Step({Row0()}).header.step = StepId{4};
    ExpectRule(log, StepRule::kEpochs, 4);  // D1
  }
  {
    Log log = TwoSequences();
    log.Latched(3);
    ExpectRule(log, StepRule::kEpochs, 3);
  }
  {
    Log log = TwoSequences();
    log.Step({Row0()});
    log.Retired(3);
    ExpectRule(log, StepRule::kEpochs, 3);
  }
  {
    Log log = TwoSequences();
    log.Landed(3);
    ExpectRule(log, StepRule::kEpochs, 3);
  }
  Log log = TwoSequences();
  for (std::uint32_t i = 0; i < 4; ++i)
    log.Step({Row1(6 + i % 2)});
  ExpectRule(log, StepRule::kEpochs, 6);  // One more than the ring has entries.
}

TEST(StepVerifier, Checksums) {
  Log torn = TwoSequences();
  torn.Step({Row0()});
  torn.Verify();
  torn.last(StepLogKind::kStep).token_ids[0] ^= 1;
  ExpectRule(torn, StepRule::kChecksum, 3, /*seal=*/false);  // D2
  Log changed = TwoSequences();
  changed.last(StepLogKind::kRetired).record.value = 12345;
  ExpectRule(changed, StepRule::kChecksum, 2);  // D2
}

TEST(StepVerifier, Shapes) {
  const auto plant = [](const std::function<void(Record&)>& edit) {
    Log log = TwoSequences();
    edit(log.Step({Row0(), Row1()}));
    ExpectRule(log, StepRule::kShape, 3);
  };
  plant([](Record& step) { step.header.version = 1; });
  plant([](Record& step) { step.header.flags = 64; });
  plant([](Record& step) { step.header.reserved = 1; });
  plant([](Record& step) { step.row_start[1] = 2; });
  plant([](Record& step) { step.row_start[0] = 1; });
  plant([](Record& step) { step.row_seq[0] = SeqId{kLanes}; });
  plant([](Record& step) { step.positions[0] = -1; });
  plant([](Record& step) { step.positions[0] = kLaneBlocks * kBlockTokens; });
  plant([](Record& step) { step.sample_token[0] = 2; });
  plant([](Record& step) { std::swap(step.sample_token[0], step.sample_token[1]); });
  Log log = TwoSequences();
  Record& sampled = log.Add(StepLogKind::kSampled);
  sampled.record.step = StepId{2};
  sampled.token_ids = {1};
  ExpectRule(log, StepRule::kShape, 2);
}

TEST(StepVerifier, Slots) {
  const auto plant = [](std::uint32_t slot) {
    Log log = TwoSequences();
    log.Step({Row0()}).slots[0] = SlotId{slot};
    ExpectRule(log, StepRule::kSlots, 3);  // D3
  };
  plant(9 * kBlockTokens + 1);   // another offset
  plant(11 * kBlockTokens + 2);  // another block
  plant(kWindow0 * kBlockTokens + 2);
  plant(~0u);
}

TEST(StepVerifier, TwoOwners) {
  Log log = TwoSequences();
  log.Run({Row0(), {1, 6, {8}, {Blocks(12, 1), Blocks(9, 1)}}});
  ExpectRule(log, StepRule::kTwoOwners, 3);  // D3
  // Row 1 begins block 6 anew, which row 0 reads.
  Log reader = TwoSequences();
  reader.Run({Row0(), {1, 4, {8}, {Blocks(12, 1), Blocks(6, 1)}}});
  ExpectRule(reader, StepRule::kTwoOwners, 3);
}

TEST(StepVerifier, Sentinel) {
  Log log = TwoSequences();
  log.Step({Row0()}).slots[0] = SlotId{2};
  ExpectRule(log, StepRule::kSentinel, 3);  // D4
  Log padding = TwoSequences();
  padding.Step({Row0()}).runs[4 * 3] = Blocks(9, 1);
  ExpectRule(padding, StepRule::kSentinel, 3);  // D4
  Log wide = TwoSequences();
  wide.Step({Row0()}).runs[4 * 3] = Blocks(0, 2);
  ExpectRule(wide, StepRule::kSentinel, 3);  // D4
}

TEST(StepVerifier, Runs) {
  Log shorter = TwoSequences();
  shorter.Step({Row0()}).num_runs[0] = 1;
  ExpectRule(shorter, StepRule::kRuns, 3);  // D5
  Log empty = TwoSequences();
  empty.Step({Row0()}).runs[0].num_blocks = 0;
  ExpectRule(empty, StepRule::kRuns, 3);
  Log beyond = TwoSequences();
  beyond.Step({Row0()}).runs[0].num_blocks = ~0u;
  ExpectRule(beyond, StepRule::kRuns, 3);
  Log padded = TwoSequences();
  padded.Step({Row0()}).header.padded_tokens = 13;
  ExpectRule(padded, StepRule::kRuns, 3);  // D5
}

TEST(StepVerifier, Groups) {
  const auto plant = [](const std::vector<TransferGroup>& groups) {
    Log log = TwoSequences();
    log.Step({}, groups);
    ExpectRule(log, StepRule::kGroups, 3);  // D6
  };
  plant({Group(5, 20, 2), Group(12, 21, 1)});  // two targets
  plant({Group(5, 20, 2), Group(20, 25, 1)});  // a source that is a target
  plant({Group(0, 20, 1)});
  plant({Group(5, 0, 1)});
  plant({Group(5, 20, 0)});
  plant({Group(5, kPool + kLanes * kLaneBlocks - 1, 2)});
  plant({Group(5, 20, 1, GroupKind::kMap)});
  plant({Group(5, 20, 1, GroupKind::kLayerSlices)});                         // without the flag
  plant({Layers(5, 20, 1, 0, 1), Layers(5, 20, 1, 1, 1), Group(6, 21, 1)});  // out of order
  plant({Layers(5, 20, 1, 0, 1), Layers(6, 20, 1, 1, 1)});                   // of two blocks
  plant({Layers(5, 20, 1, 0, 2), Layers(5, 20, 1, 1, 1)});                   // a layer twice
  plant({Group(5, 20, 1), Layers(5, 20, 1, 1, 1)});
  plant({Layers(5, 20, 1, 0, 3)});  // there are two
  TransferGroup strange = Group(5, 20, 1);
  strange.kind = static_cast<GroupKind>(3);
  plant({strange});
}

// Each layer of a block by its own deadline, in groups of other lengths.
TEST(StepVerifier, Deadlines) {
  Log log = TwoSequences();
  log.Step({}, {Layers(5, 20, 2, 0, 1), Layers(12, 22, 1, 0, 1), Layers(5, 20, 1, 1, 1),
                Layers(6, 21, 1, 1, 1), Layers(12, 22, 1, 1, 1)});
  log.Landed(3);
  log.Latched(3);
  log.Landed(3, 1);
  log.Retired(3);
  EXPECT_FALSE(log.Verify().has_value());
  const auto plant = [](const std::vector<TransferGroup>& groups) {
    Log late = TwoSequences();
    late.Step({}, groups);
    ExpectRule(late, StepRule::kDeadline, 3);  // D8
  };
  TransferGroup whole = Group(5, 20, 1);
  whole.before_layer = 1;
  plant({whole});
  plant({Layers(5, 20, 2, 0, 1), Layers(5, 20, 1, 1, 1)});  // layer 1 of block 21 is missing
  plant({Layers(5, 20, 1, 1, 1)});                          // layer 0 is
}

TEST(StepVerifier, LandedByDeadlines) {
  const auto two_deadlines = [] {
    Log log = TwoSequences();
    log.Step({}, {Layers(5, 20, 1, 0, 1), Layers(5, 20, 1, 1, 1)});
    return log;
  };
  Log early = two_deadlines();
  early.Latched(3);
  ExpectRule(early, StepRule::kLanded, 3);
  Log retired = two_deadlines();
  retired.Landed(3, 0);
  retired.Latched(3);
  retired.Retired(3);
  ExpectRule(retired, StepRule::kLanded, 3);
  // The next step needs all of them.
  Log next = two_deadlines();
  next.Landed(3, 0);
  next.Latched(3);
  next.Step({}, {});
  next.Latched(4);
  ExpectRule(next, StepRule::kLanded, 4);
}

TEST(StepVerifier, MissedWrite) {
  Log log = TwoSequences();
  log.Step({Row0()}, {Group(9, 20, 1)});
  ExpectRule(log, StepRule::kMissedWrite, 3);  // D7
}

TEST(StepVerifier, Landed) {
  Log log = TwoSequences();
  log.Step({Row0()}, {Group(12, 20, 1)});
  log.Latched(3);
  ExpectRule(log, StepRule::kLanded, 3);
  // Later steps need it as well.
  Log later = TwoSequences();
  later.Step({}, {Group(12, 20, 1)});
  later.Landed(2);
  later.Latched(3);
  ExpectRule(later, StepRule::kLanded, 3);
}

TEST(StepVerifier, Reuse) {
  // Step 3 reads blocks 12 and 13 and is in flight.
  Log target = TwoSequences();
  target.Step({Row1()});
  target.Step({Row0()}, {Group(5, 12, 1)});
  ExpectRule(target, StepRule::kReuse, 4);
  Log begun = TwoSequences();
  begun.Step({Row1()});
  begun.Open(2);
  begun.Step({{2, 0, {1}, {Blocks(13, 1)}}});
  ExpectRule(begun, StepRule::kReuse, 4);
  // The identity is the same, the sequence is another.
  Log reborn = TwoSequences();
  reborn.Step({Row1()});
  reborn.Open(1);
  reborn.Step({{1, 0, {1}, {Blocks(12, 1)}}});
  ExpectRule(reborn, StepRule::kReuse, 4);
  // Who shared a block with others may write it once their steps have retired, its own or not.
  Log left = TwoSequences();
  left.Fork(2, 1, 4);
  left.Step({Row1()});
  left.Step({{2, 4, {5}, {Blocks(12, 1), Blocks(20, 1)}}});
  Log too_early = left;
  left.Finish(3);
  left.Step({{2, 0, {1}, {Blocks(12, 1)}}});
  ExpectGood(left);
  too_early.Step({{2, 0, {1}, {Blocks(12, 1)}}});
  ExpectRule(too_early, StepRule::kReuse, 5);
  // What was moved away from waits for its copy.
  Log moved = TwoSequences();
  moved.Step({{0, 10, {7}, {Blocks(20, 3)}}}, {Group(5, 20, 2), Group(9, 22, 1)});
  moved.Open(2);
  moved.Step({{2, 0, {1}, {Blocks(5, 1)}}});
  ExpectRule(moved, StepRule::kReuse, 4);
  Log twice = TwoSequences();
  twice.Step({}, {Group(5, 20, 1)});
  twice.Step({}, {Group(12, 20, 1)});
  ExpectRule(twice, StepRule::kReuse, 4);
}

TEST(StepVerifier, ReuseAfterRetireIsFine) {
  Log log = TwoSequences();
  log.Step({Row1()});
  log.Finish(3);
  log.Open(2);
  log.Step({{2, 0, {1}, {Blocks(13, 1)}}}, {Group(5, 12, 1)});
  ExpectGood(log);
}

TEST(StepVerifier, SameSequenceGoesOnWhileItsStepsAreInFlight) {
  Log log = TwoSequences();
  log.Step({Row1(6)});
  log.Step({Row1(7)});
  log.Step({Row1(4)});  // Shortened to one block, and on another way.
  ExpectGood(log);
  EXPECT_EQ(log.totals.most_in_flight, 3u);
}

TEST(StepVerifier, Torn) {
  Log log = TwoSequences();
  log.Step({Row1()});  // Writes position 6 into block 13, in flight.
  log.Step({{1, 7, {8}, {Blocks(12, 1), Blocks(20, 1)}}}, {Group(13, 20, 1)});
  ExpectRule(log, StepRule::kTorn, 4);
}

TEST(StepVerifier, Unwritten) {
  Log log = TwoSequences();
  log.Step({{1, 6, {8}, {Blocks(28, 1), Blocks(13, 1)}}});
  ExpectRule(log, StepRule::kUnwritten, 3);
  // The prefix was promised and lies nowhere.
  Log hit = TwoSequences();
  hit.Open(2, Tokens(4));
  hit.Step({{2, 4, {8}, {Blocks(28, 2)}}});
  ExpectRule(hit, StepRule::kUnwritten, 3);
}

TEST(StepVerifier, Content) {
  const auto plant = [](std::uint32_t seq, std::uint32_t first, const std::vector<Extent>& runs,
                        const std::vector<std::int32_t>& prefix, std::uint64_t salt) {
    Log log = TwoSequences();
    if (!prefix.empty()) log.Open(seq, prefix, salt);
    log.Step({{seq, first, {8}, runs}});
    ExpectRule(log, StepRule::kContent, 3);
  };
  plant(0, 10, {Blocks(6, 1), Blocks(5, 1), Blocks(9, 1)}, {}, 0);   // swapped
  plant(0, 10, {Blocks(12, 1), Blocks(6, 1), Blocks(9, 1)}, {}, 0);  // another sequence's
  plant(2, 4, {Blocks(5, 1), Blocks(20, 1)}, {10, 11, 12, 99}, 0);   // one other token
  plant(2, 4, {Blocks(5, 1), Blocks(20, 1)}, Tokens(4), 1);          // another tenant
  plant(2, 8, {Blocks(12, 1), Blocks(6, 1), Blocks(20, 1)}, {50, 51, 52, 53, 14, 15, 16, 17}, 0);
  // A copy that went wrong by one block.
  Log copied = TwoSequences();
  copied.Step({{0, 10, {7}, {Blocks(20, 3)}}}, {Group(6, 20, 1), Group(5, 21, 1), Group(9, 22, 1)});
  ExpectRule(copied, StepRule::kContent, 3);
  // A shared block that was written in place.
  Log shared = TwoSequences();
  shared.Fork(2, 0, 10);
  shared.Run({Row0()});
  shared.Run({{2, 10, {88}, {Blocks(5, 2), Blocks(9, 1)}}});
  shared.Step({Row0(11)});
  ExpectRule(shared, StepRule::kContent, 5);
}

TEST(StepVerifier, Holes) {
  Log log = TwoSequences();
  log.Step({{0, 10, {7}, {Blocks(5, 1), Blocks(0, 1), Blocks(9, 1)}}});
  ExpectRule(log, StepRule::kHole, 3);
  // One block more than was trimmed.
  Log more = TwoSequences();
  more.Trim(0, 4, 8);
  more.Step({{0, 10, {7}, {Blocks(0, 2), Blocks(9, 1)}}});
  ExpectRule(more, StepRule::kHole, 3);
  // What is gone does not come back.
  Log back = TwoSequences();
  back.Trim(0, 4, 8);
  back.Run({{0, 10, {7}, {Blocks(5, 1), Blocks(0, 1), Blocks(9, 1)}}});
  back.Step({Row0(11)});
  ExpectRule(back, StepRule::kContent, 4);
  Log written = TwoSequences();
  written.Trim(0, 8, 12);
  written.Step({{0, 10, {7}, {Blocks(5, 2), Blocks(0, 1)}}}).slots[0] = SlotId{42};
  ExpectRule(written, StepRule::kSentinel, 3);  // D4
}

TEST(StepVerifier, Sequences) {
  Log far = TwoSequences();
  far.Step({Row0(11)});
  ExpectRule(far, StepRule::kSequence, 3);
  Log unknown = TwoSequences();
  unknown.Step({{3, 0, {1}, {Blocks(20, 1)}}});
  ExpectRule(unknown, StepRule::kSequence, 3);
  Log forked = TwoSequences();
  forked.Fork(2, 1, 7);
  ExpectRule(forked, StepRule::kSequence, 3);
  Log twice = TwoSequences();
  twice.Step({Row1(), {1, 7, {8}, {Blocks(12, 2)}}});
  ExpectRule(twice, StepRule::kSequence, 3);
  Log untold = TwoSequences();
  untold.Open(2, {1, 2});
  untold.last(StepLogKind::kOpened).record.opened.num_tokens = 3;
  ExpectRule(untold, StepRule::kSequence, 3);
}

// Sequence 1 in a window of its own: filled by a copy, then kept up to date by mirrors.
Log Staged() {
  Log log = TwoSequences();
  const std::uint32_t window = kWindow0 + kLaneBlocks;
  log.Run({}, {Group(12, window, 2)});
  log.Run({{1, 6, {8, 9}, {Blocks(window, 2)}, {Blocks(12, 2)}}}, {}, kStepMirrored);
  return log;
}

TEST(StepVerifier, WindowsAndMirrors) {
  const std::uint32_t window = kWindow0 + kLaneBlocks;
  const RowSpec next = {1, 8, {3}, {Blocks(window, 3)}, {Blocks(12, 2), Blocks(20, 1)}};
  Log good = Staged();
  good.Run({next}, {}, kStepMirrored);
  ExpectGood(good);
  // A row that did not keep its window up to date.
  Log missing = TwoSequences();
  missing.Run({}, {Group(12, window, 2)});
  missing.Run({Row1()});
  missing.Step({{1, 7, {3}, {Blocks(window, 2)}, {Blocks(12, 2)}}}, {}, kStepMirrored);
  ExpectRule(missing, StepRule::kUnwritten, 5);
  Log elsewhere = Staged();
  elsewhere.Step({next}, {}, kStepMirrored).mirrors[0] = SlotId{(window + 3) * kBlockTokens};
  ExpectRule(elsewhere, StepRule::kSlots, 5);  // D3
  Log pool = Staged();
  pool.Step({next}, {}, kStepMirrored).mirrors[0] = SlotId{20 * kBlockTokens};
  ExpectRule(pool, StepRule::kSlots, 5);
  Log lane = Staged();
  lane.Step({{1, 8, {3}, {Blocks(kWindow0, 3)}, {Blocks(12, 2), Blocks(20, 1)}}}, {},
            kStepMirrored);
  ExpectRule(lane, StepRule::kWindow, 5);
  // The window is filled again while a step that reads it is in flight.
  Log refilled = Staged();
  refilled.Step({next}, {}, kStepMirrored);
  refilled.Step({}, {Group(12, window, 1)});
  ExpectRule(refilled, StepRule::kReuse, 6);
  Log home = Staged();
  home.Step({{1, 7, {3}, {Blocks(window, 2)}, {Blocks(12, 1), Blocks(9, 1)}}}, {}, kStepMirrored);
  ExpectRule(home, StepRule::kContent, 5);
}

TEST(StepVerifier, LayerBuffers) {
  const std::uint32_t lane = 1 + kLaneBlocks;
  const RowSpec row = {1, 6, {8}, {Blocks(lane, 2)}, {Blocks(12, 2)}};
  const TransferGroup slices = Group(12, lane, 2, GroupKind::kLayerSlices);
  Log good = TwoSequences();
  good.Run({row}, {slices}, kStepLayerWindows);
  ExpectGood(good);
  EXPECT_EQ(good.totals.num_slices, 1u);
  Log stale = TwoSequences();
  stale.Run({row}, {slices}, kStepLayerWindows);
  stale.Step({{1, 7, {8}, {Blocks(lane, 2)}, {Blocks(12, 2)}}}, {}, kStepLayerWindows);
  ExpectRule(stale, StepRule::kWindow, 4);
  Log lane0 = TwoSequences();
  lane0.Step({{1, 6, {8}, {Blocks(1, 2)}, {Blocks(12, 2)}}},
             {Group(12, 1, 2, GroupKind::kLayerSlices)}, kStepLayerWindows);
  ExpectRule(lane0, StepRule::kWindow, 3);
  Log wrong = TwoSequences();
  wrong.Step(
      {row},
      {Group(5, lane, 1, GroupKind::kLayerSlices), Group(13, lane + 1, 1, GroupKind::kLayerSlices)},
      kStepLayerWindows);
  ExpectRule(wrong, StepRule::kContent, 3);
}

TEST(StepVerifier, Mappings) {
  StepLogHeader header = Header();
  header.limits.mirrored = false;
  const std::uint32_t window = kWindow0 + kLaneBlocks;
  const auto begin = [&] {
    Log log(header);
    log.Open(1);
    log.Run({{1, 0, Tokens(6), {Blocks(window, 2)}, {Blocks(12, 2)}}},
            {Group(12, window, 2, GroupKind::kMap)});
    return log;
  };
  const RowSpec row = {1, 6, {8}, {Blocks(window, 2)}, {Blocks(12, 2)}};
  Log good = begin();
  good.Step({row});
  good.Step({{1, 7, {8}, {Blocks(window, 2)}, {Blocks(12, 2)}}},
            {Group(12, window, 2, GroupKind::kMap)});  // Shows the same as before.
  ExpectGood(good);
  // The home has moved and the window does not show it.
  Log stale = begin();
  stale.Step({{1, 6, {8}, {Blocks(window, 2)}, {Blocks(12, 1), Blocks(20, 1)}}},
             {Group(13, 20, 1)});
  ExpectRule(stale, StepRule::kSlots, 2);
  // It is exchanged while a step in flight reads it.
  Log early = begin();
  early.Step({row});
  early.Step({}, {Group(20, window + 1, 1, GroupKind::kMap)});
  ExpectRule(early, StepRule::kReuse, 3);
  Log unmapped(header);
  unmapped.Open(1, Tokens(4));
  unmapped.Step({{1, 4, {8}, {Blocks(window, 2)}, {Blocks(12, 2)}}});
  ExpectRule(unmapped, StepRule::kUnwritten, 1);
}

TEST(StepVerifier, WhatWasLostIsBelievedUntilItIsWrittenAnew) {
  Log log = TwoSequences();
  log.Add(StepLogKind::kGap).record.value = 9;
  log.Latched(4);  // Of steps that were lost.
  log.Retired(4);
  log.Step({Row0()}).header.step = StepId{7};
  log.Finish(7);
  log.Open(2);
  log.Step({{2, 0, {1}, {Blocks(28, 1)}}}).header.step = StepId{8};
  log.Finish(8);
  log.Step({{2, 1, {1}, {Blocks(28, 1)}}}).header.step = StepId{9};
  ExpectGood(log);
  EXPECT_EQ(log.totals.num_lost, 9u);
  EXPECT_EQ(log.totals.num_unknown_reads, 10u);
  // What is known again is proved again.
  log.Finish(9);
  log.Open(3, {1, 99});
  log.Step({{3, 2, {1}, {Blocks(28, 1)}}}).header.step = StepId{10};
  const auto violation = log.Verify();
  ASSERT_TRUE(violation.has_value());
  EXPECT_EQ(violation->rule, StepRule::kContent);
}

TEST(StepReplay, DigestIsThatOfTheTokensNotOfTheirPlaces) {
  Log plain = TwoSequences();
  plain.Run({Row0(), Row1()});
  // Other blocks, other chunks, a move, another order.
  Log moved;
  moved.Open(1);
  moved.Run({{1, 0, Tokens(5, 50), {Blocks(1, 1), Blocks(3, 1)}}});
  moved.Open(0);
  moved.Run({{0, 0, Tokens(2), {Blocks(7, 1)}}});
  moved.Run({{1, 5, {91, 8}, {Blocks(30, 2)}}, {0, 2, Tokens(7, 12), {Blocks(7, 1), Blocks(9, 2)}}},
            {Group(1, 30, 1), Group(3, 31, 1)});
  moved.Run({{0, 9, {90, 7}, {Blocks(7, 1), Blocks(9, 2)}}});
  EXPECT_FALSE(plain.Verify().has_value());
  EXPECT_FALSE(moved.Verify().has_value());
  EXPECT_EQ(plain.Digests(), moved.Digests());
  EXPECT_EQ(plain.Digests().at(100).num_tokens, 11u);
  // A block that was mixed up, in a log that nobody has verified.
  Log wrong = TwoSequences();
  wrong.Run({{0, 10, {7}, {Blocks(6, 1), Blocks(5, 1), Blocks(9, 1)}}, Row1()});
  EXPECT_NE(wrong.Digests().at(100), plain.Digests().at(100));
  EXPECT_EQ(wrong.Digests().at(101), plain.Digests().at(101));
}

TransferGroup Out(std::uint32_t pool, std::uint32_t host, std::uint32_t num_blocks) {
  return {
      .source = BlockId{pool}, .target = BlockId{host}, .num_blocks = num_blocks, .target_tier = 1};
}

TransferGroup Back(std::uint32_t host, std::uint32_t pool, std::uint32_t num_blocks) {
  return {
      .source = BlockId{host}, .target = BlockId{pool}, .num_blocks = num_blocks, .source_tier = 1};
}

// Sequence 0 has eight tokens in blocks 1 and 2, is parked and lies in host blocks 3 and 4.
Log Parked() {
  Log log;
  log.Open(0);
  log.Run({{.seq = 0, .first = 0, .tokens = Tokens(8), .runs = {Blocks(1, 2)}}});
  log.Park(0, 1);
  log.Run({}, {Out(1, 3, 2)});
  return log;
}

const RowSpec kGoesOn = {.seq = 2, .first = 8, .tokens = {99}, .runs = {Blocks(10, 3)}};

TEST(StepVerifier, AParkedHistoryGoesOnInAnotherIdentity) {
  Log log = Parked();
  log.Open(0);  // The identity and its blocks are another's now.
  log.Run({{.seq = 0, .first = 0, .tokens = Tokens(8, 50), .runs = {Blocks(1, 2)}}});
  log.Resume(2, 1);
  log.Run({kGoesOn}, {Back(3, 10, 2)});
  ExpectGood(log);
  EXPECT_EQ(log.totals.num_parked_blocks, 2u);
  EXPECT_EQ(log.totals.num_resumed_blocks, 2u);
  // As if it had never left.
  Log alone;
  alone.Open(0);
  alone.Run({{.seq = 0, .first = 0, .tokens = Tokens(8), .runs = {Blocks(1, 2)}}});
  alone.Run({{.seq = 0, .first = 8, .tokens = {99}, .runs = {Blocks(1, 3)}}});
  EXPECT_EQ(alone.Digests().at(100), log.Digests().at(100));
}

TEST(StepVerifier, AResumedRowReadsExactlyWhatWasParked) {
  Log missing = Parked();
  missing.Resume(2, 1);
  missing.Run({kGoesOn}, {Back(3, 10, 1)});
  ExpectRule(missing, StepRule::kUnwritten, 3);
  Log elsewhere = Parked();
  elsewhere.Resume(2, 1);
  elsewhere.Run({kGoesOn}, {Back(4, 10, 1), Back(3, 11, 1)});
  ExpectRule(elsewhere, StepRule::kContent, 3);
  Log never = Parked();
  never.Resume(2, 0);
  ExpectRule(never, StepRule::kSequence, 3);
  Log twice = Parked();
  twice.Resume(2, 1);
  twice.Resume(3, 1);
  ExpectRule(twice, StepRule::kSequence, 3);
  Log gone = Parked();
  gone.Run({{.seq = 0, .first = 8, .tokens = {99}, .runs = {Blocks(1, 3)}}});
  ExpectRule(gone, StepRule::kSequence, 3);
}

TEST(StepVerifier, HostBlocksHaveFencesAndBounds) {
  Log early = Parked();
  early.Resume(2, 1);
  early.Step({kGoesOn}, {Back(3, 10, 2)});
  early.Step({}, {Out(20, 3, 1)});  // Step 3 copies from there, and is in flight.
  ExpectRule(early, StepRule::kReuse, 4);
  Log beyond = Parked();
  beyond.Run({}, {Out(1, 8, 2)});
  ExpectRule(beyond, StepRule::kGroups, 3);
  Log sentinel = Parked();
  sentinel.Run({}, {Back(0, 10, 1)});
  ExpectRule(sentinel, StepRule::kGroups, 3);
  Log third = Parked();
  TransferGroup group = Out(1, 5, 1);
  group.target_tier = 2;
  third.Run({}, {group});
  ExpectRule(third, StepRule::kGroups, 3);
}

}  // namespace
}  // namespace kvrm
