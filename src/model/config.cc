// SPDX-License-Identifier: Apache-2.0
#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "model/config_checks.h"
#include "model/quoted.h"

namespace kvrm {

const char* ArchitectureName(Architecture architecture) {
  switch (architecture) {
    case Architecture::kLlama:
      return "llama";
    case Architecture::kMistral:
      return "mistral";
    case Architecture::kQwen2:
      return "qwen2";
    case Architecture::kQwen3:
      return "qwen3";
  }
  return "unknown";
}

Error UnsupportedArchitecture(const std::string& name, std::string_view architecture) {
  return Error{ErrorCode::kUnsupported, name + ": architecture " + Quoted(architecture) +
                                            " is not supported; supported: llama, mistral, "
                                            "qwen2, qwen3"};
}

std::vector<float> Llama3RopeFactors(const Llama3Scaling& scaling, std::uint32_t rope_dim,
                                     double rope_base) {
  const double low_wavelength = scaling.original_context / scaling.low_freq_factor;
  const double high_wavelength = scaling.original_context / scaling.high_freq_factor;
  std::vector<float> factors;
  factors.reserve(rope_dim / 2);
  for (std::uint32_t i = 0; i < rope_dim / 2; ++i) {
    const double frequency = std::pow(rope_base, -2.0 * i / rope_dim);
    const double wavelength = 2.0 * std::numbers::pi / frequency;
    if (wavelength < high_wavelength) {
      factors.push_back(1.0f);
    } else if (wavelength > low_wavelength) {
      factors.push_back(static_cast<float>(scaling.factor));
    } else {
      const double smooth = (scaling.original_context / wavelength - scaling.low_freq_factor) /
                            (scaling.high_freq_factor - scaling.low_freq_factor);
      factors.push_back(static_cast<float>(1.0 / ((1.0 - smooth) / scaling.factor + smooth)));
    }
  }
  return factors;
}

Status SetRopeFactors(const std::string& name, std::vector<float> factors, ModelConfig* config) {
  for (const float factor : factors) {
    if (!std::isfinite(factor) || factor <= 0.0f) {
      return Error{ErrorCode::kInvalidArgument,
                   name + ": a rope frequency factor is not a finite positive number"};
    }
  }
  if (std::all_of(factors.begin(), factors.end(), [](float f) { return f == 1.0f; })) {
    factors.clear();
  }
  config->rope_factors = std::move(factors);
  return Done{};
}

Status FinishConfig(const std::string& name, ModelConfig* config) {
  const auto refuse = [&name](const std::string& what) {
    return Error{ErrorCode::kInvalidArgument, name + ": " + what};
  };
  if (config->num_kv_heads == 0) config->num_kv_heads = config->num_heads;
  if (config->num_heads % config->num_kv_heads != 0) {
    return refuse("the number of heads, " + std::to_string(config->num_heads) +
                  ", is no multiple of the number of key-value heads, " +
                  std::to_string(config->num_kv_heads));
  }
  if (config->head_dim == 0) {
    if (config->hidden_dim % config->num_heads != 0) {
      return refuse("the hidden size, " + std::to_string(config->hidden_dim) +
                    ", is no multiple of the number of heads, " +
                    std::to_string(config->num_heads));
    }
    config->head_dim = config->hidden_dim / config->num_heads;
  }
  if (config->head_dim < kMinHeadDim || config->head_dim > kMaxHeadDim ||
      config->head_dim % 2 != 0) {
    return refuse("the head dimension is " + std::to_string(config->head_dim) +
                  "; it must be even, from 2 to 512");
  }
  if (config->rope_dim == 0) config->rope_dim = config->head_dim;
  if (config->rope_dim % 2 != 0 || config->rope_dim > config->head_dim) {
    return refuse("the rope dimension is " + std::to_string(config->rope_dim) +
                  "; it must be even and at most the head dimension, " +
                  std::to_string(config->head_dim));
  }
  // All positions within the window are all positions.
  if (config->sliding_window >= config->max_context) config->sliding_window = 0;
  return Done{};
}

}  // namespace kvrm
