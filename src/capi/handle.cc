// SPDX-License-Identifier: Apache-2.0
#include "capi/handle.h"

#include <algorithm>
#include <cstdarg>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>

#include "base/result.h"
#include "device/host_device.h"

// What C sees of plain data is that data: same size, same offsets.
static_assert(sizeof(kvrm_extent) == sizeof(kvrm::Extent));
static_assert(sizeof(kvrm_group) == sizeof(kvrm::TransferGroup));
static_assert(offsetof(kvrm_group, kind) == offsetof(kvrm::TransferGroup, kind));
static_assert(offsetof(kvrm_group, before_layer) == offsetof(kvrm::TransferGroup, before_layer));
static_assert(offsetof(kvrm_group, num_layers) == offsetof(kvrm::TransferGroup, num_layers));
static_assert(sizeof(kvrm_copy) == sizeof(kvrm::CopyOp));
static_assert(offsetof(kvrm_copy, num_pieces) == offsetof(kvrm::CopyOp, num_pieces));
static_assert(offsetof(kvrm_copy, before_layer) == offsetof(kvrm::CopyOp, before_layer));
static_assert(offsetof(kvrm_copy, target_stride) == offsetof(kvrm::CopyOp, target_stride));
namespace kvrm::capi {
namespace {

// A device by callbacks.
class CallbackDevice final : public Device {
 public:
  explicit CallbackDevice(const kvrm_device& calls) : calls_(Known(calls)) {}

  std::span<std::byte> Reserve(std::size_t bytes, const char* owner) override {
    return Checked(calls_.reserve(calls_.user, bytes, owner), bytes, owner);
  }
  std::span<std::byte> ReserveHost(std::size_t bytes, const char* owner) override {
    if (calls_.reserve_host == nullptr) return Reserve(bytes, owner);
    host_ = Checked(calls_.reserve_host(calls_.user, bytes, owner), bytes, owner);
    return host_;
  }
  PoolMemory ReservePool(std::size_t pool_bytes, std::size_t window_bytes, bool mapped,
                         std::size_t) override {
    if (mapped) throw StartError("the view 'mapped' needs the device of this library");
    const std::span<std::byte> memory = Reserve(pool_bytes + window_bytes, "kv pool");
    return {memory.first(pool_bytes), memory.subspan(pool_bytes)};
  }
  bool Map(std::size_t, std::size_t, std::size_t) noexcept override { return false; }
  FlightId Submit(std::span<const CopyOp> copies) noexcept override {
    const FlightId flight{++num_flights_};
    if (host_.empty() || calls_.copy_host == nullptr) {
      Start(0, copies);
      return flight;
    }
    for (std::size_t begin = 0; begin < copies.size();) {
      const std::uint32_t direction = DirectionOf(copies[begin]);
      std::size_t end = begin + 1;
      while (end < copies.size() && DirectionOf(copies[end]) == direction)
        ++end;
      Start(direction, copies.subspan(begin, end - begin));
      begin = end;
    }
    return flight;
  }
  bool Landed(FlightId flight) noexcept override {
    Wait(flight);
    return true;
  }
  void Wait(FlightId flight) noexcept override {
    calls_.wait(calls_.user, static_cast<std::uint64_t>(flight));
  }

 private:
  // The calls that the caller's version of the struct has.
  static kvrm_device Known(const kvrm_device& calls) {
    kvrm_device known = {};
    std::memcpy(&known, &calls, std::min(calls.struct_size, sizeof(known)));
    return known;
  }
  static std::span<std::byte> Checked(void* memory, std::size_t bytes, const char* owner) {
    if (memory == nullptr) {
      throw StartError("the device cannot reserve " + std::to_string(bytes) + " bytes for " +
                       owner);
    }
    return {static_cast<std::byte*>(memory), bytes};
  }
  bool IsOfHost(const std::byte* at) const noexcept {
    return !std::less<>()(at, host_.data()) && std::less<>()(at, host_.data() + host_.size());
  }
  std::uint32_t DirectionOf(const CopyOp& copy) const noexcept {
    if (IsOfHost(copy.target)) return KVRM_POOL_TO_HOST;
    return IsOfHost(copy.source) ? KVRM_HOST_TO_POOL : 0;
  }
  // Direction 0: inside the device.
  void Start(std::uint32_t direction, std::span<const CopyOp> copies) noexcept {
    const auto* const list = reinterpret_cast<const kvrm_copy*>(copies.data());
    if (direction == 0) {
      calls_.copy(calls_.user, num_flights_, list, copies.size());
    } else {
      calls_.copy_host(calls_.user, num_flights_, direction, list, copies.size());
    }
  }

  const kvrm_device calls_;
  std::span<std::byte> host_;  // of reserve_host
  std::uint64_t num_flights_ = 0;
};

}  // namespace

std::unique_ptr<Device> MakeDevice(const kvrm_device* calls) {
  if (calls == nullptr) return std::make_unique<HostDevice>();
  return std::make_unique<CallbackDevice>(*calls);
}

KvCacheOptions CacheOptions(const kvrm_options& options) {
  return {.layout = {.num_layers = options.num_layers,
                     .num_kv_heads = 1,
                     .head_dim = options.layer_token_bytes / 4,  // K and V of two bytes each.
                     .block_tokens = options.block_tokens,
                     .dtype = DType::kF16},
          .num_blocks = options.num_blocks,
          .max_seqs = options.max_seqs,
          .max_blocks_per_seq = options.max_blocks_per_seq,
          .max_runs = options.max_runs,
          .max_groups = options.max_groups,
          .max_move_bytes_per_step = options.max_move_bytes_per_step,
          .view = *FindKvView(options.view),
          .placement = *FindPlacementPolicy(options.placement),
          .placement_seed = options.placement_seed,
          .prefix_cache = options.prefix_cache != 0,
          .host_blocks = options.host_blocks,
          .max_parked = options.max_parked};
}

StepLimits Limits(const kvrm_options& options) {
  StepLimits limits = {.max_rows = options.max_rows,
                       .max_tokens = options.max_tokens,
                       .max_runs = options.max_runs,
                       .max_groups = options.max_groups,
                       .max_samples = options.max_samples,
                       .block_tokens = options.block_tokens};
  KvCache::RaiseLimits(CacheOptions(options), &limits);
  return limits;
}

kvrm_status Good(kvrm_cache* cache) {
  cache->message[0] = '\0';
  return KVRM_OK;
}

kvrm_status Refuse(kvrm_cache* cache, kvrm_status status, const char* format, ...) {
  std::va_list values;
  va_start(values, format);
  std::vsnprintf(cache->message.data(), cache->message.size(), format, values);
  va_end(values);
  return status;
}

kvrm_status CheckOpen(kvrm_cache* cache, const char* field, std::uint32_t seq) {
  if (seq >= cache->sequences.size()) {
    return Refuse(cache, KVRM_ARGUMENT, "%s is %u; max_seqs is %zu", field, unsigned{seq},
                  cache->sequences.size());
  }
  if (!cache->sequences[seq].open)
    return Refuse(cache, KVRM_NOT_OPEN, "%s: %u is not open", field, unsigned{seq});
  return Good(cache);
}

}  // namespace kvrm::capi
