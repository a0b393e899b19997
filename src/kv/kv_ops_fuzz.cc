// SPDX-License-Identifier: Apache-2.0
// libFuzzer: the program of KvModel, its shape and every decision taken from the input's bytes.
#include <cstddef>
#include <cstdint>
#include <span>

#include "kv/kv_model.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  kvrm::Choices choices(std::span(data, size));
  const kvrm::KvModelOptions options = kvrm::RandomKvModelOptions(choices);
  kvrm::KvModel model(options, choices);
  while (!choices.exhausted())
    model.RandomOp();
  model.Drain();
  return 0;
}
