// SPDX-License-Identifier: Apache-2.0
// What tests of KvCache stand on: a small layout, and a cache with its device and its ring. Tests
// only.
#pragma once

#include <cstdint>

#include "device/host_device.h"
#include "kv/kv_cache.h"
#include "kv/kv_model.h"
#include "step/step_builder.h"

namespace kvrm {

inline constexpr std::uint32_t kBlockTokens = KvModel::kBlockTokens;
inline constexpr KvLayout kLayout = KvModel::kLayout;

inline constexpr SeqId kA{0};
inline constexpr SeqId kB{1};
inline constexpr SeqId kC{2};

struct CacheBench {
  explicit CacheBench(const KvCacheOptions& options)
      : cache(options, device),
        builder({.max_rows = 4,
                 .max_tokens = 1024,
                 .max_runs = options.max_runs,
                 .max_groups = options.max_groups,
                 .block_tokens = kBlockTokens},
                4) {}

  // Commits what is in the builder, as a step whose copies land before it is latched.
  StepView Launch() {
    const StepView view = builder.Commit(0, 4);
    cache.Launch(view);
    cache.Land();
    builder.Latch();
    return view;
  }

  HostDevice device;
  KvCache cache;
  StepBuilder builder;
};

}  // namespace kvrm
