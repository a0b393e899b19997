// SPDX-License-Identifier: Apache-2.0
#include "engine/engine.h"

#include <thread>
#include <utility>

#include "base/check.h"
#include "engine/engine_state.h"

namespace kvrm {

Engine::State::State(const EngineParts& parts, const EngineOptions& options_in,
                     const Clock& clock_in, bool only_reserve)
    : vocab_size(parts.vocab_size),
      attention_window(parts.attention_window),
      hidden_dim(parts.hidden_dim),
      model_digest(parts.model_digest),
      layout(parts.layout),
      clock(clock_in),
      options(ResolvedOptions(options_in, parts)),
      loop(parts, LoopOptions(options, layout, only_reserve)),
      scheduler({.max_rows = options.max_rows,
                 .max_step_tokens = options.max_step_tokens,
                 .prompt_chunk = options.prompt_chunk,
                 .max_waiting = options.max_queued,
                 .headroom_tokens = HeadroomTokens(options),
                 .preempt_seed = options.preempt_seed,
                 .prompt_samples = kPromptSamples,
                 .pace = options.pace,
                 .log = loop.log()},
                loop.cache()),
      sampler(vocab_size, KernelsByName(options.kernels)),
      guide(vocab_size,
            options.mask_cache_bytes > 0 ? parts.token_bytes
                                         : std::function<std::string(std::int32_t)>(),
            options.mask_cache_bytes),
      commands(2 * (std::size_t{options.max_queued} + options.max_rows)),
      outbox(OutboxLimitsOf(options)),
      finished(std::size_t{options.max_queued} + options.max_rows) {
  layout.block_tokens = options.block_tokens;
  scheduled.reserve(options.max_rows);
  reserved.push_back({.owner = "step descriptors", .bytes = loop.descriptor_bytes()});
  reserved.push_back({.owner = "kv tables", .bytes = loop.cache().stats().table_bytes});
  reserved.push_back(
      {.owner = "queues",
       .bytes = commands.reserved_bytes() + outbox.reserved_bytes() + finished.reserved_bytes()});
  if (guide.available())
    reserved.push_back({.owner = "grammar masks", .bytes = guide.reserved_bytes()});
  if (loop.log_bytes() > 0) {
    sampled_tokens.reserve(loop.limits().max_samples);
    reserved.push_back({.owner = "descriptor log", .bytes = loop.log_bytes()});
  }
  PublishStats();
}

namespace {

HostPartsOptions PartsOptions(const EngineOptions& options, bool only_reserve) {
  return {.num_threads = options.num_threads,
          .kernels = options.kernels,
          .kv_dtype = options.kv_dtype,
          .progress = options.load_progress,
          .only_reserve = only_reserve};
}

void AddDevice(const HostDevice& device, std::vector<ReservedBytes>* reserved) {
  std::vector<ReservedBytes> of_device;
  for (const Reservation& r : device.reservations())
    of_device.push_back({.owner = r.owner, .bytes = r.bytes});
  reserved->insert(reserved->begin(), of_device.begin(), of_device.end());
}

// Returns the options, or throws when they ask for more than they allow.
const EngineOptions& WithinBudget(const Model& model, const EngineOptions& options,
                                  const Clock& clock) {
  if (options.memory_budget == 0) return options;
  std::uint64_t need = 0;
  std::string parts;
  for (const ReservedBytes& reserved : Engine::Measure(model, options, clock)) {
    need += reserved.bytes;
    parts += (parts.empty() ? "" : ", ") + reserved.owner + " " + std::to_string(reserved.bytes);
  }
  if (need <= options.memory_budget) return options;
  throw StartError("the memory budget is " + std::to_string(options.memory_budget) + " bytes and " +
                   std::to_string(need) + " are needed: " + parts);
}

// A copy thread takes work off a step where a core has nothing else to do; where the workers have
// all of them it would only take a core from one that the others then wait for.
HostDeviceOptions DeviceOptions(const EngineOptions& options) {
  const std::uint32_t num_cores = std::thread::hardware_concurrency();
  return {.copy_thread = options.num_threads != 0 && options.num_threads < num_cores};
}

}  // namespace

std::vector<ReservedBytes> Engine::Measure(const Model& model, const EngineOptions& options,
                                           const Clock& clock) {
  HostDevice device;
  const State state(HostParts(model, device, PartsOptions(options, true)), options, clock,
                    /*only_reserve=*/true);
  std::vector<ReservedBytes> reserved = state.reserved;
  AddDevice(device, &reserved);
  return reserved;
}

Engine::Engine(const Model& model, const EngineOptions& options, const Clock& clock)
    : device_(std::make_unique<HostDevice>(DeviceOptions(options))),
      model_(&model),
      state_(std::make_unique<State>(
          HostParts(model, *device_, PartsOptions(WithinBudget(model, options, clock), false)),
          options, clock)) {
  AddDevice(*device_, &state_->reserved);
}

Engine::Engine(const EngineParts& parts, const EngineOptions& options, const Clock& clock)
    : state_(std::make_unique<State>(parts, options, clock)) {}

Engine::~Engine() = default;

std::size_t Engine::Poll(std::span<TokenEvent> events) {
  State& s = *state_;
  while (s.finished.TryPop()) {
  }
  std::size_t count = 0;
  while (count < events.size()) {
    const std::optional<TokenEvent> event = s.outbox.events().TryPop();
    if (!event) break;
    events[count++] = *event;
  }
  if (count > 0) s.Wake();  // The engine may have waited for room.
  return count;
}

bool Engine::PollLogprobs(TopLogprobs* logprobs) {
  std::optional<TopLogprobs> next = state_->outbox.logprobs().TryPop();
  if (!next) return false;
  *logprobs = *next;
  state_->Wake();  // The engine may have waited for room.
  return true;
}

bool Engine::PollEmbedding(Embedding* embedding) {
  std::optional<Embedding> next = state_->outbox.embeddings().TryPop();
  if (!next) return false;
  *embedding = *std::move(next);
  state_->Wake();
  return true;
}

void Engine::SetWake(std::function<void()> wake) {
  state_->wake = std::move(wake);
}

bool Engine::Step() noexcept {
  State& s = *state_;
  const std::uint64_t emitted_before = s.outbox.num_events();
  s.now_ns = s.clock.NowNs();
  s.DrainCommands();
  s.EndExpired();
  s.ObserveRate();
  bool worked = false;
  if (s.scheduler.num_running() + s.scheduler.num_waiting() > 0 && s.outbox.StepFits()) {
    const std::int64_t begin_ns = s.now_ns;
    worked = s.RunStep();
    s.counts[State::kStepNs] += static_cast<std::uint64_t>(s.clock.NowNs() - begin_ns);
  }
  if (!worked && s.scheduler.num_running() == 0) s.loop.cache().Rest();
  s.PublishStats();
  if (s.outbox.num_events() != emitted_before && s.wake) s.wake();
  return worked;
}

void Engine::Run() {
  State& s = *state_;
  static_cast<void>(NextPrefixKey({}, {}));  // What this thread hashes with is made now.
  while (!s.stop.load()) {
    s.num_rounds.fetch_add(1, std::memory_order_relaxed);
    const std::uint32_t seen = s.signal.load(std::memory_order_acquire);
    if (!Step()) s.signal.wait(seen, std::memory_order_acquire);
  }
  s.AbortAll();
  s.PublishStats();
  if (s.wake) s.wake();
}

void Engine::Ping() {
  state_->Wake();
}

std::uint64_t Engine::num_rounds() const {
  return state_->num_rounds.load(std::memory_order_relaxed);
}

void Engine::Stop() {
  state_->stop.store(true);
  state_->Wake();
}

const EngineMetrics& Engine::metrics() const {
  return state_->metrics;
}

void Engine::CheckInvariants() const {
  state_->loop.cache().CheckInvariants();
}

const std::vector<ReservedBytes>& Engine::reserved() const {
  return state_->reserved;
}
const EngineOptions& Engine::options() const {
  return state_->options;
}

std::uint32_t Engine::max_context() const {
  return state_->options.max_context;
}
const Model& Engine::model() const {
  CHECK(model_ != nullptr);
  return *model_;
}

}  // namespace kvrm
