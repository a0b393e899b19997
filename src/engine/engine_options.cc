// SPDX-License-Identifier: Apache-2.0
#include "engine/engine_options.h"

#include <unistd.h>

#include <algorithm>
#include <limits>
#include <string>

#include "base/check.h"

namespace kvrm {
namespace {

// The longest context served unless asked for more: 32,768 tokens of a model made for 128k would
// otherwise reserve sixteen times the memory of a chat.
constexpr std::uint32_t kDefaultContextMax = 32768;
constexpr std::uint32_t kMaxEdits = 65536;
// Histories that may be parked, in rows. Whoever comes before the parked ones in order takes rows
// while those wait, and may be parked as well; a place costs 16 bytes for each block of the longest
// context.
constexpr std::uint32_t kParkedPerRow = 4;

std::uint64_t PhysicalMemoryBytes() {
  return static_cast<std::uint64_t>(::sysconf(_SC_PHYS_PAGES)) *
         static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

// Checks what moves, and how much of it.
void CheckMovement(const EngineOptions& options, const KvLayout& layout) {
  if (options.max_edits_per_step == 0 || options.max_edits_per_step > kMaxEdits) {
    throw StartError("edits per step must be 1 to " + std::to_string(kMaxEdits) + ", not " +
                     std::to_string(options.max_edits_per_step));
  }
  if (options.max_move_bytes_per_step < layout.block_bytes()) {
    throw StartError(
        "the movement budget of a step, " + std::to_string(options.max_move_bytes_per_step) +
        " bytes, is less than one block of " + std::to_string(layout.block_bytes()) + " bytes");
  }
}

std::uint64_t DefaultKvTokens(const EngineOptions& options, const KvLayout& layout) {
  const std::uint64_t most = std::uint64_t{options.max_rows} * options.max_context;
  if (IsStaticView(options.view)) return 0;  // Exactly what it needs.
  const std::uint64_t fits = PhysicalMemoryBytes() / 4 / layout.token_bytes();
  return std::max<std::uint64_t>(options.max_context, std::min(most, fits));
}

void CheckPace(const StepPaceOptions& pace) {
  const bool has_factor = pace.itl_factor >= 1 && pace.itl_factor <= 1000;
  if (!has_factor && pace.itl_factor != 0) {  // A NaN is neither.
    throw StartError("the factor of inter-token latency must be 0 (no limit) or 1 to 1000");
  }
  if (!(pace.easy_step_seconds >= 0 && pace.easy_step_seconds <= 3600)) {
    throw StartError("an easy step must be 0 (none) to 3600 seconds");
  }
  if (!(pace.max_step_seconds >= 0 && pace.max_step_seconds <= 3600)) {
    throw StartError("the longest step must be 0 (no limit) to 3600 seconds");
  }
  if (pace.min_prompt_tokens == 0) throw StartError("a step takes at least 1 prompt token");
}

// Addresses only: what is never parked takes no memory.
std::uint64_t DefaultHostKvBytes(const EngineOptions& options, const KvLayout& layout) {
  const std::uint64_t most = std::uint64_t{options.max_rows} * options.max_context;
  if (options.memory_budget != 0 || most <= options.kv_tokens) return 0;
  return std::min(kParkedPerRow * most * layout.token_bytes(), PhysicalMemoryBytes() / 4);
}

// In whole blocks.
std::uint64_t ResolvedHostKvBytes(const EngineOptions& options, const KvLayout& layout) {
  if (IsStaticView(options.view)) return 0;
  const std::uint64_t bytes = options.host_kv_bytes == kHostKvAuto
                                  ? DefaultHostKvBytes(options, layout)
                                  : options.host_kv_bytes;
  const std::uint64_t num_blocks = bytes / layout.block_bytes();
  if (num_blocks > 0xfffffff0u) {
    throw StartError("the host tier of " + std::to_string(bytes) + " bytes has " +
                     std::to_string(num_blocks) + " blocks, more than 32 bits can number");
  }
  return num_blocks * layout.block_bytes();
}

}  // namespace

EngineOptions ResolvedOptions(EngineOptions options, const EngineParts& parts) {
  CheckBlockTokens(options.block_tokens);
  if (options.max_rows == 0 || options.max_rows > 1024) {
    throw StartError("parallel sequences must be 1 to 1024, not " +
                     std::to_string(options.max_rows));
  }
  if (options.max_context == 0) {
    options.max_context = std::min(parts.max_context, kDefaultContextMax);
  }
  if (options.max_context > parts.max_context) {
    throw StartError("context size " + std::to_string(options.max_context) +
                     " exceeds what the model was trained for, " +
                     std::to_string(parts.max_context));
  }
  options.max_step_tokens = std::max(options.max_step_tokens, options.max_rows);
  if (options.max_step_tokens > 65536) {
    throw StartError("step tokens must be at most 65536, not " +
                     std::to_string(options.max_step_tokens));
  }
  CheckPace(options.pace);
  if (options.prompt_chunk == 0) options.prompt_chunk = options.max_step_tokens;
  KvLayout layout = parts.layout;
  layout.block_tokens = options.block_tokens;
  CheckMovement(options, layout);
  if (options.kv_tokens == 0) options.kv_tokens = DefaultKvTokens(options, layout);
  if (options.kv_tokens / options.block_tokens > 0xfffffff0u) {
    throw StartError("the KV pool has more blocks than 32 bits can number");
  }
  options.host_kv_bytes = ResolvedHostKvBytes(options, layout);
  return options;
}
std::uint32_t HeadroomTokens(const EngineOptions& options) {
  if (IsStaticView(options.view)) return 0;
  return static_cast<std::uint32_t>(
      std::min<std::uint64_t>(options.kv_tokens / 20, std::numeric_limits<std::uint32_t>::max()));
}

std::uint32_t MaxCachedBlocks(const EngineOptions& options) {
  if (options.prefix_cache_tokens == kCacheAuto) return kCachedAsHeld;
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(
      options.prefix_cache_tokens / options.block_tokens, kCachedAsHeld - 1));
}

StepLoopOptions LoopOptions(const EngineOptions& options, KvLayout layout, bool only_reserve) {
  layout.block_tokens = options.block_tokens;
  const auto host_blocks = static_cast<std::uint32_t>(options.host_kv_bytes / layout.block_bytes());
  return {.limits = {.max_rows = options.max_rows,
                     .max_tokens = options.max_step_tokens,
                     .max_runs = options.max_runs,
                     .max_groups = options.max_edits_per_step,
                     .max_samples = options.max_rows + kPromptSamples,
                     .block_tokens = options.block_tokens},
          .max_seqs = options.max_rows,
          .max_context = options.max_context,
          .kv_tokens = options.kv_tokens,
          .host_blocks = host_blocks,
          // Each holds a block at least.
          .max_parked = std::min(host_blocks, kParkedPerRow * options.max_rows),
          .max_move_bytes_per_step = options.max_move_bytes_per_step,
          .layered_move_bytes = options.layered_move_bytes,
          .view = options.view,
          .placement = options.placement,
          .placement_seed = options.placement_seed,
          .elastic = options.elastic_kv,
          .max_cached_blocks = MaxCachedBlocks(options),
          .prefix_cache = options.prefix_cache,
          .descriptor_log = options.descriptor_log,
          .only_reserve = only_reserve};
}

OutboxLimits OutboxLimitsOf(const EngineOptions& options) {
  const std::size_t step_events = 2 * std::size_t{options.max_rows};
  return {.step_events = step_events,
          .last_events = std::size_t{options.max_queued} + options.max_rows,
          .step_logprobs = step_events + kPromptSamples,
          .step_embeddings = options.max_rows};
}

}  // namespace kvrm
