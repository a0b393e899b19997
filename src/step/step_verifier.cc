// SPDX-License-Identifier: Apache-2.0
#include "step/step_verifier.h"

#include <algorithm>
#include <array>

#include "step/step_builder.h"
#include "step/step_verifier_state.h"

namespace kvrm {
namespace {

constexpr std::array<const char*, 18> kRuleNames = {
    "epochs", "checksum",  "shape",    "slots",        "two-owners", "sentinel",
    "runs",   "groups",    "deadline", "missed-write", "landed",     "reuse",
    "torn",   "unwritten", "content",  "hole",         "window",     "sequence"};

std::string Number(std::uint64_t value) {
  return std::to_string(value);
}

}  // namespace

const char* StepRuleName(StepRule rule) {
  return kRuleNames[static_cast<std::size_t>(rule)];
}

std::string StepViolation::Text() const {
  std::string text = "step " + Number(Index(step));
  if (row != kNoNumber) text += ", row " + Number(row);
  if (block != kNoNumber) text += ", block " + Number(block);
  return text + ": " + StepRuleName(rule) + ": " + message;
}

StepVerifier::State::State(const StepLogHeader& header_in)
    : header_(header_in),
      block_tokens_(header_in.limits.block_tokens),
      lane_tokens_(std::uint64_t{header_in.lane_blocks} * block_tokens_),
      content_(header_in),
      blocks_(content_.num_places()),
      lives_(std::size_t{header_in.num_lanes} + header_in.max_parked),
      history_(lives_.size() * lane_tokens_),
      may_be_hole_(lives_.size() * header_in.lane_blocks),
      flights_(header_in.ring_entries),
      layer_marks_(header_in.num_layer_blocks) {}

std::uint64_t StepVerifier::RequiredBytes(const StepLogHeader& header) {
  const std::uint64_t num_blocks =
      std::uint64_t{header.num_pool_blocks} + header.num_window_blocks + header.num_host_blocks;
  const std::uint64_t num_lives = std::uint64_t{header.num_lanes} + header.max_parked;
  const std::uint64_t lane_blocks = num_lives * header.lane_blocks;
  return StepContent::RequiredBytes(header) + num_blocks * sizeof(State::Block) +
         lane_blocks * header.limits.block_tokens * sizeof(std::uint64_t) + lane_blocks +
         num_lives * sizeof(State::Life) +
         std::uint64_t{header.num_layer_blocks} * sizeof(std::uint64_t);
}

StepVerifier::StepVerifier(const StepLogHeader& header) : state_(std::make_unique<State>(header)) {}

StepVerifier::~StepVerifier() = default;

const std::optional<StepViolation>& StepVerifier::violation() const {
  return state_->violation_;
}

const StepTotals& StepVerifier::totals() const {
  return state_->totals_;
}

bool StepVerifier::Consume(const StepLogRecord& record) {
  State& state = *state_;
  if (state.violation_) return false;
  ++state.totals_.num_records;
  switch (record.kind) {
    case StepLogKind::kOpened:
      return state.Opened(record.opened);
    case StepLogKind::kTrimmed:
      return state.Trimmed(record);
    case StepLogKind::kParked:
      return state.Parked(record);
    case StepLogKind::kResumed:
      return state.Resumed(record);
    case StepLogKind::kStep:
      return state.Step(record.view);
    case StepLogKind::kLanded:
      return state.Landed(Index(record.step), record.value);
    case StepLogKind::kLatched:
      return state.Latched(Index(record.step));
    case StepLogKind::kRetired:
      return state.Retired(Index(record.step), record.value);
    case StepLogKind::kSampled:
      return state.Sampled(Index(record.step), record.tokens.size());
    case StepLogKind::kGap:
      state.Gap(record.value);
      return true;
    case StepLogKind::kHeader:
    case StepLogKind::kEnd:
      return true;
  }
  return true;
}

bool StepVerifier::State::Fail(StepRule rule, std::uint32_t row, std::uint32_t block,
                               std::string message) {
  violation_ = {.rule = rule,
                .step = StepId{now_},
                .row = row,
                .block = block,
                .message = std::move(message)};
  return false;
}

bool StepVerifier::State::Landed(std::uint64_t step, std::uint64_t deadline) {
  if (is_lost_ || step <= floor_) return true;
  if (step > committed_) {
    now_ = step;
    return Fail(StepRule::kEpochs, kNoNumber, kNoNumber,
                "copies landed, and committed is step " + Number(committed_));
  }
  const bool is_known = step + flights_.size() > committed_;
  const bool all = !is_known || deadline >= flights_[step % flights_.size()].last_deadline;
  landed_ = std::max(landed_, all ? step : step - 1);
  landed_partly_ = std::max(landed_partly_, step);
  return true;
}

bool StepVerifier::State::Latched(std::uint64_t step) {
  if (is_lost_ || step <= floor_) return true;
  now_ = step;
  if (step != latched_ + 1 || step > committed_) {
    return Fail(
        StepRule::kEpochs, kNoNumber, kNoNumber,
        "latched after step " + Number(latched_) + ", committed is " + Number(committed_));  // D1
  }
  const std::uint64_t copies = flights_[step % flights_.size()].copies_until;
  const std::uint64_t landed = copies == step ? landed_partly_ : landed_;
  if (copies > landed && copies > floor_) {
    return Fail(StepRule::kLanded, kNoNumber, kNoNumber,
                "latched while the copies of step " + Number(copies) +
                    " are in flight; landed are those of step " + Number(landed_));
  }
  latched_ = step;
  return true;
}

bool StepVerifier::State::Retired(std::uint64_t step, std::uint64_t checksum) {
  if (is_lost_ || step <= floor_) return true;
  now_ = step;
  if (step != retired_ + 1 || step > latched_) {
    return Fail(
        StepRule::kEpochs, kNoNumber, kNoNumber,
        "retired after step " + Number(retired_) + ", latched is " + Number(latched_));  // D1
  }
  const std::uint64_t copies = flights_[step % flights_.size()].copies_until;
  if (copies > landed_ && copies > floor_) {
    return Fail(StepRule::kLanded, kNoNumber, kNoNumber,
                "retired while the copies of step " + Number(copies) + " are in flight");
  }
  if (checksum != flights_[step % flights_.size()].checksum) {
    return Fail(StepRule::kChecksum, kNoNumber, kNoNumber,
                "the descriptor changed between commit and retire");  // D2
  }
  retired_ = step;
  return true;
}

bool StepVerifier::State::Sampled(std::uint64_t step, std::size_t num_tokens) {
  if (is_lost_ || step <= floor_) return true;
  now_ = step;
  if (step == 0 || step > latched_ || step + flights_.size() <= committed_) {
    return Fail(StepRule::kEpochs, kNoNumber, kNoNumber,
                "sampled, and latched is " + Number(latched_));
  }
  const std::uint32_t num_samples = flights_[step % flights_.size()].num_samples;
  if (num_tokens != num_samples) {
    return Fail(StepRule::kShape, kNoNumber, kNoNumber,
                Number(num_tokens) + " tokens for " + Number(num_samples) + " samples");
  }
  totals_.num_samples += num_tokens;
  return true;
}

void StepVerifier::State::Gap(std::uint64_t num_records) {
  totals_.num_lost += num_records;
  is_lost_ = true;
  content_.Forget();
  for (Life& life : lives_)
    life = {.id = ++num_lives_, .is_lost = true};
  std::fill(may_be_hole_.begin(), may_be_hole_.end(), std::uint8_t{1});
}

bool StepVerifier::State::Step(const StepView& view) {
  const StepHeader& header = *view.header;
  now_ = Index(header.step);
  if (is_lost_ && now_ > committed_) {
    is_lost_ = false;
    floor_ = committed_ = latched_ = retired_ = landed_ = landed_partly_ = now_ - 1;
  }
  if (!CheckHeader(view) || !CheckTokens(view) || !CheckPadding(view)) return false;
  committed_ = now_;
  fence_ = std::max(retired_, floor_);
  totals_.most_in_flight =
      std::max(totals_.most_in_flight, static_cast<std::uint32_t>(committed_ - fence_));
  for (std::uint32_t row = 0; row < header.num_rows; ++row) {
    if (!BeginRow(view, row)) return false;
  }
  if (!CheckGroups(view)) return false;
  for (std::uint32_t row = 0; row < header.num_rows; ++row) {
    if (!CheckWrites(view, row, view.slots) || !CheckWrites(view, row, view.mirrors)) return false;
  }
  for (const TransferGroup& group : view.groups) {
    if (!CheckSources(group)) return false;
  }
  for (const TransferGroup& group : view.groups)
    ApplyGroup(group, header.step);
  for (std::uint32_t row = 0; row < header.num_rows; ++row) {
    if (!WalkRow(view, row)) return false;
  }
  flights_[now_ % flights_.size()] = {.checksum = header.checksum,
                                      .copies_until = last_copies_,
                                      .num_samples = header.num_samples,
                                      .last_deadline = view.LastDeadline()};
  ++totals_.num_steps;
  totals_.num_rows += header.num_rows;
  totals_.num_tokens += header.num_tokens;
  return true;
}

bool StepVerifier::State::CheckHeader(const StepView& view) {
  const StepHeader& header = *view.header;
  if (now_ != committed_ + 1) {
    return Fail(StepRule::kEpochs, kNoNumber, kNoNumber,
                "committed after step " + Number(committed_));  // D1
  }
  if (now_ - std::max(retired_, floor_) > header_.ring_entries) {
    return Fail(StepRule::kEpochs, kNoNumber, kNoNumber,
                "committed while step " + Number(retired_ + 1) + " has not retired; the ring has " +
                    Number(header_.ring_entries) + " entries");  // D1
  }
  constexpr std::uint32_t kFlags = kStepMirrored | kStepLayerWindows;
  const bool mirrored = (header.flags & kStepMirrored) != 0;
  if (header.version != kStepVersion || header.reserved != 0 || (header.flags & ~kFlags) != 0 ||
      (mirrored && !header_.limits.mirrored)) {
    return Fail(StepRule::kShape, kNoNumber, kNoNumber,
                "version " + Number(header.version) + ", flags " + Number(header.flags) +
                    ", reserved " + Number(header.reserved));
  }
  // Checksum aborts on these, and a view whose stride hides them is no better.
  for (std::uint32_t row = 0; row < header.bucket_rows; ++row) {
    if (view.num_runs[row] > std::min(header_.limits.max_runs, view.max_runs)) {
      return Fail(StepRule::kRuns, row, kNoNumber,
                  Number(view.num_runs[row]) + " runs; the limit is " +
                      Number(header_.limits.max_runs));  // D5
    }
  }
  if (StepBuilder::Checksum(view) != header.checksum)
    return Fail(StepRule::kChecksum, kNoNumber, kNoNumber, "the checksum does not hold");  // D2
  return true;
}

// Prefix sums, positions, samples and identities.
bool StepVerifier::State::CheckTokens(const StepView& view) {
  const StepHeader& header = *view.header;
  const auto bad = [this](std::uint32_t row, const char* what) {
    return Fail(StepRule::kShape, row, kNoNumber, what);
  };
  if (view.row_start[0] != 0 || view.row_start[header.num_rows] != header.num_tokens)
    return bad(kNoNumber, "row_start does not end with the tokens");
  for (std::uint32_t row = 0; row < header.num_rows; ++row) {
    const std::uint32_t begin = view.row_start[row];
    const std::uint32_t end = view.row_start[row + 1];
    if (begin >= end || end > header.num_tokens) return bad(row, "row_start does not ascend");
    if (Index(view.row_seq[row]) >= header_.num_lanes)
      return bad(row, "the sequence's identity is beyond the lanes");
    const std::int64_t first = view.positions[begin];
    for (std::uint32_t t = begin; t < end; ++t) {
      if (view.positions[t] < 0 || view.positions[t] != first + (t - begin))
        return bad(row, "positions do not count up");
    }
    if (std::uint64_t{static_cast<std::uint32_t>(view.positions[end - 1])} >= lane_tokens_)
      return bad(row, "positions are beyond the longest context");
  }
  for (std::uint32_t i = 0; i < header.num_samples; ++i) {
    if (view.sample_token[i] >= header.num_tokens ||
        (i > 0 && view.sample_token[i] <= view.sample_token[i - 1])) {
      return bad(kNoNumber, "samples do not ascend within the tokens");
    }
  }
  return true;
}

bool StepVerifier::State::CheckPadding(const StepView& view) {
  for (std::uint32_t row = view.header->num_rows; row < view.header->bucket_rows; ++row) {
    if (view.num_runs[row] != 1 || view.RowRuns(row)[0] != Extent{kSentinelBlock, 1}) {
      return Fail(StepRule::kSentinel, row, kNoNumber,
                  "a row of padding names more than the sentinel");  // D4
    }
  }
  return true;
}

// Kind, order and bounds.
bool StepVerifier::State::CheckGroup(const StepView& view, const TransferGroup& group) {
  const auto bad = [this, &group](const char* what) {
    return Fail(StepRule::kGroups, kNoNumber, Index(group.target), what);  // D6
  };
  if (group.kind > GroupKind::kMap) return bad("unknown kind of group");
  if (group.num_blocks == 0) return bad("a group of no blocks");
  const auto within = [&group](BlockId start, std::uint64_t first, std::uint64_t end) {
    return Index(start) >= first && std::uint64_t{Index(start)} + group.num_blocks <= end;
  };
  const std::uint32_t pool_end = content_.num_pool_blocks();
  const std::uint32_t all_end = content_.num_blocks();
  const bool moves = group.kind == GroupKind::kBlocks;
  if (!moves && (group.source_tier != 0 || group.target_tier != 0))
    return bad("only whole blocks leave the first tier");
  if (group.source_tier > 1 || group.target_tier > 1) return bad("there are two tiers");
  const std::uint64_t host_end = std::uint64_t{content_.num_host_blocks()} + 1;
  if (group.source_tier == 0 ? !within(group.source, 1, moves ? all_end : pool_end)
                             : !within(group.source, 1, host_end)) {
    return bad("source beyond the blocks, or the sentinel");
  }
  if (group.kind == GroupKind::kLayerSlices) {
    if ((view.header->flags & kStepLayerWindows) == 0 ||
        !within(group.target, 1, content_.num_layer_blocks())) {
      return bad("target beyond the layer buffers");
    }
  } else if (group.target_tier == 0 ? !within(group.target, moves ? 1 : pool_end, all_end)
                                    : !within(group.target, 1, host_end)) {
    return bad("target beyond the blocks, or the sentinel");
  }
  return true;
}

// The deadline of what the group copies is no later than the first layer of it.
bool StepVerifier::State::CheckDeadline(const TransferGroup& group) {
  const std::uint32_t end = std::uint32_t{group.before_layer} + group.num_layers;
  if (group.num_layers == 0 && group.before_layer != 0) {
    return Fail(StepRule::kDeadline, kNoNumber, Index(group.target),
                "layer 0 needs what lands before layer " + Number(group.before_layer));  // D8
  }
  if (group.num_layers != 0 &&
      (group.kind != GroupKind::kBlocks || end > header_.layout.num_layers)) {
    return Fail(StepRule::kGroups, kNoNumber, Index(group.target),
                "layers up to " + Number(end) + " of " + Number(header_.layout.num_layers));
  }
  return true;
}

// `block`, a target of this step already, gets the layers behind those it has, from the same block.
bool StepVerifier::State::CheckNextLayers(const TransferGroup& group, std::uint32_t block) {
  Block& target = blocks_[block];
  const std::uint32_t source = content_.PlaceOf(group.source, group.source_tier) +
                               (block - content_.PlaceOf(group.target, group.target_tier));
  const bool is_part = group.kind == GroupKind::kBlocks && group.num_layers > 0;
  if (!is_part || target.target_source != source || target.target_layers > group.before_layer)
    return Fail(StepRule::kGroups, kNoNumber, block, "the target of two groups");  // D6
  if (target.target_layers < group.before_layer) {
    return Fail(StepRule::kDeadline, kNoNumber, block,
                "layer " + Number(target.target_layers) + " is not copied, layer " +
                    Number(group.before_layer) + " is");  // D8
  }
  target.target_layers += group.num_layers;
  return true;
}

bool StepVerifier::State::CheckAllLayers(const TransferGroup& group) {
  if (group.num_layers == 0) return true;
  for (std::uint32_t i = 0; i < group.num_blocks; ++i) {
    const std::uint32_t block = content_.PlaceOf(group.target, group.target_tier) + i;
    if (blocks_[block].target_layers == header_.layout.num_layers) continue;
    return Fail(StepRule::kDeadline, kNoNumber, block,
                "layer " + Number(blocks_[block].target_layers) + " is copied by no group");  // D8
  }
  return true;
}

// Nothing else of this step, and no step in flight, uses what the group overwrites or shows.
bool StepVerifier::State::CheckTargets(const TransferGroup& group) {
  const std::uint32_t first = content_.PlaceOf(group.target, group.target_tier);
  for (std::uint32_t b = first; b < first + group.num_blocks; ++b) {
    const bool is_layer = group.kind == GroupKind::kLayerSlices;
    std::uint64_t& mark = is_layer ? layer_marks_[b] : blocks_[b].target_epoch;
    if (mark == now_ && is_layer)
      return Fail(StepRule::kGroups, kNoNumber, b, "the target of two groups");  // D6
    if (mark != now_ && !is_layer) {
      blocks_[b].target_source = content_.PlaceOf(group.source, group.source_tier) + (b - first);
      blocks_[b].target_layers = group.num_layers == 0 ? header_.layout.num_layers : 0;
    }
    const bool is_first = mark != now_;
    mark = now_;
    if (is_layer) continue;
    if ((!is_first || group.num_layers > 0) && !CheckNextLayers(group, b)) return false;
    if (!is_first) continue;
    const bool is_same =
        group.kind == GroupKind::kMap && content_.Shown(b) == Index(group.source) + (b - first);
    const Block& block = blocks_[b];
    // A window may be filled anew: flights land one after the other, and nobody has read it.
    const std::uint64_t copied = content_.IsWindow(b) ? 0 : block.copy_epoch;
    const std::uint64_t used = std::max(block.row_epoch, copied);
    if (InFlight(used) && !is_same) {
      return Fail(StepRule::kReuse, kNoNumber, b,
                  "target of a group while step " + Number(used) + ", which uses it, is in flight");
    }
  }
  return true;
}

bool StepVerifier::State::CheckSources(const TransferGroup& group) {
  if (group.kind != GroupKind::kBlocks) return true;
  const std::uint32_t first = content_.PlaceOf(group.source, group.source_tier);
  for (std::uint32_t b = first; b < first + group.num_blocks; ++b) {
    if (blocks_[b].target_epoch == now_)
      return Fail(StepRule::kGroups, kNoNumber, b, "both source and target of groups");  // D6
    if (blocks_[b].write_epoch == now_) {
      return Fail(StepRule::kMissedWrite, blocks_[b].write_row, b,
                  "copied by the step that writes it");  // D7
    }
  }
  return true;
}

bool StepVerifier::State::CheckGroups(const StepView& view) {
  std::uint32_t last_deadline = 0;
  for (const TransferGroup& group : view.groups) {
    const bool is_copy = group.kind == GroupKind::kBlocks;
    if (is_copy && group.before_layer < last_deadline) {
      return Fail(StepRule::kGroups, kNoNumber, Index(group.target),
                  "groups are not in order of their layers");  // D6
    }
    if (is_copy) last_deadline = group.before_layer;
    if (!CheckGroup(view, group) || !CheckDeadline(group) || !CheckTargets(group)) return false;
  }
  return std::all_of(view.groups.begin(), view.groups.end(),
                     [this](const TransferGroup& group) { return CheckAllLayers(group); });
}

void StepVerifier::State::ApplyGroup(const TransferGroup& group, StepId step) {
  switch (group.kind) {
    case GroupKind::kMap:
      content_.Map(group);
      ++totals_.num_maps;
      return;
    case GroupKind::kLayerSlices:
      content_.Gather(group, step);
      ++totals_.num_slices;
      return;
    case GroupKind::kBlocks:
      break;
  }
  ++totals_.num_copies;
  if (group.before_layer > 0) return;  // Of blocks that the group of their first layers has copied.
  totals_.num_copied_blocks += group.num_blocks;
  last_copies_ = now_;
  totals_.num_parked_blocks += group.target_tier != 0 ? group.num_blocks : 0;
  totals_.num_resumed_blocks += group.source_tier != 0 ? group.num_blocks : 0;
  content_.Copy(group, fence_);
  for (std::uint32_t i = 0; i < group.num_blocks; ++i) {
    const std::uint32_t target = content_.PlaceOf(group.target, group.target_tier) + i;
    std::uint64_t life = 0;
    bool is_bridge = false;
    if (content_.IsWindow(target)) {
      const std::uint64_t number = target - content_.num_pool_blocks();
      const std::uint64_t lane = number / header_.lane_blocks;
      if (lane < header_.num_lanes) life = lives_[lane].id;
      is_bridge = lane < header_.num_lanes && may_be_hole_[number] != 0;
    }
    // What is copied into a window's hole was on the way: nobody cares what it is.
    if (!is_bridge) {
      Block& source = blocks_[content_.PlaceOf(group.source, group.source_tier) + i];
      source.copy_epoch = now_;
      source.copy_life = life;
    }
    blocks_[target].copy_epoch = now_;
    blocks_[target].copy_life = life;
    blocks_[target].life = 0;
    blocks_[target].row_epoch = blocks_[target].other_epoch = 0;
  }
}

}  // namespace kvrm
