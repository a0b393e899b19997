// SPDX-License-Identifier: Apache-2.0
// EngineParts: what an engine runs on. A model on this machine gives all of it (HostParts), and so
// does a simulated world.
//
// Threading: plain data; make_executor is called once, by the engine's constructor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "device/device.h"
#include "exec/executor.h"
#include "model/weights.h"
#include "step/layout.h"
#include "step/step.h"

namespace kvrm {

// What an executor is built for: the descriptors it will see and the memory that they name.
struct ExecutorNeeds {
  StepLimits limits;
  KvLayout layout;
  std::span<std::byte> memory = {};         // KvCache::memory
  std::span<std::byte> layer_buffers = {};  // KvCache::layer_buffers
};

struct EngineParts {
  KvLayout layout;  // block_tokens is the engine's option and not looked at here
  std::uint32_t vocab_size = 0;
  std::uint32_t hidden_dim = 0;        // of Executor::Hidden; 0: it has none
  std::uint32_t max_context = 0;       // tokens per sequence that the model can serve
  std::uint32_t attention_window = 0;  // tokens that are attended, the own one included; 0: all
  std::string model_digest = {};       // tells models apart in the names of prefixes
  // What a token adds to a text; "" for control tokens. Called while the engine is constructed;
  // empty: requests with a grammar are refused.
  std::function<std::string(std::int32_t id)> token_bytes = {};
  Device* device = nullptr;  // outlives the engine
  // May throw StartError. The executor lives as long as the engine.
  std::function<std::unique_ptr<Executor>(const ExecutorNeeds&)> make_executor = {};
};

struct HostPartsOptions {
  std::uint32_t num_threads = 0;  // workers; 0: all cores
  std::string kernels = {};       // "": as KVRM_ISA or the best; else a table's name
  DType kv_dtype = DType::kF16;   // a KvDType; Q8_0 needs a head_dim that is a multiple of 32
  std::function<void(std::uint64_t done, std::uint64_t total)> progress = {};  // LoadProgress
  bool only_reserve = false;  // the executor is asked how much it takes, and never runs
};

// What keys and values can be kept in: "f16", "bf16", "f32", "q8_0".
inline constexpr DType kKvDTypes[] = {DType::kF16, DType::kBf16, DType::kF32, DType::kQ8_0};
const char* KvDTypeName(DType type);
std::optional<DType> FindKvDType(const std::string& name);

// As HostPartsOptions::kernels. Throws StartError for what this processor cannot run.
const CpuKernels& KernelsByName(const std::string& name);

// The model's decoder on this machine's processor. Throws StartError for what it cannot have.
// `model` and `device` outlive what is made of them.
EngineParts HostParts(const Model& model, Device& device, const HostPartsOptions& options);

}  // namespace kvrm
