// SPDX-License-Identifier: Apache-2.0
// What a kvrm_cache is, and how a call on it is refused. Of src/capi alone.
//
// The books kept here say which calls are in order, so that no mistake of a caller reaches a CHECK
// of the floors below. They repeat what KvCache knows and does not tell: open, length, target.
//
// Threading: as kvrm.h. Memory: the constructors allocate, nothing else does.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "capi/kvrm.h"
#include "device/device.h"
#include "kv/kv_cache.h"
#include "step/step_builder.h"

namespace kvrm::capi {

struct Sequence {
  bool open = false;
  bool ended_in_step = false;  // Released since Plan: the step may name its blocks.
  std::uint32_t length = 0;
  std::uint32_t target = 0;
  std::uint32_t added = 0;  // tokens of its row in the step under construction
};

struct Parked {
  bool is_there = false;
  std::uint32_t length = 0;
};

enum class Phase { kIdle, kBegun, kPlanned };

std::unique_ptr<Device> MakeDevice(const kvrm_device* calls);
KvCacheOptions CacheOptions(const kvrm_options& options);
StepLimits Limits(const kvrm_options& options);

}  // namespace kvrm::capi

struct kvrm_cache {
  explicit kvrm_cache(const kvrm_options& options)
      : device(kvrm::capi::MakeDevice(options.device)),
        limits(kvrm::capi::Limits(options)),
        cache(kvrm::capi::CacheOptions(options), *device),
        builder(limits, options.ring_entries),
        sequences(options.max_seqs),
        parked(cache.options().max_parked) {
    rows.reserve(limits.max_rows);
  }

  std::uint32_t max_context() const {
    return cache.options().max_blocks_per_seq * cache.options().layout.block_tokens;
  }

  const std::unique_ptr<kvrm::Device> device;
  const kvrm::StepLimits limits;
  kvrm::KvCache cache;
  kvrm::StepBuilder builder;
  std::vector<kvrm::capi::Sequence> sequences;
  std::vector<kvrm::capi::Parked> parked;
  std::vector<std::uint32_t> rows;  // sequences of the step under construction
  kvrm::capi::Phase phase = kvrm::capi::Phase::kIdle;
  std::uint32_t num_tokens = 0;
  std::uint32_t num_samples = 0;
  std::uint64_t landed = 0;
  std::uint64_t retired = 0;
  std::atomic<std::uint64_t> committed{0};
  std::atomic<std::uint64_t> latched{0};
  std::array<char, 192> message = {};
};

namespace kvrm::capi {

kvrm_status Good(kvrm_cache* cache);
[[gnu::format(printf, 3, 4)]] kvrm_status Refuse(kvrm_cache* cache, kvrm_status status,
                                                 const char* format, ...);
// Whether `seq` names an open sequence; the status says why not.
kvrm_status CheckOpen(kvrm_cache* cache, const char* field, std::uint32_t seq);

// Copies what the caller's version of the struct has room for; its size stays the caller's.
template <typename Struct>
void Hand(Struct value, Struct* target) {
  value.struct_size = target->struct_size;
  std::memcpy(target, &value, std::min(target->struct_size, sizeof(Struct)));
}

}  // namespace kvrm::capi
