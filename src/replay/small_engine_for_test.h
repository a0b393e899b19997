// SPDX-License-Identifier: Apache-2.0
// Options of a small engine on a described device. Threading: pure.
#pragma once

#include "engine/engine.h"

namespace kvrm {

inline EngineOptions SmallEngine() {
  return {.max_rows = 8,
          .max_context = 2048,
          .max_step_tokens = 64,
          .kv_tokens = 4096,
          .max_queued = 4096,
          .kernels = "scalar"};
}

}  // namespace kvrm
