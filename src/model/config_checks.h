// SPDX-License-Identifier: Apache-2.0
// What reading a configuration from GGUF and from JSON has in common: limits, consistency, rope
// scaling. Private to model/config*.cc and, for a limit, the dummy.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "model/config.h"

namespace kvrm {

inline constexpr std::uint64_t kMaxLayers = 1'024;
inline constexpr std::uint64_t kMaxHiddenDim = 65'536;
inline constexpr std::uint64_t kMaxFfnDim = 1'048'576;
inline constexpr std::uint64_t kMaxHeads = 4'096;
inline constexpr std::uint64_t kMinHeadDim = 2;
inline constexpr std::uint64_t kMaxHeadDim = 512;
inline constexpr std::uint64_t kMaxVocab = std::uint64_t{4} << 20;
inline constexpr std::uint64_t kMaxContextTokens = std::uint64_t{16} << 20;
// Far beyond any real base (1e7) or eps, and well inside float.
inline constexpr double kMaxRopeBase = 1e12;
inline constexpr double kMaxRmsEps = 1.0;

// The error for an architecture that is not one of ours.
Error UnsupportedArchitecture(const std::string& name, std::string_view architecture);

// Llama 3.1 scaling: long wavelengths are stretched by `factor`, short ones kept, between the two
// bounds a ramp.
struct Llama3Scaling {
  double factor = 1;
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  double original_context = 8192;
};
std::vector<float> Llama3RopeFactors(const Llama3Scaling& scaling, std::uint32_t rope_dim,
                                     double rope_base);

// Drops factors that are all 1; checks that each is finite and positive.
Status SetRopeFactors(const std::string& name, std::vector<float> factors, ModelConfig* config);

// Fills head_dim and rope_dim where the file left them 0 and checks what the fields owe each other.
Status FinishConfig(const std::string& name, ModelConfig* config);

}  // namespace kvrm
