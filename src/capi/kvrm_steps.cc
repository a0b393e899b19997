// SPDX-License-Identifier: Apache-2.0
// The steps of kvrm.h.
#include <cstring>

#include "capi/handle.h"
#include "capi/kvrm.h"

static_assert(KVRM_STEP_VERSION == kvrm::kStepVersion);
static_assert(KVRM_STEP_MIRRORED == kvrm::kStepMirrored);
static_assert(KVRM_STEP_LAYER_WINDOWS == kvrm::kStepLayerWindows);
static_assert(KVRM_GROUP_LAYER_SLICES == static_cast<unsigned>(kvrm::GroupKind::kLayerSlices));
static_assert(KVRM_GROUP_MAP == static_cast<unsigned>(kvrm::GroupKind::kMap));

namespace {

using kvrm::Index;
using kvrm::SeqId;
using kvrm::StepId;
using kvrm::capi::CheckOpen;
using kvrm::capi::Good;
using kvrm::capi::Hand;
using kvrm::capi::Phase;
using kvrm::capi::Refuse;
using kvrm::capi::Sequence;

// The step under construction is over; with `advance` its rows are written.
void EndStep(kvrm_cache* cache, bool advance) {
  for (const std::uint32_t seq : cache->rows) {
    Sequence& sequence = cache->sequences[seq];
    if (advance) sequence.length += sequence.added;
    sequence.added = 0;
  }
  cache->rows.clear();
  for (Sequence& sequence : cache->sequences)
    sequence.ended_in_step = false;
  cache->phase = Phase::kIdle;
}

kvrm_step StepOf(const kvrm::StepView& view) {
  const kvrm::StepHeader& header = *view.header;
  kvrm_step step = {};
  step.epoch = Index(header.step);
  step.version = header.version;
  step.flags = header.flags;
  step.bucket = header.bucket;
  step.num_rows = header.num_rows;
  step.bucket_rows = header.bucket_rows;
  step.num_tokens = header.num_tokens;
  step.num_samples = header.num_samples;
  step.num_groups = header.num_groups;
  step.max_runs = view.max_runs;
  step.padded_tokens = header.padded_tokens;
  step.token_ids = view.token_ids.data();
  step.positions = view.positions.data();
  step.slots = reinterpret_cast<const std::uint32_t*>(view.slots.data());
  step.mirrors =
      view.mirrors.empty() ? nullptr : reinterpret_cast<const std::uint32_t*>(view.mirrors.data());
  step.row_start = view.row_start.data();
  step.row_seq = reinterpret_cast<const std::uint32_t*>(view.row_seq.data());
  step.num_runs = view.num_runs.data();
  step.runs = reinterpret_cast<const kvrm_extent*>(view.runs.data());
  step.sample_token = view.sample_token.data();
  step.groups = reinterpret_cast<const kvrm_group*>(view.groups.data());
  return step;
}

}  // namespace

kvrm_status kvrm_step_begin(kvrm_cache* cache) {
  if (cache == nullptr) return KVRM_ARGUMENT;
  if (cache->phase != Phase::kIdle)
    return Refuse(cache, KVRM_ORDER, "begin: a step is under construction");
  if (!cache->builder.Begin())
    return Refuse(cache, KVRM_WAIT, "begin: every descriptor is in flight; retire a step");
  cache->phase = Phase::kBegun;
  cache->num_tokens = 0;
  cache->num_samples = 0;
  return Good(cache);
}

kvrm_status kvrm_step_plan(kvrm_cache* cache) {
  if (cache == nullptr) return KVRM_ARGUMENT;
  if (cache->phase != Phase::kBegun) return Refuse(cache, KVRM_ORDER, "plan: once, after begin");
  cache->cache.Plan(cache->builder, cache->builder.building());
  cache->phase = Phase::kPlanned;
  return Good(cache);
}

kvrm_status kvrm_step_add_row(kvrm_cache* cache, std::uint32_t seq, const std::int32_t* tokens,
                              std::uint32_t num_tokens, std::uint32_t num_samples) {
  if (cache == nullptr) return KVRM_ARGUMENT;
  if (cache->phase != Phase::kPlanned) return Refuse(cache, KVRM_ORDER, "add_row: after plan");
  if (const auto status = CheckOpen(cache, "seq", seq); status != KVRM_OK) return status;
  const kvrm::StepLimits& limits = cache->limits;
  Sequence& sequence = cache->sequences[seq];
  if (sequence.added > 0)
    return Refuse(cache, KVRM_ORDER, "seq: the row of %u is in the step already", unsigned{seq});
  if (cache->rows.size() == limits.max_rows)
    return Refuse(cache, KVRM_ARGUMENT, "the step has max_rows (%u) rows", limits.max_rows);
  if (tokens == nullptr || num_tokens == 0)
    return Refuse(cache, KVRM_ARGUMENT, "tokens must not be null and num_tokens not 0");
  if (num_tokens > limits.max_tokens - cache->num_tokens)
    return Refuse(cache, KVRM_ARGUMENT, "num_tokens is %u; max_tokens leaves %u",
                  unsigned{num_tokens}, limits.max_tokens - cache->num_tokens);
  if (num_tokens > sequence.target - sequence.length)
    return Refuse(cache, KVRM_ARGUMENT, "num_tokens is %u; seq %u has slots for %u more",
                  unsigned{num_tokens}, unsigned{seq}, sequence.target - sequence.length);
  if (num_samples > num_tokens || num_samples > limits.max_samples - cache->num_samples)
    return Refuse(
        cache, KVRM_ARGUMENT, "num_samples is %u; num_tokens is %u, max_samples leaves %u",
        unsigned{num_samples}, unsigned{num_tokens}, limits.max_samples - cache->num_samples);
  const bool added = cache->cache.AddRow(cache->builder, {.seq = SeqId{seq},
                                                          .first_position = sequence.length,
                                                          .tokens = {tokens, num_tokens},
                                                          .num_samples = num_samples});
  if (!added)
    return Refuse(cache, KVRM_WAIT, "seq: what %u reads is not in its place yet", unsigned{seq});
  cache->rows.push_back(seq);
  sequence.added = num_tokens;
  cache->num_tokens += num_tokens;
  cache->num_samples += num_samples;
  return Good(cache);
}

kvrm_status kvrm_step_commit(kvrm_cache* cache, std::uint32_t bucket, std::uint32_t bucket_rows) {
  if (cache == nullptr) return KVRM_ARGUMENT;
  if (cache->phase != Phase::kPlanned) return Refuse(cache, KVRM_ORDER, "commit: after plan");
  if (bucket_rows < cache->rows.size() || bucket_rows > cache->limits.max_rows)
    return Refuse(cache, KVRM_ARGUMENT, "bucket_rows is %u; the step has %zu rows, max_rows is %u",
                  unsigned{bucket_rows}, cache->rows.size(), cache->limits.max_rows);
  const kvrm::StepView view = cache->builder.Commit(bucket, bucket_rows);
  cache->cache.Launch(view);
  const std::uint64_t epoch = Index(view.header->step);
  cache->landed = epoch - 1;  // Launch waits for the copies of the step before.
  cache->committed.store(epoch, std::memory_order_release);
  EndStep(cache, true);
  return Good(cache);
}

kvrm_status kvrm_step_abandon(kvrm_cache* cache) {
  if (cache == nullptr) return KVRM_ARGUMENT;
  if (cache->phase == Phase::kIdle)
    return Refuse(cache, KVRM_ORDER, "abandon: no step is under construction");
  cache->builder.Abandon();
  cache->cache.Abandon();
  EndStep(cache, false);
  return Good(cache);
}

kvrm_status kvrm_step_latch(kvrm_cache* cache, kvrm_step* step) {
  if (cache == nullptr || step == nullptr || step->struct_size < sizeof(std::size_t))
    return KVRM_ARGUMENT;
  const kvrm::StepView view = cache->builder.Latch();
  if (view.header == nullptr) return KVRM_WAIT;
  Hand(StepOf(view), step);
  cache->latched.store(Index(view.header->step), std::memory_order_release);
  return KVRM_OK;
}

kvrm_status kvrm_step_land(kvrm_cache* cache) {
  if (cache == nullptr) return KVRM_ARGUMENT;
  cache->cache.Land();
  cache->landed = cache->committed.load(std::memory_order_relaxed);
  return Good(cache);
}

kvrm_status kvrm_step_retire(kvrm_cache* cache, std::uint64_t* epoch) {
  if (cache == nullptr) return KVRM_ARGUMENT;
  if (cache->retired == cache->latched.load(std::memory_order_acquire))
    return Refuse(cache, KVRM_ORDER, "retire: no step is latched and not retired");
  if (cache->retired == cache->landed)
    return Refuse(cache, KVRM_ORDER, "retire: the step's copies were not waited for (land)");
  const StepId step = cache->builder.Retire();
  cache->cache.Retire(step);
  cache->retired = Index(step);
  if (epoch != nullptr) *epoch = cache->retired;
  return Good(cache);
}
