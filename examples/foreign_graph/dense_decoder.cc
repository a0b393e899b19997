// SPDX-License-Identifier: Apache-2.0
#include "dense_decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "random.h"

namespace foreign {
namespace {

std::vector<float> RandomMatrix(Random& random, std::size_t size, float scale) {
  std::vector<float> matrix(size);
  for (float& element : matrix)
    element = (random.Unit() * 2.0f - 1.0f) * scale;
  return matrix;
}

template <std::size_t kSize>
std::array<float, kSize> Normalised(const std::array<float, kSize>& x) {
  float sum = 0;
  for (const float element : x)
    sum += element * element;
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(kSize) + 1e-5f);
  std::array<float, kSize> y;
  for (std::size_t i = 0; i < kSize; ++i)
    y[i] = x[i] * scale;
  return y;
}

}  // namespace

DenseDecoder::DenseDecoder(std::uint64_t seed, Bug bug)
    : bug_(bug), hidden_(kLanes * kStepTokens), queries_(kLanes * kStepTokens) {
  slots_.reserve(kLanes * kStepTokens);
  Random random(seed);
  embedding_ = RandomMatrix(random, kVocab * kHidden, 1.0f);
  position_ = RandomMatrix(random, kWindowTokens * kHidden, 0.5f);
  for (Layer& layer : layers_) {
    for (std::vector<float>* matrix : {&layer.query, &layer.key, &layer.value, &layer.out})
      *matrix = RandomMatrix(random, kHidden * kHidden, 0.6f);
    layer.up = RandomMatrix(random, kMlp * kHidden, 0.4f);
    layer.down = RandomMatrix(random, kHidden * kMlp, 0.4f);
  }
}

Shape DenseDecoder::shape() const {
  return {.lanes = kLanes,
          .window_tokens = kWindowTokens,
          .record_bytes = sizeof(Record),
          .step_tokens = kStepTokens,
          .vocab = kVocab};
}

void DenseDecoder::Run(const DenseCall& call) {
  std::vector<Slot>& slots = slots_;
  slots.clear();
  num_busy_ = 0;
  for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
    num_busy_ += call.count[lane] > 0 ? 1 : 0;
    for (std::uint32_t t = 0; t < call.step_tokens; ++t) {
      const std::uint32_t position = std::min(call.first[lane] + t, kWindowTokens - 1);
      slots.push_back({lane, t, position, t < call.count[lane]});
    }
  }
  for (std::size_t s = 0; s < slots.size(); ++s) {
    const Slot& slot = slots[s];
    const std::size_t index = std::size_t{slot.lane} * call.step_tokens + slot.t;
    const auto token = slot.live ? static_cast<std::size_t>(call.tokens[index]) : 0;
    for (std::uint32_t i = 0; i < kHidden; ++i)
      hidden_[s][i] = embedding_[token * kHidden + i] + position_[slot.position * kHidden + i];
  }
  for (std::uint32_t l = 0; l < kLayers; ++l) {
    // All records of the layer, then all attention: tokens of one call see one another.
    for (std::size_t s = 0; s < slots.size(); ++s) {
      LayerRecord record;
      Project(layers_[l], Normalised(hidden_[s]), record, queries_[s]);
      WriteRecord(call, slots[s], l, record);
    }
    for (std::size_t s = 0; s < slots.size(); ++s) {
      const Hidden attended = Attend(call, slots[s], l, queries_[s]);
      Hidden out;
      Multiply(layers_[l].out, attended.data(), kHidden, out.data(), kHidden);
      for (std::uint32_t i = 0; i < kHidden; ++i)
        hidden_[s][i] += out[i];
      AddMlp(layers_[l], hidden_[s]);
    }
  }
  for (std::size_t s = 0; s < slots.size(); ++s) {
    const Hidden last = Normalised(hidden_[s]);
    const std::size_t index = std::size_t{slots[s].lane} * call.step_tokens + slots[s].t;
    Multiply(embedding_, last.data(), kHidden, call.logits + index * kVocab, kVocab);
  }
}

void DenseDecoder::Project(const Layer& layer, const Hidden& x, LayerRecord& record,
                           Hidden& query) const {
  Multiply(layer.key, x.data(), kHidden, record.data(), kHidden);
  Multiply(layer.value, x.data(), kHidden, record.data() + kHidden, kHidden);
  Multiply(layer.query, x.data(), kHidden, query.data(), kHidden);
}

void DenseDecoder::WriteRecord(const DenseCall& call, const Slot& slot, std::uint32_t layer,
                               const LayerRecord& record) const {
  const bool writes = slot.live || (bug_ == Bug::kIdleWrite && call.count[slot.lane] == 0);
  if (!writes) return;
  const std::size_t number = std::size_t{slot.lane} * kWindowTokens + slot.position;
  const std::size_t offset = layer * sizeof(LayerRecord);
  std::memcpy(call.kv + number * sizeof(Record) + offset, record.data(), sizeof(record));
  std::byte* const home = call.home[std::size_t{slot.lane} * call.step_tokens + slot.t];
  if (home != nullptr && bug_ != Bug::kSkipMirror)
    std::memcpy(home + offset, record.data(), sizeof(record));
}

DenseDecoder::Hidden DenseDecoder::Attend(const DenseCall& call, const Slot& slot,
                                          std::uint32_t layer, const Hidden& query) const {
  const std::byte* const window = call.kv +
                                  std::size_t{slot.lane} * kWindowTokens * sizeof(Record) +
                                  layer * sizeof(LayerRecord);
  const std::uint32_t length = slot.position + (bug_ == Bug::kLongMask ? 2 : 1);
  Hidden attended = {};
  for (std::uint32_t head = 0; head < kHeads; ++head) {
    std::array<float, kWindowTokens> weights;
    float highest = -std::numeric_limits<float>::infinity();
    for (std::uint32_t p = 0; p < kWindowTokens; ++p) {
      LayerRecord record;
      std::memcpy(record.data(), window + p * sizeof(Record), sizeof(record));
      float score = 0;
      for (std::uint32_t i = 0; i < kHeadDim; ++i)
        score += query[head * kHeadDim + i] * record[head * kHeadDim + i];
      weights[p] = p < length ? score : -std::numeric_limits<float>::infinity();
      highest = std::max(highest, weights[p]);
    }
    float sum = 0;
    for (float& weight : weights) {
      weight = std::exp(weight - highest);
      sum += weight;
    }
    for (std::uint32_t p = 0; p < kWindowTokens; ++p) {
      LayerRecord record;
      std::memcpy(record.data(), window + p * sizeof(Record), sizeof(record));
      for (std::uint32_t i = 0; i < kHeadDim; ++i)
        attended[head * kHeadDim + i] += weights[p] / sum * record[kHidden + head * kHeadDim + i];
    }
  }
  return attended;
}

void DenseDecoder::AddMlp(const Layer& layer, Hidden& x) const {
  std::array<float, kMlp> inner;
  Multiply(layer.up, Normalised(x).data(), kHidden, inner.data(), kMlp);
  for (float& element : inner)
    element = std::max(element, 0.0f);
  Hidden out;
  Multiply(layer.down, inner.data(), kMlp, out.data(), kHidden);
  for (std::uint32_t i = 0; i < kHidden; ++i)
    x[i] += out[i];
}

// y = matrix x; matrix is [rows][columns].
void DenseDecoder::Multiply(const std::vector<float>& matrix, const float* x, std::uint32_t columns,
                            float* y, std::uint32_t rows) const {
  const bool backwards = bug_ == Bug::kBatchSum && num_busy_ > 1;
  for (std::uint32_t r = 0; r < rows; ++r) {
    float sum = 0;
    for (std::uint32_t c = 0; c < columns; ++c) {
      const std::uint32_t at = backwards ? columns - 1 - c : c;
      sum += matrix[std::size_t{r} * columns + at] * x[at];
    }
    y[r] = sum;
  }
}

}  // namespace foreign
