// SPDX-License-Identifier: Apache-2.0
// A sliding window reaches as far as it says and no further, whatever the chunks.
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "base/file.h"
#include "engine/scorer.h"
#include "model/weights.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kWindow = 20;  // Neither a tile nor a unit of positions.

template <typename T>
void Append(std::string* out, T value) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

// The golden llama model of two layers with one more pair of metadata, and a filler that keeps the
// tensors' data where its alignment wants it.
std::string WindowedModel() {
  std::string image = OrThrow(
      ReadFile(std::string(KVRM_SOURCE_DIR) + "/testdata/golden/llama-gqa-Q8_0.gguf", 1u << 24));
  constexpr std::size_t kHeaderBytes = 24;  // magic, version, number of tensors, number of pairs
  const std::string key = "llama.attention.sliding_window";
  const std::string filler = "test.filler";
  std::string pairs;
  Append<std::uint64_t>(&pairs, key.size());
  pairs += key;
  Append<std::uint32_t>(&pairs, 4);  // uint32
  Append(&pairs, kWindow);
  Append<std::uint64_t>(&pairs, filler.size());
  pairs += filler;
  Append<std::uint32_t>(&pairs, 8);  // string
  const std::size_t length = (32 - (pairs.size() + 8) % 32) % 32;
  Append<std::uint64_t>(&pairs, length);
  pairs.append(length, 'x');
  std::uint64_t num_pairs = 0;
  std::memcpy(&num_pairs, image.data() + 16, 8);
  num_pairs += 2;
  std::memcpy(image.data() + 16, &num_pairs, 8);
  return image.insert(kHeaderBytes, pairs);
}

std::vector<std::uint32_t> LastLogits(const Model& model, const std::vector<std::int32_t>& tokens,
                                      std::uint32_t chunk) {
  Scorer scorer(model, {.max_context = 128, .chunk = chunk, .num_threads = 1});
  std::vector<std::uint32_t> bits;
  scorer.Score(tokens, [&](std::uint32_t position, std::span<const float> logits) {
    if (position + 1 < tokens.size()) return;
    for (const float logit : logits)
      bits.push_back(std::bit_cast<std::uint32_t>(logit));
  });
  return bits;
}

TEST(SlidingWindow, ReachesAsFarAsItSaysThroughEveryLayer) {
  const std::string image = WindowedModel();
  const Model model = OrThrow(Model::FromGgufBytes(std::as_bytes(std::span(image)), "windowed"));
  ASSERT_EQ(model.config().sliding_window, kWindow);
  ASSERT_EQ(model.config().num_layers, 2u);
  std::vector<std::int32_t> tokens(100);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<std::int32_t>(3 + (i * 37) % 250);
  }
  const std::vector<std::uint32_t> logits = LastLogits(model, tokens, 64);
  EXPECT_EQ(LastLogits(model, tokens, 1), logits);
  EXPECT_EQ(LastLogits(model, tokens, 7), logits);
  // Each layer looks kWindow - 1 positions back, so two layers see this far and nothing before.
  const std::size_t reach = 2 * (kWindow - 1);
  const std::size_t last = tokens.size() - 1;
  const auto changed = [&](std::size_t position) {
    std::vector<std::int32_t> other = tokens;
    other[position] += 1;
    return LastLogits(model, other, 64) != logits;
  };
  EXPECT_FALSE(changed(0));
  EXPECT_FALSE(changed(last - reach - 1));
  EXPECT_TRUE(changed(last - reach));
  EXPECT_TRUE(changed(last - kWindow));
  EXPECT_TRUE(changed(last - 1));
}

}  // namespace
}  // namespace kvrm
