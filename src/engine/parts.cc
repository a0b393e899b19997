// SPDX-License-Identifier: Apache-2.0
#include "engine/parts.h"

#include <algorithm>
#include <thread>

#include "base/check.h"
#include "base/result.h"
#include "exec/cpu_executor.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kMaxThreads = 1024;

std::uint32_t NumWorkers(std::uint32_t num_threads) {
  if (num_threads > kMaxThreads) {
    throw StartError("threads must be at most " + std::to_string(kMaxThreads) + ", not " +
                     std::to_string(num_threads));
  }
  return num_threads != 0 ? num_threads : std::max(1u, std::thread::hardware_concurrency());
}

// Enough while names of prefixes stay inside one process, which serves one model.
std::string DigestOf(const Model& model, const CpuKernels& kernels) {
  return model.config().name + '|' + ArchitectureName(model.config().architecture) + '|' +
         std::to_string(model.num_parameters()) + '|' + std::to_string(model.weight_bytes()) + '|' +
         kernels.name;
}

void CheckKvDType(const ModelConfig& config, DType type) {
  if (type == DType::kQ8_0 && config.head_dim % kKvScaleValues != 0) {
    throw StartError("a KV cache in q8_0 needs heads of a multiple of " +
                     std::to_string(kKvScaleValues) + " dimensions, and the head_dim of '" +
                     config.name + "' is " + std::to_string(config.head_dim));
  }
}

}  // namespace

const char* KvDTypeName(DType type) {
  switch (type) {
    case DType::kF32:
      return "f32";
    case DType::kBf16:
      return "bf16";
    case DType::kQ8_0:
      return "q8_0";
    default:
      CHECK(type == DType::kF16);
      return "f16";
  }
}

std::optional<DType> FindKvDType(const std::string& name) {
  for (const DType type : kKvDTypes) {
    if (name == KvDTypeName(type)) return type;
  }
  return std::nullopt;
}

const CpuKernels& KernelsByName(const std::string& name) {
  if (name.empty()) return SelectCpuKernels();
  const CpuKernels* kernels = FindCpuKernels(name.c_str());
  if (kernels == nullptr) {
    throw StartError("kernels '" + name + "' are unknown or not supported by this processor");
  }
  return *kernels;
}

EngineParts HostParts(const Model& model, Device& device, const HostPartsOptions& options) {
  const ModelConfig& config = model.config();
  CheckKvDType(config, options.kv_dtype);
  const CpuKernels& kernels = KernelsByName(options.kernels);
  const std::uint32_t num_workers = NumWorkers(options.num_threads);
  return {.layout = {.num_layers = config.num_layers,
                     .num_kv_heads = config.num_kv_heads,
                     .head_dim = config.head_dim,
                     .block_tokens = kTileTokens,
                     .dtype = options.kv_dtype},
          .vocab_size = config.vocab_size,
          .hidden_dim = config.hidden_dim,
          .max_context = config.max_context,
          .attention_window = config.sliding_window,
          .model_digest = DigestOf(model, kernels),
          .token_bytes = [&model](std::int32_t id) { return model.tokenizer().TokenBytes(id); },
          .device = &device,
          .make_executor = [&model, &device, &kernels, num_workers, progress = options.progress,
                            only_reserve = options.only_reserve](
                               const ExecutorNeeds& needs) -> std::unique_ptr<Executor> {
            return std::make_unique<CpuExecutor>(
                BuildDecoder(model.config(), model.weights()),
                CpuExecutorOptions{.limits = needs.limits,
                                   .layout = needs.layout,
                                   .num_workers = num_workers,
                                   .kernels = &kernels,
                                   .layer_buffers = needs.layer_buffers,
                                   .progress = progress,
                                   .only_reserve = only_reserve},
                device, needs.memory);
          }};
}

}  // namespace kvrm
