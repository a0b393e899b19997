// SPDX-License-Identifier: Apache-2.0
#include "sim/engine_world.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <utility>

#include "base/check.h"
#include "base/result.h"
#include "sim/sim_executor.h"
#include "step/step_log.h"
#include "step/step_verifier.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kVocab = 64;
// So many steps without an event, or without work while requests wait, is no progress.
constexpr std::uint32_t kPatience = 20000;
// One engine's schedule in so many has a descriptor log, whose ring and thread cost more than the
// schedule.
constexpr std::uint64_t kLogShare = 4;

bool IsStatic(KvView view) {
  return view == KvView::kStatic || view == KvView::kStaticPadded ||
         view == KvView::kStaticBucketed;
}

// Pace, deadlines and priorities, of random numbers of their own: half of the scenarios have none.
void AddTurns(std::uint64_t seed, EngineScenario* s) {
  Rng rng(seed, "engine turns");
  s->engine.max_wait_ms = 0;
  s->engine.pace.itl_factor = 0;
  if (rng.Below(2) == 0) return;
  constexpr double kFactors[] = {1, 1.2, 1.6, 3};
  s->engine.pace.itl_factor = kFactors[rng.Below(4)];
  if (rng.Below(4) == 0) s->engine.pace.max_step_seconds = 1e-3 * static_cast<double>(rng.Below(4));
  s->engine.pace.free_rows = static_cast<std::uint32_t>(rng.Below(5));
  s->engine.pace.min_prompt_tokens = 1 + static_cast<std::uint32_t>(rng.Below(6));
  s->clock_seed = rng.Next();
  s->timeout_percent = static_cast<std::uint32_t>(rng.Below(30));
  s->priority_percent = static_cast<std::uint32_t>(rng.Below(80));
}

}  // namespace

EngineScenario RandomEngineScenario(std::uint64_t seed) {
  Rng rng(seed, "engine scenario");
  const auto below = [&rng](std::uint32_t bound) {
    return static_cast<std::uint32_t>(rng.Below(bound));
  };
  EngineScenario s;
  EngineOptions& e = s.engine;
  e.block_tokens = below(100) < 80 ? 16 : 32;
  e.max_rows = 1 + below(8);
  e.max_context = 2 * e.block_tokens + below(12 * e.block_tokens);
  e.max_step_tokens = e.max_rows + below(100);
  e.prompt_chunk = below(2) == 0 ? 0 : 1 + below(40);
  e.view = below(100) < 30 ? KvView::kExtents : static_cast<KvView>(below(kNumKvViews));
  e.placement = static_cast<PlacementPolicy>(below(kNumPlacementPolicies - 1));
  e.placement_seed = below(2) == 0 ? 0 : 1 + rng.Below(1000);
  e.kv_tokens = IsStatic(e.view) ? 0 : e.max_context + below(e.max_rows * e.max_context);
  e.max_runs = 2 + below(7);
  e.max_edits_per_step = 1 + below(8);
  e.max_move_bytes_per_step = (1 + below(12)) * SimLayout(e.block_tokens).block_bytes();
  e.prefix_cache = below(100) < 75;
  e.max_queued = 1 + below(8);
  s.device.twice_percent = below(50);
  s.device.refuse_percent = below(100) < 20 ? below(30) : 0;
  s.shared_percent = below(90);
  s.has_log = Mix64(seed) % kLogShare == 0;
  if (below(100) < 70) e.layered_move_bytes = below(3) * SimLayout(e.block_tokens).block_bytes();
  const std::uint32_t most_blocks = e.max_rows * (e.max_context / e.block_tokens + 1);
  e.host_kv_bytes =
      below(100) < 30 ? 0 : (1 + below(most_blocks)) * SimLayout(e.block_tokens).block_bytes();
  AddTurns(seed, &s);
  return s;
}

std::string ToString(const EngineScenario& s) {
  const EngineOptions& e = s.engine;
  const auto field = [](const char* name, std::uint64_t value) {
    return std::string(" ") + name + "=" + std::to_string(value);
  };
  return std::string("view=") + KvViewName(e.view) +
         " placement=" + PlacementPolicyName(e.placement) +
         field("placement_seed", e.placement_seed) + field("block_tokens", e.block_tokens) +
         field("rows", e.max_rows) + field("context", e.max_context) +
         field("step_tokens", e.max_step_tokens) + field("chunk", e.prompt_chunk) +
         field("kv_tokens", e.kv_tokens) + field("runs", e.max_runs) +
         field("edits", e.max_edits_per_step) + field("move_bytes", e.max_move_bytes_per_step) +
         field("layered_bytes", e.layered_move_bytes) + field("host_bytes", e.host_kv_bytes) +
         field("itl_percent", static_cast<std::uint64_t>(e.pace.itl_factor * 100)) +
         field("prefix_cache", e.prefix_cache ? 1 : 0) + field("queued", e.max_queued);
}

std::vector<std::uint8_t> EngineWorld::OpMix(std::uint64_t seed) {
  Rng rng(seed, "engine mix");
  std::vector<std::uint8_t> mix;
  const auto add = [&mix](std::uint8_t kind, std::uint64_t weight) {
    mix.insert(mix.end(), weight, kind);
  };
  add(kSubmit, 2 + rng.Below(10));
  add(kCancel, rng.Below(3) * rng.Below(4));
  add(kStep, 20 + rng.Below(40));
  add(kPoll, 5 + rng.Below(30));
  return mix;
}

EngineWorld::EngineWorld(const EngineScenario& scenario, SimTrace trace)
    : scenario_(scenario),
      trace_(trace),
      clock_(scenario.clock_seed),
      device_(scenario.device),
      log_fd_(scenario.has_log ? ::memfd_create("descriptor log", MFD_CLOEXEC) : -1),
      engine_(std::in_place, Parts(), Options(), clock_),
      sampler_(kVocab, kScalarKernels),
      stats_(1, kVocab),
      logits_(kVocab) {
  device_.Use(&device_rng_);
  Note(ToString(scenario));
}

EngineOptions EngineWorld::Options() const {
  EngineOptions options = scenario_.engine;
  options.kernels = "scalar";  // The sampler's: the same draws on every machine.
  if (log_fd_ >= 0) options.descriptor_log = "/proc/self/fd/" + std::to_string(log_fd_);
  return options;
}

EngineWorld::~EngineWorld() {
  engine_.reset();
  if (log_fd_ >= 0) ::close(log_fd_);
}

EngineParts EngineWorld::Parts() {
  return {.layout = SimLayout(kTileTokens),
          .vocab_size = kVocab,
          .max_context = 1u << 20,
          .model_digest = "sim",
          .device = &device_,
          .make_executor = [this](const ExecutorNeeds& needs) -> std::unique_ptr<Executor> {
            return std::make_unique<SimExecutor>(needs, device_, kVocab);
          }};
}

void EngineWorld::Do(const SimOp& op) {
  device_rng_ = Rng(op.seed, "device");
  Rng rng(op.seed, "op");
  switch (op.kind) {
    case kSubmit:
      return Submit(rng);
    case kCancel:
      return Cancel(rng);
    case kStep:
      return Step();
    case kPoll:
      return Poll(static_cast<std::uint32_t>(rng.Below(2) == 0 ? ~0u : rng.Below(8)));
    default:
      CHECK(false);
  }
}

Request EngineWorld::RandomRequest(Rng& rng) const {
  const std::uint32_t context = scenario_.engine.max_context;
  Request request;
  const auto length = static_cast<std::uint32_t>(1 + rng.Below(context - 1));
  const bool shared = rng.Below(100) < scenario_.shared_percent;
  // Four families of prompts; a prompt leaves its family at some point.
  const std::uint64_t family = rng.Below(4);
  const std::uint64_t leaves = shared ? rng.Below(length + 1) : 0;
  for (std::uint32_t p = 0; p < length; ++p) {
    const std::uint64_t token = p < leaves ? Mix64(family << 32 | p) : rng.Next();
    request.prompt.push_back(static_cast<std::int32_t>(token % kVocab));
  }
  request.max_tokens = static_cast<std::uint32_t>(1 + rng.Below(rng.Below(2) == 0 ? 8 : context));
  if (rng.Below(2) == 0) request.sampling.temperature = 0.0f;
  request.sampling.seed = rng.Next();
  if (rng.Below(100) < 30) request.stop_ids = {static_cast<std::int32_t>(rng.Below(kVocab))};
  if (rng.Below(100) < 30) request.num_samples = static_cast<std::uint32_t>(2 + rng.Below(4));
  if (rng.Below(100) < 20) request.cache_salt = "another tenant";
  if (rng.Below(100) < scenario_.priority_percent) {
    request.priority = static_cast<std::int32_t>(rng.Below(3)) - 1;
    request.tenant = rng.Below(3);
    request.tenant_weight = static_cast<float>(1 + rng.Below(4));
  }
  if (rng.Below(100) < scenario_.timeout_percent)
    request.timeout_ms = static_cast<std::uint32_t>(1 + rng.Below(400));
  if (rng.Below(100) < scenario_.timeout_percent)
    request.max_wait_ms = static_cast<std::uint32_t>(1 + rng.Below(100));
  return request;
}

void EngineWorld::Submit(Rng& rng) {
  const Request request = RandomRequest(rng);
  // Not later than the engine's own look at the clock.
  const std::int64_t before_ns = clock_.NowNs();
  const Result<RequestId> id = engine_->Submit(request);
  const std::uint32_t limit = scenario_.engine.max_queued + scenario_.engine.max_rows;
  if (!id) {
    CHECK(id.error().code == ErrorCode::kOverloaded);
    CHECK(num_open_ + request.num_samples > limit || num_commands_ >= 2 * limit);  // R6
    return;
  }
  ++num_commands_;
  num_open_ += request.num_samples;
  Note("submit " + std::to_string(static_cast<std::uint64_t>(*id)) + ": prompt of " +
       std::to_string(request.prompt.size()) + ", at most " + std::to_string(request.max_tokens) +
       ", samples " + std::to_string(request.num_samples));
  const auto num_prompt = static_cast<std::uint32_t>(request.prompt.size());
  for (std::uint32_t i = 0; i < request.num_samples; ++i) {
    Served& served = served_[RequestId{static_cast<std::uint64_t>(*id) + i}];
    for (const std::int32_t token : request.prompt)
      served.history.Append(token);
    served.sampling = request.sampling;
    served.sampling.seed += i;
    served.stop_ids = request.stop_ids;
    served.num_prompt_tokens = num_prompt;
    if (request.timeout_ms > 0)
      served.timeout_at_ns = before_ns + std::int64_t{request.timeout_ms} * 1'000'000;
    if (request.max_wait_ms > 0)
      served.wait_until_ns = before_ns + std::int64_t{request.max_wait_ms} * 1'000'000;
    served.max_length =
        num_prompt + std::min(request.max_tokens, scenario_.engine.max_context - num_prompt);
  }
}

// Now and then of one that is over, or never was (R3).
void EngineWorld::Cancel(Rng& rng) {
  const std::uint32_t limit = scenario_.engine.max_queued + scenario_.engine.max_rows;
  if (num_commands_ + 1 >= 2 * limit) return;  // Cancel would wait for the engine's thread.
  const RequestId id{1 + rng.Below(served_.size() + 2)};
  ++num_commands_;
  Note("cancel " + std::to_string(static_cast<std::uint64_t>(id)));
  if (const auto it = served_.find(id); it != served_.end()) it->second.cancelled = true;
  engine_->Cancel(id);
}

void EngineWorld::Step() {
  clock_.Advance(1'000'000);
  engine_->Step();
  engine_->CheckInvariants();
  if (!trace_) return;
  const EngineStats stats = engine_->stats();
  const KvStats kv = engine_->kv_stats();
  Note("step " + std::to_string(stats.num_steps) + ": " + std::to_string(stats.num_running) +
       " run, " + std::to_string(stats.num_waiting) + " wait, " +
       std::to_string(stats.num_preemptions) + " preemptions, " + std::to_string(kv.num_free) +
       " free, " + std::to_string(kv.num_cached) + " cached, " + std::to_string(kv.num_promised) +
       " promised, " + std::to_string(kv.num_run_overflows) + " overflows, " +
       std::to_string(kv.num_stalls) + " stalls, " + std::to_string(kv.num_waits) + " waits, " +
       std::to_string(stats.num_prompt_tokens + stats.num_output_tokens) + " tokens");
}

void EngineWorld::Poll(std::uint32_t most) {
  TokenEvent event;
  while (most-- > 0 && engine_->Poll({&event, 1}) == 1)
    Take(event);
}

void EngineWorld::Take(const TokenEvent& event) {
  ++num_events_;
  const auto it = served_.find(event.request);
  CHECK(it != served_.end());
  Served& served = it->second;
  CHECK(!served.ended);  // R1
  if (event.finish != FinishReason::kNone) {
    served.ended = true;
    --num_open_;
  }
  if (event.finish == FinishReason::kAborted) {
    CHECK(served.cancelled && event.token == -1);  // R4
    return;
  }
  if (event.finish == FinishReason::kTimeout) {
    CHECK(served.timeout_at_ns > 0 && clock_.NowNs() >= served.timeout_at_ns && event.token == -1);
    return;
  }
  if (event.finish == FinishReason::kWaited) {
    CHECK(served.wait_until_ns > 0 && clock_.NowNs() >= served.wait_until_ns && event.token == -1);
    CHECK(served.history.length() == served.num_prompt_tokens);  // Nothing has come out of it.
    return;
  }
  CHECK(event.finish != FinishReason::kError);
  FillLogits(served.history.digest(), logits_);
  const Sampled expected = sampler_.Sample(logits_, stats_.Compute(0, logits_), served.sampling,
                                           served.history.length() - served.num_prompt_tokens);
  CHECK(event.token == expected.token);                                            // R8
  CHECK(!(event.logprob < expected.logprob || event.logprob > expected.logprob));  // R8
  served.history.Append(event.token);
  const bool stops = std::ranges::find(served.stop_ids, event.token) != served.stop_ids.end();
  const FinishReason finish = stops                                          ? FinishReason::kStop
                              : served.history.length() == served.max_length ? FinishReason::kLength
                                                                             : FinishReason::kNone;
  CHECK(event.finish == finish);
}

void EngineWorld::Finish() {
  Note("faults end");
  device_.EndFaults();
  std::uint32_t patience = kPatience;
  while (num_open_ > 0) {
    const std::uint64_t before = num_events_;
    Step();
    Poll(~0u);
    patience = num_events_ != before ? kPatience : patience - 1;
    CHECK(patience > 0);  // R5
  }
  engine_->Step();
  engine_->CheckInvariants();
  const EngineStats stats = engine_->stats();
  CHECK(stats.num_running == 0 && stats.num_waiting == 0);
  CHECK(stats.num_free_blocks == stats.num_blocks);  // K1
  CHECK(engine_->kv_stats().num_host_free == engine_->kv_stats().num_host_blocks);
  TokenEvent event;
  CHECK(engine_->Poll({&event, 1}) == 0);
  totals_ = Totals();
  engine_.reset();
  if (log_fd_ >= 0) VerifyLog();
}

// Of the whole log: it is complete, and nothing in it breaks a rule.
void EngineWorld::VerifyLog() {
  const off_t size = ::lseek(log_fd_, 0, SEEK_END);
  CHECK(size > 0);
  std::vector<std::byte> bytes(static_cast<std::size_t>(size));
  CHECK(::pread(log_fd_, bytes.data(), bytes.size(), 0) == size);
  Result<StepLogReader> reader = StepLogReader::Open(bytes);
  CHECK(reader);
  StepVerifier verifier(reader->header());
  while (!reader->done()) {
    const Result<StepLogRecord> record = reader->Next();
    CHECK(record);
    const bool proved = verifier.Consume(*record);
    if (!proved) std::fprintf(stderr, "%s\n", verifier.violation()->Text().c_str());
    CHECK(proved);
  }
  totals_.num_proved_reads = verifier.totals().num_reads;
  CHECK(verifier.totals().num_lost == 0 && verifier.totals().num_steps == totals_.num_steps);
}

SimTotals EngineWorld::Totals() const {
  const EngineStats stats = engine_->stats();
  const KvStats kv = engine_->kv_stats();
  return {.num_steps = stats.num_steps,
          .num_rows = stats.num_prompt_tokens + stats.num_output_tokens,
          .num_copies = kv.num_groups,
          .num_maps = kv.num_maps,
          .num_cow_blocks = kv.num_cow_blocks,
          .num_prefix_hits = kv.num_prefix_hits,
          .num_evictions = kv.num_evictions,
          .num_run_overflows = stats.num_run_overflows,
          .num_waits = kv.num_waits,
          .num_requests = served_.size(),
          .num_preemptions = stats.num_preemptions,
          .num_parks = kv.num_parks,
          .num_resumes = kv.num_resumes,
          .num_resumed_blocks = kv.num_resumed_blocks};
}

}  // namespace kvrm
