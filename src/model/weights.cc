// SPDX-License-Identifier: Apache-2.0
#include "model/weights.h"

#include <algorithm>
#include <boost/json/object.hpp>
#include <boost/json/string.hpp>
#include <cmath>
#include <filesystem>
#include <utility>

#include "base/file.h"
#include "base/json.h"
#include "model/bind_weights.h"
#include "model/gguf.h"
#include "model/quoted.h"
#include "model/safetensors.h"

// The bytes of models/kvrm-demo.gguf (model/demo_model.S).
extern "C" const std::byte kvrm_demo_model_begin[];
extern "C" const std::byte kvrm_demo_model_end[];

namespace kvrm {

struct Model::Parts {
  // The owners of the bytes: one of the two, or neither for an image in memory.
  std::optional<GgufFile> gguf;
  std::optional<SafetensorsFolder> folder;
  ModelConfig config;
  BoundWeights bound;
  std::optional<Tokenizer> tokenizer;
  GenerationDefaults defaults;
  std::string chat_template;
};

namespace {

constexpr std::uint64_t kMaxConfigBytes = std::uint64_t{1} << 20;
constexpr std::uint64_t kMaxTokenizerBytes = std::uint64_t{64} << 20;
constexpr std::uint64_t kMaxTemplateBytes = std::uint64_t{1} << 20;

namespace fs = std::filesystem;

std::vector<StoredTensor> StoredTensors(const GgufFile& file) {
  std::vector<StoredTensor> out;
  out.reserve(file.tensors().size());
  for (const GgufTensor& tensor : file.tensors()) {
    out.push_back({.name = tensor.name,
                   .type_name = DTypeName(tensor.type),
                   .type = tensor.type,
                   .rows = tensor.dims[1],
                   .cols = tensor.dims[0],
                   .is_matrix_or_vector = tensor.dims[2] == 1 && tensor.dims[3] == 1,
                   .is_mapped = file.is_mapped(),
                   .data = tensor.data});
  }
  return out;
}

std::optional<DType> DTypeOf(std::string_view dtype) {
  if (dtype == "F32") return DType::kF32;
  if (dtype == "F16") return DType::kF16;
  if (dtype == "BF16") return DType::kBf16;
  return std::nullopt;
}

std::vector<StoredTensor> StoredTensors(const SafetensorsFolder& folder) {
  std::vector<StoredTensor> out;
  for (const SafetensorsFile& file : folder.files()) {
    for (const SafetensorsTensor& tensor : file.tensors()) {
      const bool vector = tensor.num_dims < 2;
      out.push_back({.name = tensor.name,
                     .type_name = tensor.dtype,
                     .type = DTypeOf(tensor.dtype),
                     .rows = vector ? 1 : tensor.shape[0],
                     .cols = vector ? tensor.shape[0] : tensor.shape[1],
                     .is_matrix_or_vector = tensor.num_dims <= 2,
                     .is_mapped = file.is_mapped(),
                     .data = tensor.data});
    }
  }
  return out;
}

// A default from the file within what a request may ask for; nothing when absent.
struct DefaultLimits {
  double min;
  double max;
};

Status CheckDefault(const std::string& where, double value, DefaultLimits limits) {
  if (value >= limits.min && value <= limits.max) return Done{};  // false for NaN
  return Error{ErrorCode::kInvalidArgument, where + " is " + NumberText(value) +
                                                "; the limits are " + NumberText(limits.min) +
                                                " and " + NumberText(limits.max)};
}

constexpr DefaultLimits kTemperatureLimits = {0.0, 100.0};
constexpr DefaultLimits kTopPLimits = {0.0, 1.0};
// -1 and 0 both mean "all".
constexpr DefaultLimits kTopKLimits = {-1.0, 2147483647.0};

// A number under one of general.sampling.*; GGUF writers use floats and integers.
Result<std::optional<double>> GgufDefault(const GgufFile& file, const std::string& key,
                                          DefaultLimits limits) {
  if (!file.Has(key)) return std::optional<double>();
  Result<double> value = file.GetFloat(key);
  if (!value) {
    Result<std::uint64_t> integer = file.GetUint(key);
    if (!integer) return integer.error();
    value = static_cast<double>(*integer);
  }
  const Status checked = CheckDefault(file.name() + ": " + key, *value, limits);
  if (!checked) return checked.error();
  return std::optional<double>(*value);
}

GenerationDefaults MakeDefaults(std::optional<double> temperature, std::optional<double> top_p,
                                std::optional<double> top_k) {
  GenerationDefaults out;
  if (temperature) out.temperature = static_cast<float>(*temperature);
  if (top_p) out.top_p = static_cast<float>(*top_p);
  if (top_k) out.top_k = static_cast<std::int32_t>(*top_k);
  return out;
}

Result<GenerationDefaults> DefaultsFromGguf(const GgufFile& file) {
  Result<std::optional<double>> temperature =
      GgufDefault(file, "general.sampling.temp", kTemperatureLimits);
  if (!temperature) return temperature.error();
  Result<std::optional<double>> top_p = GgufDefault(file, "general.sampling.top_p", kTopPLimits);
  if (!top_p) return top_p.error();
  Result<std::optional<double>> top_k = GgufDefault(file, "general.sampling.top_k", kTopKLimits);
  if (!top_k) return top_k.error();
  return MakeDefaults(*temperature, *top_p, *top_k);
}

Result<std::optional<double>> JsonDefault(const json::object& object, const std::string& where,
                                          std::string_view key, DefaultLimits limits) {
  const json::value* value = object.if_contains(key);
  if (value == nullptr || value->is_null()) return std::optional<double>();
  const std::string field = where + ": " + std::string(key);
  if (!value->is_number()) {
    return Error{ErrorCode::kInvalidArgument, field + " is not a number"};
  }
  const auto number = value->to_number<double>();
  const Status checked = CheckDefault(field, number, limits);
  if (!checked) return checked.error();
  return std::optional<double>(number);
}

// generation_config.json. do_sample false means the best token always.
Result<GenerationDefaults> DefaultsFromJson(std::string_view text, const std::string& where) {
  Result<json::value> parsed =
      ParseJson(text, {.max_bytes = std::size_t{kMaxConfigBytes}, .max_depth = 32});
  if (!parsed) return Error{parsed.error().code, where + ": " + parsed.error().message};
  const json::object* object = parsed->if_object();
  if (object == nullptr) return Error{ErrorCode::kInvalidArgument, where + ": not a JSON object"};
  Result<std::optional<double>> temperature =
      JsonDefault(*object, where, "temperature", kTemperatureLimits);
  if (!temperature) return temperature.error();
  Result<std::optional<double>> top_p = JsonDefault(*object, where, "top_p", kTopPLimits);
  if (!top_p) return top_p.error();
  Result<std::optional<double>> top_k = JsonDefault(*object, where, "top_k", kTopKLimits);
  if (!top_k) return top_k.error();
  const json::value* sample = object->if_contains("do_sample");
  if (sample != nullptr && sample->is_bool() && !sample->get_bool())
    temperature = std::optional(0.0);
  return MakeDefaults(*temperature, *top_p, *top_k);
}

// The content of a file that need not be there; "" where it is not.
Result<std::string> ReadOptionalFile(const std::string& path, std::uint64_t max_bytes) {
  Result<std::string> content = ReadFile(path, max_bytes);
  if (!content && content.error().code == ErrorCode::kNotFound) return std::string();
  return content;
}

// A template in a file of its own goes before the one in tokenizer_config.json.
Result<std::string> ReadChatTemplate(const std::string& folder) {
  Result<std::string> jinja = ReadOptionalFile(folder + "/chat_template.jinja", kMaxTemplateBytes);
  if (!jinja || !jinja->empty()) return jinja;
  const std::string path = folder + "/chat_template.json";
  Result<std::string> text = ReadOptionalFile(path, kMaxTemplateBytes);
  if (!text || text->empty()) return text;
  Result<json::value> parsed = ParseJson(*text);
  if (!parsed) return Error{parsed.error().code, path + ": " + parsed.error().message};
  const json::object* object = parsed->if_object();
  const json::value* source = object == nullptr ? nullptr : object->if_contains("chat_template");
  if (source == nullptr || !source->is_string()) {
    return Error{ErrorCode::kInvalidArgument, path + ": chat_template is not a string"};
  }
  return std::string(source->get_string().data(), source->get_string().size());
}

// The embedding may have rows to spare, but every token needs one.
Status CheckVocabulary(const std::string& name, const Tokenizer& tokenizer,
                       const ModelConfig& config) {
  if (tokenizer.num_tokens() >= 1 && tokenizer.num_tokens() <= config.vocab_size) return Done{};
  return Error{ErrorCode::kInvalidArgument,
               name + ": the vocabulary has " + std::to_string(tokenizer.num_tokens()) +
                   " tokens, the embedding " + std::to_string(config.vocab_size) + " rows"};
}

// Why a folder without config.json cannot be a model, with a hint where there is one.
Error NoConfig(const std::string& folder) {
  std::string hint;
  std::error_code ignored;
  for (fs::directory_iterator it(folder, ignored), end; !ignored && it != end;
       it.increment(ignored)) {
    if (it->path().extension() == ".gguf") {
      hint = "; it holds GGUF files: name one of them instead";
      break;
    }
  }
  return Error{ErrorCode::kNotFound,
               folder + ": this folder has no config.json, so it is no Hugging Face model" + hint};
}

// What a file that is not GGUF looks like; nullopt: GGUF, or nothing we can name.
std::optional<std::string> OtherKind(std::span<const std::byte> bytes) {
  const std::string_view head(reinterpret_cast<const char*>(bytes.data()),
                              std::min<std::size_t>(bytes.size(), 16));
  if (head.starts_with("GGUF")) return std::nullopt;
  if (head.size() > 8 && head[8] == '{' && head.substr(4, 4) == std::string_view("\0\0\0\0", 4)) {
    return "this is a safetensors file; name its folder instead, with config.json and "
           "tokenizer.json in it";
  }
  if (head.starts_with("PK\3\4") || head.starts_with("\x80\x02")) {
    return "this is a pickled PyTorch file, which is not supported; use GGUF or safetensors";
  }
  if (head.starts_with("{")) {
    return "this is a JSON file; name the model's folder instead";
  }
  if (head.starts_with("version https://")) {
    return "this is a Git LFS pointer, not the file itself; fetch it with git lfs pull";
  }
  return std::nullopt;
}

}  // namespace

Result<Model> Model::Load(const std::string& path) {
  std::error_code code;
  if (fs::is_directory(path, code)) return FromFolder(path);
  {
    Result<MappedFile> file = MappedFile::Open(path);
    if (!file) return file.error();
    if (const std::optional<std::string> other = OtherKind(file->bytes())) {
      return Error{ErrorCode::kUnsupported, path + ": " + *other};
    }
  }
  Result<GgufFile> gguf = GgufFile::Open(path);
  if (!gguf) return gguf.error();
  return FromGgufFile(std::move(gguf).value());
}

Result<Model> Model::LoadDemo() {
  return FromGgufBytes(DemoModelBytes(), "the demo model");
}

std::span<const std::byte> DemoModelBytes() {
  return {kvrm_demo_model_begin, kvrm_demo_model_end};
}

Result<Model> Model::FromGgufBytes(std::span<const std::byte> bytes, const std::string& name,
                                   bool is_mapped) {
  Result<GgufFile> gguf = GgufFile::Parse(bytes, name);
  if (!gguf) return gguf.error();
  if (is_mapped) gguf.value().SetMapped();
  return FromGgufFile(std::move(gguf).value());
}

Result<Model> Model::FromGgufFile(GgufFile gguf) {
  auto parts = std::make_unique<Parts>();
  parts->gguf = std::move(gguf);
  const GgufFile& file = *parts->gguf;
  Result<ModelConfig> config = ConfigFromGguf(file);
  if (!config) return config.error();
  parts->config = std::move(config).value();
  if (parts->config.name.empty()) parts->config.name = fs::path(file.name()).stem().string();
  Result<BoundWeights> bound =
      BindWeights(file.name(), StoredTensors(file), TensorNaming::kGguf, &parts->config);
  if (!bound) return bound.error();
  parts->bound = std::move(bound).value();
  Result<Tokenizer> tokenizer = Tokenizer::FromGguf(file);
  if (!tokenizer) return tokenizer.error();
  parts->tokenizer = std::move(tokenizer).value();
  const Status vocabulary = CheckVocabulary(file.name(), *parts->tokenizer, parts->config);
  if (!vocabulary) return vocabulary.error();
  Result<GenerationDefaults> defaults = DefaultsFromGguf(file);
  if (!defaults) return defaults.error();
  parts->defaults = *defaults;
  parts->chat_template = parts->tokenizer->chat_template();
  return Model(std::move(parts));
}

Result<Model> Model::FromFolder(const std::string& folder) {
  auto parts = std::make_unique<Parts>();
  const std::string config_path = folder + "/config.json";
  Result<std::string> config_text = ReadFile(config_path, kMaxConfigBytes);
  if (!config_text) {
    return config_text.error().code == ErrorCode::kNotFound ? NoConfig(folder)
                                                            : config_text.error();
  }
  Result<ModelConfig> config = ConfigFromJson(*config_text, config_path);
  if (!config) return config.error();
  parts->config = std::move(config).value();
  // The name of the folder, also where the path ends in a slash.
  const fs::path clean = fs::path(folder).lexically_normal();
  parts->config.name = (clean.has_filename() ? clean : clean.parent_path()).filename().string();

  Result<SafetensorsFolder> files = SafetensorsFolder::Open(folder);
  if (!files) return files.error();
  parts->folder = std::move(files).value();
  Result<BoundWeights> bound = BindWeights(folder, StoredTensors(*parts->folder),
                                           TensorNaming::kHuggingFace, &parts->config);
  if (!bound) return bound.error();
  parts->bound = std::move(bound).value();
  if (const Status text = ReadTextParts(folder, parts.get()); !text) return text.error();
  return Model(std::move(parts));
}

Status Model::ReadTextParts(const std::string& folder, Parts* parts) {
  const std::string tokenizer_path = folder + "/tokenizer.json";
  Result<std::string> tokenizer_text = ReadFile(tokenizer_path, kMaxTokenizerBytes);
  if (!tokenizer_text) {
    if (tokenizer_text.error().code != ErrorCode::kNotFound) return tokenizer_text.error();
    return Error{ErrorCode::kNotFound, folder +
                                           ": this folder has no tokenizer.json (a "
                                           "tokenizer.model alone is not supported)"};
  }
  Result<std::string> tokenizer_config =
      ReadOptionalFile(folder + "/tokenizer_config.json", kMaxTokenizerBytes);
  if (!tokenizer_config) return tokenizer_config.error();
  Result<Tokenizer> tokenizer = Tokenizer::FromHuggingFace(*tokenizer_text, *tokenizer_config);
  if (!tokenizer) {
    return Error{tokenizer.error().code, tokenizer_path + ": " + tokenizer.error().message};
  }
  parts->tokenizer = std::move(tokenizer).value();
  const Status vocabulary = CheckVocabulary(folder, *parts->tokenizer, parts->config);
  if (!vocabulary) return vocabulary.error();

  Result<std::string> chat_template = ReadChatTemplate(folder);
  if (!chat_template) return chat_template.error();
  parts->chat_template = std::move(chat_template).value();
  if (parts->chat_template.empty()) parts->chat_template = parts->tokenizer->chat_template();

  const std::string generation_path = folder + "/generation_config.json";
  Result<std::string> generation = ReadOptionalFile(generation_path, kMaxConfigBytes);
  if (!generation) return generation.error();
  if (generation->empty()) return Done{};
  Result<GenerationDefaults> defaults = DefaultsFromJson(*generation, generation_path);
  if (!defaults) return defaults.error();
  parts->defaults = *defaults;
  return Done{};
}

Model::Model(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;
Model::~Model() = default;

const ModelConfig& Model::config() const {
  return parts_->config;
}
const ModelWeights& Model::weights() const {
  return parts_->bound.weights;
}
const Tokenizer& Model::tokenizer() const {
  return *parts_->tokenizer;
}
const GenerationDefaults& Model::generation_defaults() const {
  return parts_->defaults;
}
std::string_view Model::chat_template() const {
  return parts_->chat_template;
}
std::uint64_t Model::weight_bytes() const {
  return parts_->bound.weight_bytes;
}
std::uint64_t Model::num_parameters() const {
  return parts_->bound.num_parameters;
}

}  // namespace kvrm
