// SPDX-License-Identifier: Apache-2.0
// What keys and values are kept in: the same promises for each type, and what Q8_0 asks for.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/file.h"
#include "engine/engine.h"
#include "engine/outputs_for_test.h"
#include "model/small_model.h"
#include "model/weights.h"

namespace kvrm {
namespace {

const SystemClock kClock;

const Model& Demo() {
  static const Model model = OrThrow(Model::LoadDemo());
  return model;
}

// Twelve requests of 20 to 75 tokens, twenty more of each.
std::vector<Output> Serve(DType dtype, std::uint32_t rows, std::uint32_t threads,
                          std::uint32_t chunk) {
  Engine engine(Demo(),
                {.max_rows = rows,
                 .max_context = 128,
                 .num_threads = threads,
                 .prompt_chunk = chunk,
                 .kv_dtype = dtype},
                kClock);
  std::map<RequestId, std::size_t> index;
  for (std::size_t i = 0; i < 12; ++i) {
    std::vector<std::int32_t> prompt;
    for (std::size_t t = 0; t < 20 + 5 * i; ++t)
      prompt.push_back(static_cast<std::int32_t>(
          (31 * i + 7 * t + t * t) % static_cast<std::size_t>(Demo().config().vocab_size)));
    index[OrThrow(engine.Submit(
        {.prompt = prompt, .max_tokens = 20, .sampling = {.temperature = 0.0f}}))] = i;
  }
  return ServeAll(engine, index);
}

TEST(KvDType, OutputsOfEveryTypeDoNotDependOnCompany) {
  for (const DType dtype : kKvDTypes) {
    const std::vector<Output> alone = Serve(dtype, 1, 1, 0);
    EXPECT_EQ(Serve(dtype, 6, 2, 7), alone) << KvDTypeName(dtype);
  }
}

TEST(KvDType, BytesChangeThePoolAndTheLogprobsALittle) {
  const std::vector<Output> f16 = Serve(DType::kF16, 6, 1, 0);
  const std::vector<Output> q8 = Serve(DType::kQ8_0, 6, 1, 0);
  EXPECT_NE(f16, q8);
  const auto block_bytes = [](DType dtype) {
    return KvLayout{.num_layers = 5, .num_kv_heads = 2, .head_dim = 64, .dtype = dtype}
        .block_bytes();
  };
  EXPECT_EQ(block_bytes(DType::kQ8_0) * 32, block_bytes(DType::kF16) * 17);
}

TEST(KvDType, NamesAreFoundAgain) {
  for (const DType dtype : kKvDTypes)
    EXPECT_EQ(FindKvDType(KvDTypeName(dtype)), dtype);
  EXPECT_EQ(FindKvDType("q4_0"), std::nullopt);
}

TEST(KvDType, Q8OfHeadsThatAreNoWholeBlocksIsRefused) {
  const std::string path = (std::filesystem::temp_directory_path() /
                            ("kvrm_kv_dtype_" + std::to_string(::getpid()) + ".gguf"))
                               .string();
  ASSERT_TRUE(WriteFile(path, SmallLlama().Build()));
  {
    const Model model = OrThrow(Model::Load(path));
    EXPECT_NO_THROW(Engine(model, {.max_rows = 1}, kClock));
    try {
      const Engine engine(model, {.max_rows = 1, .kv_dtype = DType::kQ8_0}, kClock);
      ADD_FAILURE() << "heads of 16 dimensions in blocks of 32";
    } catch (const StartError& error) {
      EXPECT_NE(std::string(error.what()).find("head_dim of 'small' is 16"), std::string::npos)
          << error.what();
    }
  }
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace kvrm
