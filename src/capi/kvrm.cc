// SPDX-License-Identifier: Apache-2.0
// All of kvrm.h but the steps.
#include "capi/kvrm.h"

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <exception>
#include <limits>
#include <optional>
#include <span>
#include <string>

#include "base/result.h"
#include "capi/handle.h"
#include "step/prefix_key.h"

static_assert(sizeof(kvrm_key) == sizeof(kvrm::PrefixKey));

namespace {

using kvrm::SeqId;
using kvrm::capi::CheckOpen;
using kvrm::capi::Good;
using kvrm::capi::Hand;
using kvrm::capi::Phase;
using kvrm::capi::Refuse;
using kvrm::capi::Sequence;

// kv/pager.h keeps what so many steps in flight write.
constexpr std::uint32_t kMaxRingEntries = 8;
constexpr std::uint32_t kMaxBlockTokens = 1024;

// What the structs of the first version had; fields behind are zero when the caller lacks them.
constexpr std::size_t kOptionsOfVersion1 = offsetof(kvrm_options, host_blocks);
constexpr std::size_t kDeviceOfVersion1 = offsetof(kvrm_device, reserve_host);

// What is wrong with the options; nothing: they can be used.
std::optional<std::string> Complaint(const kvrm_options& options) {
  struct Range {
    const char* name;
    std::uint64_t value, low, high;
  };
  constexpr std::uint32_t kAny = std::numeric_limits<std::uint32_t>::max();
  const std::uint64_t block_bytes =
      std::uint64_t{options.layer_token_bytes} * options.num_layers * options.block_tokens;
  const Range ranges[] = {
      {"layer_token_bytes", options.layer_token_bytes, 4, 1u << 24},
      {"num_layers", options.num_layers, 1, 1u << 12},
      {"block_tokens", options.block_tokens, kvrm::kTileTokens, kMaxBlockTokens},
      {"num_blocks", options.num_blocks, 2, kAny},
      {"max_seqs", options.max_seqs, 1, 1u << 20},
      {"max_blocks_per_seq", options.max_blocks_per_seq, 1, 1u << 24},
      {"max_rows", options.max_rows, 1, 1u << 20},
      {"max_tokens", options.max_tokens, options.max_rows, 1u << 24},
      {"max_samples", options.max_samples, 0, options.max_tokens},
      {"max_runs", options.max_runs, 2, 1u << 16},
      {"max_groups", options.max_groups, 1, 1u << 16},
      {"ring_entries", options.ring_entries, 1, kMaxRingEntries},
      {"max_parked", options.max_parked, 0, 1u << 20},
      {"max_move_bytes_per_step", options.max_move_bytes_per_step, block_bytes,
       std::numeric_limits<std::uint64_t>::max()}};
  for (const Range& range : ranges) {
    if (range.value >= range.low && range.value <= range.high) continue;
    return std::string(range.name) + " must be from " + std::to_string(range.low) + " to " +
           std::to_string(range.high) + ", not " + std::to_string(range.value);
  }
  if (options.layer_token_bytes % 4 != 0) return "layer_token_bytes must be a multiple of 4";
  if (options.block_tokens % kvrm::kTileTokens != 0) return "block_tokens must be a multiple of 16";
  const std::uint64_t context = std::uint64_t{options.max_blocks_per_seq} * options.block_tokens;
  if (context > std::uint64_t{std::numeric_limits<std::int32_t>::max()})
    return "max_blocks_per_seq times block_tokens must be below 2^31";
  if (context * options.max_seqs > std::numeric_limits<std::uint32_t>::max())
    return "max_seqs times max_blocks_per_seq times block_tokens must be below 2^32";
  if (options.view == nullptr || !kvrm::FindKvView(options.view))
    return "view must be one of the names in kvrm.h";
  if (options.placement == nullptr || !kvrm::FindPlacementPolicy(options.placement))
    return "placement must be one of the names in kvrm.h";
  if (options.device == nullptr) return std::nullopt;
  if (options.device->struct_size < kDeviceOfVersion1) return "device: struct_size is too small";
  if (options.device->reserve == nullptr || options.device->copy == nullptr ||
      options.device->wait == nullptr)
    return "device: reserve, copy and wait must be set";
  return std::nullopt;
}

kvrm_status Full(kvrm_cache* cache) {
  return Refuse(cache, KVRM_FULL, "%u tokens are available",
                static_cast<unsigned>(cache->cache.num_available_tokens()));
}

kvrm_status CheckClosed(kvrm_cache* cache, const char* field, std::uint32_t seq) {
  if (seq >= cache->sequences.size()) {
    return Refuse(cache, KVRM_ARGUMENT, "%s is %u; max_seqs is %zu", field, unsigned{seq},
                  cache->sequences.size());
  }
  const Sequence& sequence = cache->sequences[seq];
  if (sequence.open) return Refuse(cache, KVRM_OPEN, "%s: %u is open", field, unsigned{seq});
  if (sequence.ended_in_step) {
    return Refuse(cache, KVRM_OPEN, "%s: %u was released from the step under construction", field,
                  unsigned{seq});
  }
  return Good(cache);
}

kvrm_status CheckLength(kvrm_cache* cache, const char* field, std::uint32_t num_tokens,
                        std::uint32_t most) {
  if (num_tokens <= most) return Good(cache);
  return Refuse(cache, KVRM_ARGUMENT, "%s is %u; at most %u here", field, unsigned{num_tokens},
                unsigned{most});
}

kvrm_status CheckNotPlanned(kvrm_cache* cache, const char* verb) {
  if (cache->phase != Phase::kPlanned) return Good(cache);
  return Refuse(cache, KVRM_ORDER, "%s: not between plan and commit of a step", verb);
}

// Whether position `num_tokens` begins a block or lies in one that is there: a sequence cannot end
// inside a hole.
kvrm_status CheckEnd(kvrm_cache* cache, std::uint32_t seq, std::uint32_t num_tokens) {
  const std::uint32_t block_tokens = cache->cache.options().layout.block_tokens;
  if (num_tokens % block_tokens == 0) return Good(cache);
  std::uint32_t left = num_tokens / block_tokens;
  for (const kvrm::Extent& run : cache->cache.home(SeqId{seq})) {
    if (left >= run.num_blocks) {
      left -= run.num_blocks;
      continue;
    }
    if (run.start != kvrm::kSentinelBlock) break;
    return Refuse(cache, KVRM_ARGUMENT, "num_tokens is %u, inside a hole of %u",
                  unsigned{num_tokens}, unsigned{seq});
  }
  return Good(cache);
}

kvrm_status CheckPrefix(kvrm_cache* cache, const kvrm_prefix* prefix) {
  if (prefix == nullptr || (prefix->tokens == nullptr && prefix->num_tokens > 0) ||
      (prefix->keys == nullptr && prefix->num_keys > 0))
    return Refuse(cache, KVRM_ARGUMENT, "prefix, its tokens and its keys must not be null");
  return Good(cache);
}

std::span<const std::int32_t> TokensOf(const kvrm_prefix& prefix) {
  return {prefix.tokens, prefix.num_tokens};
}

std::span<const kvrm::PrefixKey> KeysOf(const kvrm_prefix& prefix) {
  return {reinterpret_cast<const kvrm::PrefixKey*>(prefix.keys), prefix.num_keys};
}

void Start(kvrm_cache* cache, std::uint32_t seq, std::uint32_t length) {
  cache->sequences[seq] = {.open = true, .length = length, .target = length};
}

void SetTier(const kvrm::KvStats& now, kvrm_stats* value) {
  value->num_host_blocks = now.num_host_blocks;
  value->num_host_free = now.num_host_free;
  value->num_host_held = now.num_host_held;
  value->num_host_limbo = now.num_host_limbo;
  value->num_parking = now.num_parking;
  value->num_parked = now.num_parked;
  value->num_resuming = now.num_resuming;
  value->num_leaving = now.num_leaving;
  value->host_reserved_bytes = now.host_reserved_bytes;
  value->host_mapped_bytes = now.host_mapped_bytes;
  value->host_live_bytes = now.host_live_bytes;
  value->num_parks = now.num_parks;
  value->num_park_refusals = now.num_park_refusals;
  value->num_resumes = now.num_resumes;
  value->num_parked_blocks = now.num_parked_blocks;
  value->num_resumed_blocks = now.num_resumed_blocks;
}

kvrm_status CheckHere(kvrm_cache* cache, const char* field, std::uint32_t seq) {
  if (!cache->cache.is_resuming(SeqId{seq})) return Good(cache);
  return Refuse(cache, KVRM_WAIT, "%s: %u is coming back from the host tier", field, unsigned{seq});
}

kvrm_status CheckParked(kvrm_cache* cache, std::uint32_t parked) {
  if (parked >= cache->parked.size()) {
    return Refuse(cache, KVRM_ARGUMENT, "parked is %u; max_parked is %zu", unsigned{parked},
                  cache->parked.size());
  }
  if (cache->parked[parked].is_there) return Good(cache);
  return Refuse(cache, KVRM_NOT_OPEN, "parked: nothing is parked as %u", unsigned{parked});
}

void Say(char* message, std::size_t message_bytes, const char* text) {
  if (message != nullptr && message_bytes > 0) std::snprintf(message, message_bytes, "%s", text);
}

}  // namespace

std::uint32_t kvrm_api_version(void) {
  return KVRM_API_VERSION;
}

const char* kvrm_status_name(kvrm_status status) {
  switch (status) {
    case KVRM_OK:
      return "KVRM_OK";
    case KVRM_FULL:
      return "KVRM_FULL";
    case KVRM_WAIT:
      return "KVRM_WAIT";
    case KVRM_ARGUMENT:
      return "KVRM_ARGUMENT";
    case KVRM_ORDER:
      return "KVRM_ORDER";
    case KVRM_NOT_OPEN:
      return "KVRM_NOT_OPEN";
    case KVRM_OPEN:
      return "KVRM_OPEN";
    case KVRM_START:
      return "KVRM_START";
    case KVRM_UNSUPPORTED:
      return "KVRM_UNSUPPORTED";
    case KVRM_INTERNAL:
      return "KVRM_INTERNAL";
  }
  return "unknown";
}

void kvrm_options_init(kvrm_options* options, std::size_t struct_size) {
  kvrm_options value = {};
  value.num_layers = 1;
  value.block_tokens = kvrm::kTileTokens;
  value.max_runs = 8;
  value.max_groups = 32;
  value.ring_entries = 2;
  value.max_move_bytes_per_step = std::uint64_t{64} << 20;
  value.view = "staged";
  value.placement = "in-place";
  options->struct_size = struct_size;
  Hand(value, options);
}

kvrm_status kvrm_create(const kvrm_options* options, kvrm_cache** cache, char* message,
                        std::size_t message_bytes) {
  Say(message, message_bytes, "");
  if (options == nullptr || cache == nullptr) {
    Say(message, message_bytes, "options and cache must not be null");
    return KVRM_ARGUMENT;
  }
  *cache = nullptr;
  if (options->struct_size < kOptionsOfVersion1) {
    Say(message, message_bytes, "options: struct_size is smaller than in version 1");
    return KVRM_ARGUMENT;
  }
  kvrm_options known = {};
  std::memcpy(&known, options, std::min(options->struct_size, sizeof(known)));
  try {
    if (const auto complaint = Complaint(known)) {
      Say(message, message_bytes, complaint->c_str());
      return KVRM_ARGUMENT;
    }
    *cache = new kvrm_cache(known);
    return KVRM_OK;
  } catch (const kvrm::StartError& error) {
    Say(message, message_bytes, error.what());
  } catch (const std::exception&) {
    Say(message, message_bytes, "out of memory for the tables of the cache");
  }
  return KVRM_START;
}

void kvrm_destroy(kvrm_cache* cache) {
  delete cache;
}

const char* kvrm_message(const kvrm_cache* cache) {
  return cache == nullptr ? "cache is null" : cache->message.data();
}

void* kvrm_memory(const kvrm_cache* cache, std::size_t* bytes, std::size_t* window_offset) {
  const std::span<std::byte> memory = cache->cache.memory();
  const kvrm::KvCacheOptions& options = cache->cache.options();
  if (bytes != nullptr) *bytes = memory.size();
  if (window_offset != nullptr)
    *window_offset = std::size_t{options.num_blocks} * options.layout.block_bytes();
  return memory.data();
}

void* kvrm_layer_buffers(const kvrm_cache* cache, std::size_t* bytes) {
  const std::span<std::byte> buffers = cache->cache.layer_buffers();
  if (bytes != nullptr) *bytes = buffers.size();
  return buffers.data();
}

std::uint64_t kvrm_block_bytes(const kvrm_cache* cache) {
  return cache->cache.options().layout.block_bytes();
}

kvrm_status kvrm_get_stats(const kvrm_cache* cache, kvrm_stats* stats) {
  if (cache == nullptr || stats == nullptr || stats->struct_size < sizeof(std::size_t))
    return KVRM_ARGUMENT;
  const kvrm::KvStats now = cache->cache.stats();
  kvrm_stats value = {};
  value.num_blocks = now.num_blocks;
  value.num_free = now.num_free;
  value.num_held = now.num_held;
  value.num_cached = now.num_cached;
  value.num_limbo = now.num_limbo;
  value.num_promised = now.num_promised;
  value.num_shared = now.num_shared;
  value.num_open = now.num_open;
  value.reserved_bytes = now.reserved_bytes;
  value.pool_bytes = now.pool_bytes;
  value.window_bytes = now.window_bytes;
  value.mapped_bytes = now.mapped_bytes;
  value.live_bytes = now.live_bytes;
  value.fragmented_bytes = now.fragmented_bytes;
  value.table_bytes = now.table_bytes;
  value.num_moved_blocks = now.num_moved_blocks;
  value.num_groups = now.num_groups;
  value.num_staged_bytes = now.num_staged_bytes;
  value.num_cow_blocks = now.num_cow_blocks;
  value.num_prefix_hits = now.num_prefix_hits;
  value.num_prefix_misses = now.num_prefix_misses;
  value.num_evictions = now.num_evictions;
  value.num_waits = now.num_waits;
  SetTier(now, &value);
  Hand(value, stats);
  return KVRM_OK;
}

std::uint32_t kvrm_available_tokens(const kvrm_cache* cache) {
  return cache->cache.num_available_tokens();
}

std::uint32_t kvrm_length(const kvrm_cache* cache, std::uint32_t seq) {
  return seq < cache->sequences.size() ? cache->sequences[seq].length : 0;
}

std::uint32_t kvrm_target(const kvrm_cache* cache, std::uint32_t seq) {
  return seq < cache->sequences.size() ? cache->sequences[seq].target : 0;
}

kvrm_status kvrm_open(kvrm_cache* cache, std::uint32_t seq, std::uint32_t reserve_tokens) {
  if (cache == nullptr) return KVRM_ARGUMENT;
  if (const auto status = CheckClosed(cache, "seq", seq); status != KVRM_OK) return status;
  const auto status = CheckLength(cache, "reserve_tokens", reserve_tokens, cache->max_context());
  if (status != KVRM_OK) return status;
  if (!cache->cache.Open(SeqId{seq}, reserve_tokens)) return Full(cache);
  Start(cache, seq, 0);
  return KVRM_OK;
}

kvrm_status kvrm_open_cached(kvrm_cache* cache, std::uint32_t seq, const kvrm_prefix* prefix,
                             std::uint32_t reserve_tokens, std::uint32_t* found_tokens) {
  if (cache == nullptr) return KVRM_ARGUMENT;
  if (const auto status = CheckClosed(cache, "seq", seq); status != KVRM_OK) return status;
  if (const auto status = CheckPrefix(cache, prefix); status != KVRM_OK) return status;
  const auto status = CheckLength(cache, "reserve_tokens", reserve_tokens, cache->max_context());
  if (status != KVRM_OK) return status;
  const auto found =
      cache->cache.OpenCached(SeqId{seq}, TokensOf(*prefix), KeysOf(*prefix), reserve_tokens);
  if (!found) return Full(cache);
  Start(cache, seq, *found);
  if (found_tokens != nullptr) *found_tokens = *found;
  return KVRM_OK;
}

kvrm_status kvrm_fork(kvrm_cache* cache, std::uint32_t child, std::uint32_t parent,
                      std::uint32_t num_tokens, std::uint32_t reserve_tokens) {
  if (cache == nullptr) return KVRM_ARGUMENT;
  if (const auto status = CheckNotPlanned(cache, "fork"); status != KVRM_OK) return status;
  if (const auto status = CheckOpen(cache, "parent", parent); status != KVRM_OK) return status;
  if (const auto status = CheckHere(cache, "parent", parent); status != KVRM_OK) return status;
  if (const auto status = CheckClosed(cache, "child", child); status != KVRM_OK) return status;
  const Sequence& from = cache->sequences[parent];
  if (const auto status = CheckLength(cache, "num_tokens", num_tokens, from.length);
      status != KVRM_OK)
    return status;
  const auto status = CheckLength(cache, "reserve_tokens", reserve_tokens, cache->max_context());
  if (status != KVRM_OK) return status;
  if (const auto hole = CheckEnd(cache, parent, num_tokens); hole != KVRM_OK) return hole;
  const kvrm::KvCacheOptions& options = cache->cache.options();
  if (num_tokens % options.layout.block_tokens != 0 && from.target != from.length) {
    return Refuse(cache, KVRM_ORDER, "parent: %u has slots beyond its length; truncate it first",
                  unsigned{parent});
  }
  if (options.view == kvrm::KvView::kStatic || options.view == kvrm::KvView::kStaticPadded ||
      options.view == kvrm::KvView::kStaticBucketed)
    return Refuse(cache, KVRM_UNSUPPORTED, "the static views share nothing");
  if (!cache->cache.Fork(SeqId{child}, SeqId{parent}, num_tokens, reserve_tokens))
    return Full(cache);
  Start(cache, child, num_tokens);
  return KVRM_OK;
}

kvrm_status kvrm_reserve(kvrm_cache* cache, std::uint32_t seq, std::uint32_t reserve_tokens) {
  if (cache == nullptr) return KVRM_ARGUMENT;
  if (const auto status = CheckOpen(cache, "seq", seq); status != KVRM_OK) return status;
  const auto status = CheckLength(cache, "reserve_tokens", reserve_tokens, cache->max_context());
  if (status != KVRM_OK) return status;
  return cache->cache.Reserve(SeqId{seq}, reserve_tokens) ? KVRM_OK : Full(cache);
}

kvrm_status kvrm_extend(kvrm_cache* cache, std::uint32_t seq, std::uint32_t num_tokens) {
  if (cache == nullptr) return KVRM_ARGUMENT;
  if (const auto status = CheckOpen(cache, "seq", seq); status != KVRM_OK) return status;
  const auto status = CheckLength(cache, "num_tokens", num_tokens, cache->max_context());
  if (status != KVRM_OK) return status;
  Sequence& sequence = cache->sequences[seq];
  if (sequence.added > 0) {
    return Refuse(cache, KVRM_ORDER, "seq: the row of %u is in the step already", unsigned{seq});
  }
  if (!cache->cache.Extend(SeqId{seq}, num_tokens)) return Full(cache);
  sequence.target = std::max(sequence.target, num_tokens);
  return KVRM_OK;
}

kvrm_status kvrm_truncate(kvrm_cache* cache, std::uint32_t seq, std::uint32_t num_tokens) {
  if (cache == nullptr) return KVRM_ARGUMENT;
  if (const auto status = CheckNotPlanned(cache, "truncate"); status != KVRM_OK) return status;
  if (const auto status = CheckOpen(cache, "seq", seq); status != KVRM_OK) return status;
  if (const auto status = CheckHere(cache, "seq", seq); status != KVRM_OK) return status;
  Sequence& sequence = cache->sequences[seq];
  const auto status = CheckLength(cache, "num_tokens", num_tokens, sequence.target);
  if (status != KVRM_OK) return status;
  if (const auto hole = CheckEnd(cache, seq, num_tokens); hole != KVRM_OK) return hole;
  cache->cache.Truncate(SeqId{seq}, num_tokens);
  sequence.length = std::min(sequence.length, num_tokens);
  sequence.target = num_tokens;
  return KVRM_OK;
}

kvrm_status kvrm_trim(kvrm_cache* cache, std::uint32_t seq, std::uint32_t from, std::uint32_t to) {
  if (cache == nullptr) return KVRM_ARGUMENT;
  if (const auto status = CheckNotPlanned(cache, "trim"); status != KVRM_OK) return status;
  if (const auto status = CheckOpen(cache, "seq", seq); status != KVRM_OK) return status;
  if (const auto status = CheckHere(cache, "seq", seq); status != KVRM_OK) return status;
  if (const auto status = CheckLength(cache, "to", to, cache->sequences[seq].length);
      status != KVRM_OK)
    return status;
  if (const auto status = CheckLength(cache, "from", from, to); status != KVRM_OK) return status;
  cache->cache.Trim(SeqId{seq}, from, to);
  return KVRM_OK;
}

kvrm_status kvrm_release(kvrm_cache* cache, std::uint32_t seq) {
  if (cache == nullptr) return KVRM_ARGUMENT;
  if (const auto status = CheckOpen(cache, "seq", seq); status != KVRM_OK) return status;
  cache->cache.Release(SeqId{seq});
  cache->sequences[seq] = {.ended_in_step = cache->phase == Phase::kPlanned};
  return KVRM_OK;
}

kvrm_status kvrm_publish(kvrm_cache* cache, std::uint32_t seq, const kvrm_prefix* prefix) {
  if (cache == nullptr) return KVRM_ARGUMENT;
  if (const auto status = CheckOpen(cache, "seq", seq); status != KVRM_OK) return status;
  if (const auto status = CheckPrefix(cache, prefix); status != KVRM_OK) return status;
  cache->cache.Publish(SeqId{seq}, TokensOf(*prefix), KeysOf(*prefix));
  return KVRM_OK;
}

kvrm_status kvrm_park(kvrm_cache* cache, std::uint32_t seq, std::uint32_t* parked) {
  if (cache == nullptr) return KVRM_ARGUMENT;
  if (parked == nullptr) return Refuse(cache, KVRM_ARGUMENT, "parked must not be null");
  if (const auto status = CheckNotPlanned(cache, "park"); status != KVRM_OK) return status;
  if (const auto status = CheckOpen(cache, "seq", seq); status != KVRM_OK) return status;
  if (cache->parked.empty()) return Refuse(cache, KVRM_UNSUPPORTED, "there is no host tier");
  const Sequence& sequence = cache->sequences[seq];
  if (sequence.length == 0)
    return Refuse(cache, KVRM_ARGUMENT, "seq: %u has written nothing", unsigned{seq});
  const std::optional<kvrm::ParkedId> id = cache->cache.Park(SeqId{seq});
  if (!id) {
    return Refuse(cache, KVRM_FULL, "the host tier has %u blocks free and cannot take %u tokens",
                  unsigned{cache->cache.stats().num_host_free}, unsigned{sequence.length});
  }
  *parked = kvrm::Index(*id);
  cache->parked[*parked] = {.is_there = true, .length = sequence.length};
  cache->sequences[seq] = {};
  return KVRM_OK;
}

kvrm_status kvrm_check_parked(kvrm_cache* cache, std::uint32_t parked) {
  if (cache == nullptr) return KVRM_ARGUMENT;
  if (const auto status = CheckParked(cache, parked); status != KVRM_OK) return status;
  if (cache->cache.is_parked(kvrm::ParkedId{parked})) return KVRM_OK;
  return Refuse(cache, KVRM_WAIT, "parked: %u is not copied out yet", unsigned{parked});
}

kvrm_status kvrm_resume(kvrm_cache* cache, std::uint32_t parked, std::uint32_t seq,
                        const kvrm_prefix* prefix, std::uint32_t reserve_tokens) {
  if (cache == nullptr) return KVRM_ARGUMENT;
  constexpr kvrm_prefix kNone = {};
  if (prefix == nullptr) prefix = &kNone;
  if (const auto status = CheckClosed(cache, "seq", seq); status != KVRM_OK) return status;
  if (const auto status = CheckPrefix(cache, prefix); status != KVRM_OK) return status;
  const auto status = CheckLength(cache, "reserve_tokens", reserve_tokens, cache->max_context());
  if (status != KVRM_OK) return status;
  if (const auto copied = kvrm_check_parked(cache, parked); copied != KVRM_OK) return copied;
  if (!cache->cache.Resume(kvrm::ParkedId{parked}, SeqId{seq}, TokensOf(*prefix), KeysOf(*prefix),
                           reserve_tokens))
    return Full(cache);
  Start(cache, seq, cache->parked[parked].length);
  cache->parked[parked] = {};
  return KVRM_OK;
}

kvrm_status kvrm_discard(kvrm_cache* cache, std::uint32_t parked) {
  if (cache == nullptr) return KVRM_ARGUMENT;
  if (const auto status = CheckParked(cache, parked); status != KVRM_OK) return status;
  cache->cache.Discard(kvrm::ParkedId{parked});
  cache->parked[parked] = {};
  return KVRM_OK;
}

kvrm_status kvrm_prefix_root(kvrm_cache* cache, const kvrm_origin* origin, kvrm_key* root) {
  if (cache == nullptr) return KVRM_ARGUMENT;
  if (root == nullptr || origin == nullptr ||
      (origin->model == nullptr && origin->model_bytes > 0) ||
      (origin->salt == nullptr && origin->salt_bytes > 0))
    return Refuse(cache, KVRM_ARGUMENT, "origin, its model and salt, and root must not be null");
  try {
    const kvrm::PrefixKey key =
        kvrm::PrefixRoot({static_cast<const char*>(origin->model), origin->model_bytes},
                         cache->cache.options().layout,
                         {static_cast<const char*>(origin->salt), origin->salt_bytes});
    std::memcpy(root->bytes, key.bytes.data(), sizeof(root->bytes));
    return Good(cache);
  } catch (const std::exception&) {
    return Refuse(cache, KVRM_INTERNAL, "out of memory for a digest");
  }
}

void kvrm_prefix_next(const kvrm_key* parent, const std::int32_t* tokens, std::uint32_t num_tokens,
                      kvrm_key* key) {
  kvrm::PrefixKey from;
  std::memcpy(from.bytes.data(), parent->bytes, from.bytes.size());
  const kvrm::PrefixKey next = kvrm::NextPrefixKey(from, {tokens, num_tokens});
  std::memcpy(key->bytes, next.bytes.data(), sizeof(key->bytes));
}
