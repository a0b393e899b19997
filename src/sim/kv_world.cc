// SPDX-License-Identifier: Apache-2.0
#include "sim/kv_world.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace kvrm {
namespace {

// How many different continuations of the first tokens there are.
constexpr std::uint32_t kFamilies = 4;
constexpr std::uint32_t kVocab = 64;

StepLimits LimitsOf(const KvScenario& scenario) {
  StepLimits limits = {.max_rows = scenario.cache.max_seqs,
                       .max_tokens = scenario.max_step_tokens,
                       .max_runs = scenario.cache.max_runs,
                       .max_groups = scenario.cache.max_groups,
                       .max_samples = scenario.cache.max_seqs,
                       .block_tokens = scenario.cache.layout.block_tokens};
  KvCache::RaiseLimits(scenario.cache, &limits);
  return limits;
}

std::uint32_t UpTo(std::uint32_t most, Rng& rng) {
  return static_cast<std::uint32_t>(rng.Below(std::uint64_t{most} + 1));
}

std::string Name(const char* verb, std::uint32_t s) {
  return std::string(verb) + " " + std::to_string(s);
}

}  // namespace

KvWorld::KvWorld(const KvScenario& scenario, SimTrace trace)
    : scenario_(scenario),
      trace_(trace),
      device_(scenario.device),
      cache_(scenario.cache, device_),
      limits_(LimitsOf(scenario)),
      builder_(limits_, scenario.depth),
      executor_({.limits = limits_,
                 .layout = scenario.cache.layout,
                 .memory = cache_.memory(),
                 .layer_buffers = cache_.layer_buffers()},
                device_, kVocab),
      verifier_(LogHeader()),
      seqs_(scenario.cache.max_seqs, Seq(scenario.cache.layout.block_tokens)),
      parked_(cache_.options().max_parked, Seq(scenario.cache.layout.block_tokens)) {
  device_.Use(&device_rng_);
  Note(ToString(scenario));
}

std::uint32_t KvWorld::max_tokens() const {
  return scenario_.cache.max_blocks_per_seq * limits_.block_tokens;
}

StepLogHeader KvWorld::LogHeader() const {
  const KvCacheOptions& cache = scenario_.cache;
  const std::uint64_t num_blocks = cache_.memory().size() / cache.layout.block_bytes();
  return {.limits = limits_,
          .layout = cache.layout,
          .num_pool_blocks = cache.num_blocks,
          .num_window_blocks = static_cast<std::uint32_t>(num_blocks) - cache.num_blocks,
          .num_layer_blocks = static_cast<std::uint32_t>(cache_.layer_buffers().size() /
                                                         (2 * cache.layout.layer_bytes())),
          .num_lanes = cache.max_seqs,
          .lane_blocks = cache.max_blocks_per_seq,
          .ring_entries = scenario_.depth,
          .num_host_blocks = cache_.options().host_blocks,
          .max_parked = cache_.options().max_parked,
          .has_lives = true,
          .view = KvViewName(cache.view),
          .placement = PlacementPolicyName(cache.placement)};
}

void KvWorld::Tell(const StepLogRecord& record) {
  const bool proved = verifier_.Consume(record);
  if (!proved) std::fprintf(stderr, "%s\n", verifier_.violation()->Text().c_str());
  CHECK(proved);
}

// The verifier hears of copies what the device knows: of the step's own those up to the deadline,
// of the steps before all.
void KvWorld::TellLanded(const Step& step, std::uint32_t deadline) {
  const bool has_own = std::ranges::any_of(step.view.groups, [](const TransferGroup& group) {
    return group.kind == GroupKind::kBlocks;
  });
  if (device_.FirstLanded(step.num_flights, has_own ? deadline : kAllDeadlines))
    Tell({.kind = StepLogKind::kLanded, .step = step.view.header->step, .value = deadline});
}

std::uint32_t KvWorld::BlocksFor(std::uint32_t num_tokens) const {
  return (num_tokens + limits_.block_tokens - 1) / limits_.block_tokens;
}

// Families share their first 16 tokens, pairs of them 48; from `own_from` on nobody shares.
std::int32_t KvWorld::TokenAt(const Seq& seq, std::uint32_t position) const {
  const std::uint64_t branch = position >= seq.own_from ? kFamilies * 2 + seq.own_seed
                               : position < 16          ? 0
                               : position < 48          ? 1 + seq.family / 2
                                                        : 1 + kFamilies + seq.family;
  return static_cast<std::int32_t>(Mix64(branch << 32 | position) & 0xfffff);
}

std::vector<std::int32_t> KvWorld::PlannedTokens(const Seq& seq, std::uint32_t num_tokens) const {
  std::vector<std::int32_t> tokens(num_tokens);
  for (std::uint32_t p = 0; p < num_tokens; ++p)
    tokens[p] = TokenAt(seq, p);
  return tokens;
}

// Of every full block: 64 bits of everything before it, and `key_bits` of its own tokens. Siblings
// can have one key; what continues a different prefix cannot, as with the real one.
std::vector<PrefixKey> KvWorld::Keys(std::span<const std::int32_t> tokens) const {
  const std::uint32_t block_tokens = limits_.block_tokens;
  std::vector<PrefixKey> keys(tokens.size() / block_tokens);
  std::uint64_t parent = 0;
  for (std::size_t b = 0; b < keys.size(); ++b) {
    std::uint64_t own = 0;
    for (const std::int32_t token : tokens.subspan(b * block_tokens, block_tokens))
      own = Mix64(own ^ static_cast<std::uint32_t>(token));
    const std::uint64_t before = Mix64(parent);
    parent = Mix64(parent ^ own);
    if (scenario_.key_bits < 64) own &= (std::uint64_t{1} << scenario_.key_bits) - 1;
    std::memcpy(keys[b].bytes.data(), &before, sizeof before);
    std::memcpy(keys[b].bytes.data() + sizeof before, &own, sizeof own);
  }
  return keys;
}

std::uint32_t KvWorld::RandomTokens(Rng& rng) const {
  return rng.Below(100) < 60 ? 0 : static_cast<std::uint32_t>(rng.Below(max_tokens() + 1));
}

void KvWorld::Do(const SimOp& op) {
  device_rng_ = Rng(op.seed, "device");
  Rng rng(op.seed, "op");
  DoVerb(op.kind, rng);
  Check();
}

// One that is open, or that is not, where there is one.
std::uint32_t KvWorld::Pick(bool open, Rng& rng) const {
  const auto first = static_cast<std::uint32_t>(rng.Below(seqs_.size()));
  for (std::uint32_t i = 0; i < seqs_.size(); ++i) {
    const std::uint32_t s = (first + i) % static_cast<std::uint32_t>(seqs_.size());
    if (seqs_[s].open == open) return s;
  }
  return first;
}

void KvWorld::DoVerb(std::uint8_t kind, Rng& rng) {
  const bool opens = kind == kOpen || kind == kOpenCached || kind == kFork || kind == kResume;
  const std::uint32_t s = Pick(!opens, rng);
  const Seq& seq = seqs_[s];
  const auto family = static_cast<std::uint32_t>(rng.Below(kFamilies));
  switch (kind) {
    case kStep:
      return DoStep(rng);
    case kRun:
      return RunLayer();
    case kRetire:
      return Retire();
    case kTick:
      return device_.Tick();
    case kOpen:
      return Open(s, RandomTokens(rng), family);
    case kOpenCached:
      return OpenCached(s, UpTo(max_tokens(), rng), family);
    case kFork: {
      const std::uint32_t parent = Pick(true, rng);
      const std::uint32_t length = seqs_[parent].length;
      return Fork(s, parent, rng.Below(2) == 0 ? length : UpTo(length, rng));
    }
    case kReserve:
      return Reserve(s, RandomTokens(rng));
    case kExtend:
      if (CanEdit(s)) Extend(s, seq.target + UpTo(max_tokens() - seq.target, rng));
      return;
    case kTruncate: {
      // Often only a little, as rejected speculation does.
      const std::uint32_t few = std::min(seq.target, 1 + UpTo(limits_.block_tokens, rng));
      return Truncate(s, rng.Below(3) != 0 ? seq.target - few : UpTo(seq.target, rng));
    }
    case kTrim: {
      const std::uint32_t from = UpTo(seq.length, rng);
      // What is cut out can then still be found, and what is computed behind it must not be.
      if (rng.Below(2) == 0) Publish(s);
      return Trim(s, from, from + UpTo(seq.length - from, rng));
    }
    case kRelease:
      return Release(s);
    case kPublish:
      Publish(s);
      // Often somebody looks for it at once.
      if (seq.open && (seq.history.has_holes() || rng.Below(3) == 0)) {
        const auto tokens = seq.history.tokens();
        OpenLike(Pick(false, rng), {tokens.begin(), tokens.end()}, seq);
      }
      return;
    case kDropCached:
      Note("drop cached");
      return cache_.DropCached();
    case kPark:
      return Park(s);
    case kResume: {
      const std::uint32_t parked = PickParked(rng);
      return Resume(parked, s, RandomTokens(rng));
    }
    case kDiscard:
      if (rng.Below(3) == 0) Discard(PickParked(rng));
      return;
    default:
      CHECK(false);
  }
}

// One that is there, where there is one.
std::uint32_t KvWorld::PickParked(Rng& rng) const {
  if (parked_.empty()) return 0;
  const auto first = static_cast<std::uint32_t>(rng.Below(parked_.size()));
  for (std::uint32_t i = 0; i < parked_.size(); ++i) {
    const std::uint32_t parked = (first + i) % static_cast<std::uint32_t>(parked_.size());
    if (parked_[parked].open) return parked;
  }
  return first;
}

void KvWorld::Park(std::uint32_t s) {
  Seq& seq = seqs_[s];
  if (!seq.open || seq.in_step || planned_) return;
  const bool is_resuming = cache_.is_resuming(SeqId{s});
  const std::optional<ParkedId> parked = cache_.Park(SeqId{s});
  CHECK(parked || !is_resuming);
  if (!parked) return;
  Note(Name("park", s) + " as " + std::to_string(Index(*parked)));
  Tell({.kind = StepLogKind::kParked, .value = Index(*parked), .seq = SeqId{s}});
  CHECK(!parked_[Index(*parked)].open);
  seq.target = seq.length;
  seq.reserved = 0;
  parked_[Index(*parked)] = std::exchange(seq, Seq(limits_.block_tokens));
}

void KvWorld::Resume(std::uint32_t parked, std::uint32_t s, std::uint32_t reserve_tokens) {
  Seq& seq = seqs_[s];
  if (parked_.empty() || !parked_[parked].open || seq.open || seq.ended_in_step) return;
  const auto tokens = parked_[parked].history.tokens();
  if (!cache_.Resume(ParkedId{parked}, SeqId{s}, tokens, Keys(tokens), reserve_tokens)) return;
  Note(Name("resume", parked) + " as " + std::to_string(s));
  Tell({.kind = StepLogKind::kResumed, .value = parked, .seq = SeqId{s}});
  seq = std::exchange(parked_[parked], Seq(limits_.block_tokens));
  seq.life = ++num_lives_;
  seq.reserved = std::max(reserve_tokens, seq.length);
}

void KvWorld::Discard(std::uint32_t parked) {
  if (parked_.empty() || !parked_[parked].open) return;
  Note(Name("discard", parked));
  cache_.Discard(ParkedId{parked});
  parked_[parked] = Seq(limits_.block_tokens);
}

void KvWorld::Reserve(std::uint32_t s, std::uint32_t num_tokens) {
  Seq& seq = seqs_[s];
  if (!seq.open || !cache_.Reserve(SeqId{s}, num_tokens)) return;
  Note(Name("reserve", s) + " " + std::to_string(num_tokens));
  seq.reserved = std::max(seq.reserved, num_tokens);
}

void KvWorld::Open(std::uint32_t s, std::uint32_t reserve_tokens, std::uint32_t family) {
  Seq& seq = seqs_[s];
  if (seq.open || seq.ended_in_step) return;
  const KvStats stats = cache_.stats();
  const bool fits =
      BlocksFor(reserve_tokens) + stats.num_promised <= stats.num_free + stats.num_cached;
  const bool opened = cache_.Open(SeqId{s}, reserve_tokens);
  CHECK(opened == fits);
  if (!opened) return;
  Note(Name("open", s) + " reserve " + std::to_string(reserve_tokens));
  Tell({.kind = StepLogKind::kOpened, .opened = {.seq = SeqId{s}}});
  seq = Seq(limits_.block_tokens);
  seq.open = true;
  seq.life = seq.own_seed = ++num_lives_;
  seq.family = family;
  seq.own_from = static_cast<std::uint32_t>(Mix64(seq.life) % (max_tokens() + 1));
  seq.reserved = reserve_tokens;
}

void KvWorld::OpenCached(std::uint32_t s, std::uint32_t num_tokens, std::uint32_t family) {
  Seq like(limits_.block_tokens);
  like.family = family;
  like.own_from = static_cast<std::uint32_t>(Mix64(num_lives_) % (max_tokens() + 1));
  like.own_seed = num_lives_ + 1;
  OpenLike(s, PlannedTokens(like, num_tokens), like);
}

void KvWorld::OpenFixed(std::uint32_t s, std::uint32_t num_tokens, std::uint32_t own_from) {
  Seq like(limits_.block_tokens);
  like.own_from = own_from;
  like.own_seed = s + 1;
  OpenLike(s, PlannedTokens(like, num_tokens), like);
}

void KvWorld::OpenLike(std::uint32_t s, const std::vector<std::int32_t>& tokens, const Seq& like) {
  Seq& seq = seqs_[s];
  if (seq.open || seq.ended_in_step) return;
  Seq next(limits_.block_tokens);
  next.open = true;
  next.life = ++num_lives_;
  next.family = like.family;
  next.own_from = like.own_from;
  next.own_seed = like.own_seed;
  const auto num_tokens = static_cast<std::uint32_t>(tokens.size());
  const auto found = cache_.OpenCached(SeqId{s}, tokens, Keys(tokens), num_tokens);
  if (!found) return;
  Note(Name("open cached", s) + " of " + std::to_string(num_tokens) + " tokens: found " +
       std::to_string(*found));
  CHECK(*found <= num_tokens && *found % limits_.block_tokens == 0);
  for (std::uint32_t p = 0; p < *found; ++p)
    next.history.Append(tokens[p]);
  Tell({.kind = StepLogKind::kOpened,
        .opened = {.seq = SeqId{s},
                   .num_tokens = *found,
                   .request = next.life,
                   .tokens = std::span(tokens).first(*found)}});
  next.length = next.target = *found;
  next.reserved = num_tokens;
  seq = std::move(next);
  CheckSealed(s);
}

void KvWorld::Fork(std::uint32_t child, std::uint32_t parent, std::uint32_t num_tokens) {
  const Seq& from = seqs_[parent];
  if (child == parent || !CanEdit(parent)) return;
  if (seqs_[child].open || seqs_[child].ended_in_step) return;
  if (num_tokens % limits_.block_tokens != 0 && from.target != from.length) return;
  if (!cache_.Fork(SeqId{child}, SeqId{parent}, num_tokens, 0)) return;
  Note(Name("fork", child) + " from " + std::to_string(parent) + " at " +
       std::to_string(num_tokens));
  Tell({.kind = StepLogKind::kOpened,
        .opened = {.seq = SeqId{child}, .parent = SeqId{parent}, .num_tokens = num_tokens}});
  Seq next = from;
  next.history.Truncate(num_tokens);
  next.life = ++num_lives_;
  if (next.life % 4 != 0) next.own_seed = next.life;
  if (next.life % 4 != 0) next.own_from = std::min(next.own_from, num_tokens);
  next.length = next.target = num_tokens;
  next.reserved = 0;
  seqs_[child] = std::move(next);
}

void KvWorld::Truncate(std::uint32_t s, std::uint32_t num_tokens) {
  Seq& seq = seqs_[s];
  if (!CanEdit(s)) return;
  if (num_tokens < seq.length && num_tokens % limits_.block_tokens != 0 &&
      seq.history.IsHole(num_tokens / limits_.block_tokens)) {
    return;
  }
  Note(Name("truncate", s) + " to " + std::to_string(num_tokens));
  cache_.Truncate(SeqId{s}, num_tokens);
  if (num_tokens < seq.length) seq.history.Truncate(num_tokens);
  seq.length = std::min(seq.length, num_tokens);
  seq.target = num_tokens;
  seq.reserved = 0;  // The promise may have been given up with what was shared.
}

void KvWorld::Trim(std::uint32_t s, std::uint32_t from, std::uint32_t to) {
  Seq& seq = seqs_[s];
  if (!CanEdit(s)) return;
  const std::uint32_t first = BlocksFor(from);
  const std::uint32_t end = to / limits_.block_tokens;
  cache_.Trim(SeqId{s}, from, to);
  Tell({.kind = StepLogKind::kTrimmed, .seq = SeqId{s}, .from = from, .to = to});
  std::vector<bool> hole;
  for (const Extent& run : cache_.home(SeqId{s}))
    hole.insert(hole.end(), run.num_blocks, run.start == kSentinelBlock);
  // All of the range or nothing of it, and nothing else.
  const auto is_new = [&](std::uint32_t b) { return hole[b] && !seq.history.IsHole(b); };
  bool any = false;
  for (std::uint32_t b = 0; b < hole.size(); ++b) {
    CHECK(hole[b] || !seq.history.IsHole(b));
    CHECK(!is_new(b) || (b >= first && b < end));
    any = any || is_new(b);
  }
  if (!any) return;
  for (std::uint32_t b = first; b < end; ++b)
    CHECK(hole[b]);
  seq.history.Drop(first, end);
  Note(Name("trim", s) + " blocks " + std::to_string(first) + " to " + std::to_string(end));
}

void KvWorld::Release(std::uint32_t s) {
  Seq& seq = seqs_[s];
  if (!seq.open) return;
  Note(Name("release", s));
  cache_.Release(SeqId{s});
  const bool named = is_building_ && (seq.in_step || planned_);
  seq = Seq(limits_.block_tokens);
  seq.ended_in_step = named;
}

void KvWorld::Publish(std::uint32_t s) {
  const Seq& seq = seqs_[s];
  if (!CanEdit(s)) return;
  Note(Name("publish", s) + ", " + std::to_string(seq.length) + " tokens");
  // What it will write next is known as well, as a prompt is: it must not be published yet.
  std::vector<std::int32_t> tokens(seq.history.tokens().begin(), seq.history.tokens().end());
  const std::uint32_t most = std::min(max_tokens(), seq.length + 2 * limits_.block_tokens);
  for (std::uint32_t p = seq.length; p < most; ++p)
    tokens.push_back(TokenAt(seq, p));
  cache_.Publish(SeqId{s}, tokens, Keys(tokens));
}

bool KvWorld::Extend(std::uint32_t s, std::uint32_t num_tokens) {
  Seq& seq = seqs_[s];
  const bool extended = cache_.Extend(SeqId{s}, num_tokens);
  // P5, where no lane may be in limbo: the copy of a shared block is beyond the promise.
  if (scenario_.cache.view == KvView::kExtents && num_tokens <= seq.reserved &&
      seq.length % limits_.block_tokens == 0) {
    CHECK(extended);
  }
  if (extended) seq.target = std::max(seq.target, num_tokens);
  return extended;
}

bool KvWorld::Begin() {
  if (is_building_ || !builder_.Begin()) return false;
  building_ = Step{};
  is_building_ = true;
  return true;
}

void KvWorld::Plan() {
  cache_.Plan(builder_, builder_.building());
  planned_ = true;
  Note("plan: " + std::to_string(builder_.num_groups()) + " groups");
}

bool KvWorld::AddRow(std::uint32_t s, std::uint32_t num_tokens) {
  Seq& seq = seqs_[s];
  std::vector<std::int32_t> tokens(num_tokens);
  for (std::uint32_t i = 0; i < num_tokens; ++i)
    tokens[i] = TokenAt(seq, seq.length + i);
  if (!cache_.AddRow(
          builder_,
          {.seq = SeqId{s}, .first_position = seq.length, .tokens = tokens, .num_samples = 1})) {
    return false;
  }
  for (const std::int32_t token : tokens)
    seq.history.Append(token);
  seq.in_step = true;
  building_.rows.push_back({.seq = s, .life = seq.life, .digest = seq.history.digest()});
  Note(Name("row of", s) + ": tokens " + std::to_string(seq.length) + " to " +
       std::to_string(seq.history.length()));
  return true;
}

void KvWorld::Commit() {
  building_.view = builder_.Commit(0, limits_.max_rows);
  Note("commit step " + std::to_string(Index(building_.view.header->step)));
  NoteTouched(building_);
  CheckFences(building_);
  Tell({.kind = StepLogKind::kStep, .view = building_.view});
  cache_.Launch(building_.view);
  building_.num_flights = device_.num_flights();
  for (const TransferGroup& group : building_.view.groups) {
    if (group.kind == GroupKind::kBlocks) last_flight_ = building_.view.header->step;
  }
  num_rows_ += building_.rows.size();
  ++num_steps_;
  for (Seq& seq : seqs_) {
    seq.length = seq.history.length();
    seq.in_step = seq.ended_in_step = false;
  }
  steps_.push_back(std::move(building_));
  is_building_ = planned_ = false;
}

void KvWorld::Abandon() {
  Note("abandon");
  builder_.Abandon();
  abandoned_ = builder_.building();
  for (Seq& seq : seqs_) {
    seq.history.Truncate(seq.length);
    seq.in_step = seq.ended_in_step = false;
  }
  is_building_ = planned_ = false;
}

// One layer of the oldest committed step that has not run to its end.
void KvWorld::RunLayer() {
  const auto step =
      std::ranges::find_if(steps_, [](const Step& s) { return s.num_layers_run < kSimLayers; });
  if (step == steps_.end()) return;
  if (!step->started) {
    CHECK(builder_.Latch().header == step->view.header);
    if (last_flight_ <= step->view.header->step) cache_.Land(0);
    TellLanded(*step, 0);
    Tell({.kind = StepLogKind::kLatched, .step = step->view.header->step});
    executor_.Start(step->view);
    step->started = true;
  }
  Note("run layer " + std::to_string(step->num_layers_run) + " of step " +
       std::to_string(Index(step->view.header->step)));
  executor_.RunLayer(step->num_layers_run++);
  if (step->num_layers_run == kSimLayers) CheckRows(*step);
}

void KvWorld::Retire() {
  if (is_building_ || steps_.empty() || steps_.front().num_layers_run < kSimLayers) return;
  const StepView& view = steps_.front().view;
  Note("retire step " + std::to_string(Index(view.header->step)));
  if (last_flight_ <= view.header->step) cache_.Land();
  TellLanded(steps_.front(), kAllDeadlines);
  Tell({.kind = StepLogKind::kRetired,
        .step = view.header->step,
        .value = StepBuilder::Checksum(view)});
  cache_.Retire(builder_.Retire());
  steps_.pop_front();
}

// Between the parts of a step the world goes on: the executor, the device, other sequences.
void KvWorld::Interlude(Rng& rng) {
  while (rng.Below(100) < scenario_.interlude_percent) {
    static constexpr Kind kBetween[] = {kRun,  kTick,    kOpen,    kOpenCached, kRelease,
                                        kFork, kReserve, kPublish, kTruncate,   kTrim,
                                        kPark, kResume,  kDiscard};
    DoVerb(kBetween[rng.Below(std::size(kBetween))], rng);
  }
}

void KvWorld::DoStep(Rng& rng) {
  if (!Begin()) return;
  Interlude(rng);
  const bool plan_first = rng.Below(100) < 20;
  if (plan_first) Plan();
  std::vector<std::uint32_t> want(seqs_.size(), 0);
  std::uint32_t budget = limits_.max_tokens;
  for (std::uint32_t s = 0; s < seqs_.size(); ++s) {
    const Seq& seq = seqs_[s];
    if (!seq.open || rng.Below(100) < 30) continue;
    const std::uint32_t most = std::min(max_tokens() - seq.length, budget);
    if (most == 0) continue;
    const std::uint64_t dice = rng.Below(100);
    const std::uint32_t few = dice < 35 ? 1 : dice < 80 ? 3 * limits_.block_tokens : most;
    const auto more = static_cast<std::uint32_t>(1 + rng.Below(std::min(most, few)));
    if (seq.length + more > seq.target && !Extend(s, seq.length + more)) continue;
    want[s] = more;
    budget -= more;
  }
  Interlude(rng);
  if (!plan_first) Plan();
  AddRows(want, rng);
  if (rng.Below(100) >= scenario_.abandon_percent) return Commit();
  Abandon();
  if (rng.Below(2) == 0) return cache_.Abandon();
  // Built anew at once: Plan notices.
  CHECK(Begin());
  Plan();
  Commit();
}

void KvWorld::AddRows(std::vector<std::uint32_t>& want, Rng& rng) {
  for (std::uint32_t s = 0; s < seqs_.size(); ++s) {
    Interlude(rng);
    // What happened meanwhile may have ended or shortened it.
    const Seq& seq = seqs_[s];
    if (want[s] == 0 || !seq.open || seq.in_step || seq.length + want[s] > seq.target) continue;
    if (AddRow(s, want[s]) && rng.Below(100) < scenario_.end_inside_percent) Release(s);
  }
  Interlude(rng);
}

}  // namespace kvrm
