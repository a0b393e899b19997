// SPDX-License-Identifier: Apache-2.0
// DenseDecoder: a small transformer decoder over dense contiguous KV, written for this example and
// without any thought of paging. Weights are random, by seed.
//
//   record   [layers][K | V][heads][head_dim] float      256 bytes
//   kv       [lanes][window_tokens] records
//
// It computes every lane and every token slot of the graph in each call, as a compiled program of
// fixed shape does; what is not there is computed on token 0 and written nowhere. Attention runs
// over the whole window in one order, masked by length.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "copy_engine.h"
#include "program.h"

namespace foreign {

class DenseDecoder final : public Program {
 public:
  static constexpr std::uint32_t kLanes = 4;
  static constexpr std::uint32_t kWindowTokens = 128;
  static constexpr std::uint32_t kStepTokens = 8;
  static constexpr std::uint32_t kVocab = 64;
  static constexpr std::uint32_t kLayers = 2;
  static constexpr std::uint32_t kHeads = 2;
  static constexpr std::uint32_t kHeadDim = 8;
  static constexpr std::uint32_t kHidden = kHeads * kHeadDim;
  static constexpr std::uint32_t kMlp = 32;

  // Planted bugs of a program, to see the kit find them.
  enum class Bug {
    kNone,
    kSkipMirror,  // records are written to kv alone
    kIdleWrite,   // idle lanes write at their position 0
    kLongMask,    // attention reads one position too many
    kBatchSum,    // the order of a sum depends on how many lanes are busy
  };

  explicit DenseDecoder(std::uint64_t seed, Bug bug = Bug::kNone);

  Shape shape() const override;
  kvrm::Device& device() override { return device_; }
  bool offers_mapping() const override { return true; }
  void Run(const DenseCall& call) override;

 private:
  // One token's record in one layer: K, then V.
  using LayerRecord = std::array<float, 2 * kHidden>;
  using Record = std::array<LayerRecord, kLayers>;
  using Hidden = std::array<float, kHidden>;
  struct Layer {
    std::vector<float> query, key, value, out;  // [kHidden][kHidden]
    std::vector<float> up, down;                // [kMlp][kHidden], [kHidden][kMlp]
  };
  struct Slot {
    std::uint32_t lane = 0;
    std::uint32_t t = 0;
    std::uint32_t position = 0;
    bool live = false;
  };

  void Project(const Layer& layer, const Hidden& x, LayerRecord& record, Hidden& query) const;
  void WriteRecord(const DenseCall& call, const Slot& slot, std::uint32_t layer,
                   const LayerRecord& record) const;
  Hidden Attend(const DenseCall& call, const Slot& slot, std::uint32_t layer,
                const Hidden& query) const;
  void AddMlp(const Layer& layer, Hidden& x) const;
  void Multiply(const std::vector<float>& matrix, const float* x, std::uint32_t columns, float* y,
                std::uint32_t rows) const;

  const Bug bug_;
  CopyEngine device_;
  std::vector<float> embedding_;  // [kVocab][kHidden], also the head
  std::vector<float> position_;   // [kWindowTokens][kHidden]
  std::array<Layer, kLayers> layers_;
  std::vector<Slot> slots_;      // of this call
  std::vector<Hidden> hidden_;   // [kLanes * kStepTokens]
  std::vector<Hidden> queries_;  // [kLanes * kStepTokens]
  std::uint32_t num_busy_ = 0;   // lanes of this call; of kBatchSum
};

}  // namespace foreign
