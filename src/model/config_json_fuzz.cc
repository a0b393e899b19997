// SPDX-License-Identifier: Apache-2.0
// libFuzzer target: any text as a config.json and as an index of safetensors files.
#include <cmath>
#include <cstdint>

#include "base/check.h"
#include "model/config.h"
#include "model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto index = kvrm::SafetensorsIndexFiles(text, "fuzz");
  if (index) {
    for (const std::string& file : *index)
      CHECK(file.find('/') == std::string::npos);
  }
  const kvrm::Result<kvrm::ModelConfig> config = kvrm::ConfigFromJson(text, "fuzz");
  if (!config) {
    CHECK(!config.error().message.empty());
    CHECK(config.error().message.find('\n') == std::string::npos);
    return 0;
  }
  CHECK(config->num_layers >= 1 && config->num_layers <= 1024);
  CHECK(config->hidden_dim >= 1 && config->hidden_dim <= 65'536);
  CHECK(config->num_heads % config->num_kv_heads == 0);
  CHECK(config->head_dim >= 2 && config->head_dim <= 512 && config->head_dim % 2 == 0);
  CHECK(config->rope_dim % 2 == 0 && config->rope_dim <= config->head_dim);
  CHECK(std::isfinite(config->rms_eps) && config->rms_eps > 0.0f);
  CHECK(std::isfinite(config->rope_base) && config->rope_base > 0.0f);
  CHECK(config->rope_factors.empty() || config->rope_factors.size() == config->rope_dim / 2);
  for (const float factor : config->rope_factors)
    CHECK(std::isfinite(factor) && factor > 0.0f);
  return 0;
}
