// SPDX-License-Identifier: Apache-2.0
#include "model/dummy_model.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <optional>
#include <span>
#include <utility>

#include "base/check.h"
#include "base/result.h"
#include "base/rng.h"
#include "base/system_memory.h"
#include "model/config_checks.h"
#include "model/gguf_writer.h"
#include "model/random_blocks.h"
#include "model/vocabulary.h"

namespace kvrm {
namespace {

struct Shape {
  const char* name;
  const char* title;
  const char* architecture;
  std::uint32_t hidden, layers, heads, kv_heads, head_dim, ffn, vocab, context;
  float rope_base;
  float rms_eps;
  bool tied;
  bool qkv_bias;
};

constexpr Shape kShapes[] = {
    {"135M", "SmolLM2-135M", "llama", 576, 30, 9, 3, 64, 1536, 49152, 8192, 1e5f, 1e-5f, true,
     false},
    {"0.5B", "Qwen2.5-0.5B", "qwen2", 896, 24, 14, 2, 64, 4864, 151936, 32768, 1e6f, 1e-6f, true,
     true},
    {"0.6B", "Qwen3-0.6B", "qwen3", 1024, 28, 16, 8, 128, 3072, 151936, 40960, 1e6f, 1e-6f, true,
     false},
    {"1.2B", "Llama-3.2-1B", "llama", 2048, 16, 32, 8, 64, 8192, 128256, 131072, 5e5f, 1e-5f, true,
     false},
    {"8B", "Llama-3.1-8B", "llama", 4096, 32, 32, 8, 128, 14336, 128256, 131072, 5e5f, 1e-5f, false,
     false},
};

// `mixed`: Q6_K for the output and for half of the layers' ffn_down and attn_v.
struct Mix {
  const char* name;
  DType type;
  bool mixed;
};
constexpr Mix kMixes[] = {
    {"q8_0", DType::kQ8_0, false},  {"q4_0", DType::kQ4_0, false}, {"q5_0", DType::kQ5_0, false},
    {"q4_k_m", DType::kQ4_K, true}, {"q5_k", DType::kQ5_K, false}, {"q6_k", DType::kQ6_K, false},
    {"bf16", DType::kBf16, false},  {"f16", DType::kF16, false},   {"f32", DType::kF32, false},
};

// Tensors begin on pages, so that pages can be shown there.
constexpr std::uint64_t kPageBytes = 4096;
constexpr std::uint64_t kPatternBytes = std::uint64_t{16} << 20;

std::uint32_t GgufNumber(DType type) {
  switch (type) {
    case DType::kF32:
      return 0;
    case DType::kF16:
      return 1;
    case DType::kQ4_0:
      return 2;
    case DType::kQ5_0:
      return 6;
    case DType::kQ8_0:
      return 8;
    case DType::kQ4_K:
      return 12;
    case DType::kQ5_K:
      return 13;
    case DType::kQ6_K:
      return 14;
    case DType::kBf16:
      return 30;
  }
  CHECK(false);
  return 0;
}

bool SameName(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](unsigned char x, unsigned char y) {
    return std::tolower(x) == std::tolower(y);
  });
}

// The entry of that name; throws StartError with all names.
template <typename Entry, std::size_t kSize>
const Entry& FindEntry(const Entry (&entries)[kSize], std::string_view name, const char* what) {
  std::string names;
  for (const Entry& entry : entries) {
    if (SameName(entry.name, name)) return entry;
    names += (names.empty() ? "" : ", ") + std::string(entry.name);
  }
  throw StartError("--dummy: '" + std::string(name.substr(0, 40)) + "' is no " + what +
                   "; there are " + names);
}

// What converters store where rows are not of whole blocks.
DType Storable(DType type, std::uint64_t cols) {
  if (cols % DTypeBlockElements(type) == 0) return type;
  const DType other = type == DType::kQ6_K ? DType::kQ8_0 : DType::kQ5_0;
  CHECK(cols % DTypeBlockElements(other) == 0);
  return other;
}

// The layers whose ffn_down and attn_v converters give more bits: the first and the last eighth,
// and every third of the others.
bool HasMoreBits(std::uint32_t layer, std::uint32_t num_layers) {
  const std::uint32_t eighth = num_layers / 8;
  return layer < eighth || layer >= 7 * num_layers / 8 || (layer - eighth) % 3 == 2;
}

enum class Fill : std::uint8_t { kBlocks, kConstant, kBias };

struct Tensor {
  std::string name;
  DType type = DType::kF32;
  std::uint64_t rows = 1;
  std::uint64_t cols = 0;
  Fill fill = Fill::kBlocks;
  float constant = 1.0f;
  // No two rows alike, or tokens would have equal logits.
  bool distinct = false;
  // A tenth of the others' spread. What attention adds is much the same for all tokens of a context
  // and would drown the small embeddings: the model would say one word for ever.
  bool small = false;
  std::uint64_t offset = 0;  // within the image's data, on a page

  std::uint64_t bytes() const {
    return rows * (cols / DTypeBlockElements(type)) * DTypeBlockBytes(type);
  }
};

// The tensors of a shape, in the order of the file.
class TensorList {
 public:
  TensorList(const Shape& shape, const Mix& mix) : shape_(shape), mix_(mix) {
    const DType outer = mix.mixed ? DType::kQ6_K : mix.type;
    // Logits are the spread of this norm's weights times a standard normal. Of n such logits of
    // spread s the entropy is about ln n - s^2 / 2: three nats here, as of text.
    const auto spread = static_cast<float>(std::sqrt(2 * (std::log(shape.vocab) - 3.0)));
    Matrix("token_embd.weight", shape.tied ? outer : mix.type, shape.vocab, shape.hidden);
    tensors_.back().distinct = shape.tied;
    Vector("output_norm.weight", shape.hidden, Fill::kConstant, spread);
    if (!shape.tied) {
      Matrix("output.weight", outer, shape.vocab, shape.hidden);
      tensors_.back().distinct = true;
    }
    for (std::uint32_t layer = 0; layer < shape.layers; ++layer)
      AddLayer(layer);
    for (Tensor& tensor : tensors_) {
      tensor.offset = data_bytes_;
      data_bytes_ += (tensor.bytes() + kPageBytes - 1) / kPageBytes * kPageBytes;
    }
  }

  const std::vector<Tensor>& tensors() const { return tensors_; }
  std::uint64_t data_bytes() const { return data_bytes_; }

 private:
  void Matrix(const std::string& name, DType type, std::uint64_t rows, std::uint64_t cols) {
    tensors_.push_back({.name = name, .type = Storable(type, cols), .rows = rows, .cols = cols});
  }
  void Vector(const std::string& name, std::uint64_t cols, Fill fill, float constant = 1.0f) {
    tensors_.push_back({.name = name, .cols = cols, .fill = fill, .constant = constant});
  }

  void AddLayer(std::uint32_t layer) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    const std::uint64_t q = std::uint64_t{shape_.heads} * shape_.head_dim;
    const std::uint64_t kv = std::uint64_t{shape_.kv_heads} * shape_.head_dim;
    const bool more = mix_.mixed && HasMoreBits(layer, shape_.layers);
    Vector(prefix + "attn_norm.weight", shape_.hidden, Fill::kConstant);
    Matrix(prefix + "attn_q.weight", mix_.type, q, shape_.hidden);
    Matrix(prefix + "attn_k.weight", mix_.type, kv, shape_.hidden);
    Matrix(prefix + "attn_v.weight", more ? DType::kQ6_K : mix_.type, kv, shape_.hidden);
    Matrix(prefix + "attn_output.weight", mix_.type, shape_.hidden, q);
    tensors_.back().small = true;
    if (shape_.qkv_bias) {
      Vector(prefix + "attn_q.bias", q, Fill::kBias);
      Vector(prefix + "attn_k.bias", kv, Fill::kBias);
      Vector(prefix + "attn_v.bias", kv, Fill::kBias);
    }
    if (SameName(shape_.architecture, "qwen3")) {
      Vector(prefix + "attn_q_norm.weight", shape_.head_dim, Fill::kConstant);
      Vector(prefix + "attn_k_norm.weight", shape_.head_dim, Fill::kConstant);
    }
    Vector(prefix + "ffn_norm.weight", shape_.hidden, Fill::kConstant);
    Matrix(prefix + "ffn_gate.weight", mix_.type, shape_.ffn, shape_.hidden);
    Matrix(prefix + "ffn_up.weight", mix_.type, shape_.ffn, shape_.hidden);
    Matrix(prefix + "ffn_down.weight", more ? DType::kQ6_K : mix_.type, shape_.hidden, shape_.ffn);
  }

  const Shape& shape_;
  const Mix& mix_;
  std::vector<Tensor> tensors_;
  std::uint64_t data_bytes_ = 0;
};

void AddShape(const Shape& shape, GgufWriter* writer) {
  const std::string prefix = std::string(shape.architecture) + ".";
  writer->AddString("general.architecture", shape.architecture);
  writer->AddString("general.name", std::string("dummy ") + shape.title);
  writer->AddUint("general.alignment", static_cast<std::uint32_t>(kPageBytes));
  writer->AddUint(prefix + "context_length", shape.context);
  writer->AddUint(prefix + "embedding_length", shape.hidden);
  writer->AddUint(prefix + "block_count", shape.layers);
  writer->AddUint(prefix + "feed_forward_length", shape.ffn);
  writer->AddUint(prefix + "attention.head_count", shape.heads);
  writer->AddUint(prefix + "attention.head_count_kv", shape.kv_heads);
  writer->AddUint(prefix + "attention.key_length", shape.head_dim);
  writer->AddUint(prefix + "attention.value_length", shape.head_dim);
  writer->AddUint(prefix + "rope.dimension_count", shape.head_dim);
  writer->AddFloat(prefix + "rope.freq_base", shape.rope_base);
  writer->AddFloat(prefix + "attention.layer_norm_rms_epsilon", shape.rms_eps);
}

// The bytes, made-up words, and the end as the last token.
void AddVocabulary(const Shape& shape, GgufWriter* writer) {
  std::vector<std::string> tokens(shape.vocab);
  for (std::uint32_t id = 0; id < shape.vocab; ++id) {
    const bool is_byte = id < 256;
    AppendByteSpelling(tokens[id],
                       is_byte ? std::string(1, static_cast<char>(id)) : " w" + std::to_string(id));
  }
  tokens.back() = "<|end|>";
  std::vector<std::int32_t> types(shape.vocab, 1);
  types.back() = 3;
  writer->AddString("tokenizer.ggml.model", "gpt2");
  writer->AddString("tokenizer.ggml.pre", "gpt-2");
  writer->AddStrings("tokenizer.ggml.tokens", tokens);
  writer->AddArray("tokenizer.ggml.token_type", GgufType::kInt32, types);
  writer->AddStrings("tokenizer.ggml.merges", {});
  writer->AddUint("tokenizer.ggml.eos_token_id", shape.vocab - 1);
  writer->AddString("tokenizer.chat_template",
                    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] "
                    "+ '\\n' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}");
}

std::string BuildHeader(const Shape& shape, const TensorList& list) {
  GgufWriter writer;
  writer.alignment = kPageBytes;
  AddShape(shape, &writer);
  AddVocabulary(shape, &writer);
  for (const Tensor& t : list.tensors()) {
    std::vector<std::uint64_t> dims = {t.cols};
    if (t.fill == Fill::kBlocks) dims.push_back(t.rows);
    writer.tensors.push_back({t.name, GgufNumber(t.type), dims, "", t.offset, true});
  }
  return writer.Build();
}

// Random blocks of one type in a memory file of whole blocks and whole pages, which can be shown
// at any page.
class Pattern {
 public:
  Pattern(DType type, double deviation, std::uint64_t seed) : type_(type) {
    unit_bytes_ = std::lcm(kPageBytes, std::uint64_t{DTypeBlockBytes(type)});
    bytes_ = kPatternBytes / unit_bytes_ * unit_bytes_;
    file_ = memfd_create("kvrm-dummy-weights", MFD_CLOEXEC);
    void* memory = MAP_FAILED;
    if (file_ >= 0 && ftruncate(file_, static_cast<off_t>(bytes_)) == 0)
      memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0);
    if (memory == MAP_FAILED) {
      const int error = errno;
      if (file_ >= 0) close(file_);
      throw StartError("--dummy: cannot reserve " + std::to_string(bytes_) +
                       " bytes for random blocks: " + std::strerror(error));
    }
    data_ = {static_cast<std::byte*>(memory), bytes_};
    Rng rng(seed, DTypeName(type));
    FillRandomBlocks(type, deviation, &rng, data_);
  }
  ~Pattern() {
    CHECK(munmap(data_.data(), data_.size()) == 0);
    CHECK(close(file_) == 0);
  }
  Pattern(const Pattern&) = delete;
  Pattern& operator=(const Pattern&) = delete;

  // Shows the blocks at `target`, on a page, from a random one on. False when the system refuses.
  bool Show(std::span<std::byte> target, Rng* rng) const {
    std::uint64_t from = rng->Below(bytes_ / unit_bytes_) * unit_bytes_;
    for (std::uint64_t at = 0; at < target.size(); from = 0) {
      const std::uint64_t bytes = std::min(bytes_ - from, target.size() - at);
      if (mmap(&target[at], bytes, PROT_READ, MAP_SHARED | MAP_FIXED, file_,
               static_cast<off_t>(from)) == MAP_FAILED) {
        return false;
      }
      at += bytes;
    }
    return true;
  }

  // Copies blocks, each stretch from a random one on: rows of a later stretch begin elsewhere in a
  // row of an earlier one.
  void Copy(std::span<std::byte> target, Rng* rng) const {
    const std::uint64_t block_bytes = DTypeBlockBytes(type_);
    for (std::uint64_t at = 0; at < target.size();) {
      const std::uint64_t from = rng->Below(bytes_ / block_bytes / 2) * block_bytes;
      const std::uint64_t bytes = std::min(bytes_ - from, target.size() - at);
      std::memcpy(&target[at], &data_[from], bytes);
      at += bytes;
    }
  }

  std::uint64_t bytes() const { return bytes_; }

 private:
  const DType type_;
  std::uint64_t unit_bytes_ = 0;
  std::uint64_t bytes_ = 0;
  int file_ = -1;
  std::span<std::byte> data_;
};

// Addresses for the image; memory only where something is written. It is a file, so that its pages
// can leave the process and come back, as those of a model's file do.
class Image {
 public:
  explicit Image(std::uint64_t bytes) {
    file_ = memfd_create("kvrm-dummy-image", MFD_CLOEXEC);
    void* memory = MAP_FAILED;
    if (file_ >= 0 && ftruncate(file_, static_cast<off_t>(bytes)) == 0)
      memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0);
    if (memory == MAP_FAILED) {
      const int error = errno;
      if (file_ >= 0) close(file_);
      throw StartError("--dummy: cannot reserve " + std::to_string(bytes) +
                       " bytes of addresses: " + std::strerror(error));
    }
    bytes_ = {static_cast<std::byte*>(memory), bytes};
  }
  ~Image() {
    CHECK(munmap(bytes_.data(), bytes_.size()) == 0);
    CHECK(close(file_) == 0);
  }
  Image(const Image&) = delete;
  Image& operator=(const Image&) = delete;
  std::span<std::byte> bytes() const { return bytes_; }

 private:
  int file_ = -1;
  std::span<std::byte> bytes_;
};

void FillVector(const Tensor& tensor, std::span<std::byte> target, Rng* rng) {
  for (std::uint64_t i = 0; i < tensor.cols; ++i) {
    const float value = tensor.fill == Fill::kConstant
                            ? tensor.constant
                            : static_cast<float>(rng->Uniform() - 0.5) * 0.2f;
    std::memcpy(&target[i * sizeof(value)], &value, sizeof(value));
  }
}

std::pair<std::string_view, std::string_view> SplitSpec(std::string_view spec) {
  const std::size_t colon = spec.find(':');
  if (colon == std::string_view::npos) return {spec, "q8_0"};
  return {spec.substr(0, colon), spec.substr(colon + 1)};
}

}  // namespace

struct DummyModel::Parts {
  std::optional<Image> image;
  std::optional<Model> model;  // views into the image
  std::uint64_t committed_bytes = 0;
};

DummyModel::DummyModel(std::string_view spec, const DummyOptions& options)
    : parts_(std::make_unique<Parts>()) {
  const auto [shape_name, type_name] = SplitSpec(spec);
  Shape shape = FindEntry(kShapes, shape_name, "shape");
  if (options.context > kMaxContextTokens) {
    throw StartError("--dummy-context must be 1 to " + std::to_string(kMaxContextTokens) +
                     " tokens, not " + std::to_string(options.context));
  }
  if (options.context != 0) shape.context = options.context;
  const Mix& mix = FindEntry(kMixes, type_name, "type");
  const TensorList list(shape, mix);
  const std::uint64_t available =
      options.available_bytes != 0 ? options.available_bytes : AvailableMemoryBytes();
  if (list.data_bytes() > available) {
    throw StartError("--dummy " + std::string(spec) + " needs " +
                     std::to_string(list.data_bytes()) + " bytes for its weights, and " +
                     std::to_string(available) + " bytes of memory are available");
  }
  const std::string header = BuildHeader(shape, list);
  parts_->image.emplace(header.size() + list.data_bytes());
  const std::span<std::byte> bytes = parts_->image->bytes();
  std::memcpy(bytes.data(), header.data(), header.size());
  parts_->committed_bytes = header.size();

  const double deviation = 1 / std::sqrt(static_cast<double>(shape.hidden));
  std::map<std::pair<DType, bool>, Pattern> patterns;  // by type and Tensor::small
  Rng rng(options.seed, "dummy model");
  for (const Tensor& tensor : list.tensors()) {
    const std::span<std::byte> target =
        bytes.subspan(header.size() + tensor.offset, tensor.bytes());
    const bool shared = tensor.fill == Fill::kBlocks && !tensor.distinct && !options.distinct;
    if (!shared) parts_->committed_bytes += target.size();
    if (tensor.fill != Fill::kBlocks) {
      FillVector(tensor, target, &rng);
      continue;
    }
    const auto [it, added] =
        patterns.try_emplace({tensor.type, tensor.small}, tensor.type,
                             tensor.small ? deviation / 10 : deviation, options.seed);
    if (added) parts_->committed_bytes += it->second.bytes();
    if (!shared) {
      it->second.Copy(target, &rng);
    } else if (!it->second.Show(target, &rng)) {
      throw StartError("--dummy: cannot show " + std::to_string(target.size()) +
                       " bytes of random blocks: " + std::strerror(errno));
    }
  }
  parts_->model =
      OrThrow(Model::FromGgufBytes(bytes, "dummy " + std::string(spec), /*is_mapped=*/true));
}

DummyModel::~DummyModel() = default;

const Model& DummyModel::model() const {
  return *parts_->model;
}

std::uint64_t DummyModel::committed_bytes() const {
  return parts_->committed_bytes;
}

std::vector<std::string> DummyModel::Shapes() {
  std::vector<std::string> names;
  for (const Shape& shape : kShapes)
    names.emplace_back(shape.name);
  return names;
}

std::vector<std::string> DummyModel::Types() {
  std::vector<std::string> names;
  for (const Mix& mix : kMixes)
    names.emplace_back(mix.name);
  return names;
}

}  // namespace kvrm
