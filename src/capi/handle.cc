// SPDX-License-Identifier: Apache-2.0
#include "capi/handle.h"

#include <cstdarg>
#include <cstddef>
#include <cstdio>
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
  explicit CallbackDevice(const kvrm_device& calls) : calls_(calls) {}

  std::span<std::byte> Reserve(std::size_t bytes, const char* owner) override {
    void* const memory = calls_.reserve(calls_.user, bytes, owner);
    if (memory == nullptr) {
      throw StartError("the device cannot reserve " + std::to_string(bytes) + " bytes for " +
                       owner);
    }
    return {static_cast<std::byte*>(memory), bytes};
  }
  PoolMemory ReservePool(std::size_t pool_bytes, std::size_t window_bytes, bool mapped,
                         std::size_t) override {
    if (mapped) throw StartError("the view 'mapped' needs the device of this library");
    const std::span<std::byte> memory = Reserve(pool_bytes + window_bytes, "kv pool");
    return {memory.first(pool_bytes), memory.subspan(pool_bytes)};
  }
  bool Map(std::size_t, std::size_t, std::size_t) noexcept override { return false; }
  FlightId Submit(std::span<const CopyOp> copies) noexcept override {
    calls_.copy(calls_.user, ++num_flights_, reinterpret_cast<const kvrm_copy*>(copies.data()),
                copies.size());
    return FlightId{num_flights_};
  }
  bool Landed(FlightId flight) noexcept override {
    Wait(flight);
    return true;
  }
  void Wait(FlightId flight) noexcept override {
    calls_.wait(calls_.user, static_cast<std::uint64_t>(flight));
  }

 private:
  const kvrm_device calls_;
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
          .prefix_cache = options.prefix_cache != 0};
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
