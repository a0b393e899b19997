// SPDX-License-Identifier: Apache-2.0
// kvrm inspect: what is in a model file, and whether it would be served.
//
// Works on anything that parses, also where the model is refused: then the reason stands in the
// report. Text from the file is escaped before it reaches a terminal.
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/string.hpp>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/utf8.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "model/gguf.h"
#include "model/quoted.h"
#include "model/safetensors.h"
#include "model/weights.h"
#include "step/layout.h"

namespace kvrm {
namespace {

struct InspectFlags {
  std::string path;
  bool json = false;
  bool tensors = false;
  std::uint32_t context = 0;  // 0: the model's own, at most kDefaultContext
  std::uint32_t rows = 8;
};

// What people try first on a machine at home; a longer context is asked for by name.
constexpr std::uint32_t kDefaultContext = 8192;
constexpr std::size_t kMaxValueChars = 72;
constexpr std::size_t kMaxArrayElements = 4;

struct TensorRow {
  std::string name;
  std::string type;
  std::string shape;
  std::uint64_t elements = 0;
  std::uint64_t bytes = 0;
};

struct MetadataRow {
  std::string key;
  std::string type;
  std::string value;
};

struct Report {
  std::string path;
  std::string format;
  std::uint64_t file_bytes = 0;
  std::string architecture;           // as the file says
  std::optional<ModelConfig> config;  // when it can be read
  std::string refusal;                // why the model would not be served; empty: it would
  std::vector<TensorRow> tensors;
  std::vector<MetadataRow> metadata;
  std::string tokenizer;  // kind and size, or why there is none
  bool has_chat_template = false;
};

struct TypeSum {
  std::uint64_t tensors = 0;
  std::uint64_t elements = 0;
  std::uint64_t bytes = 0;
};

struct Memory {
  std::uint64_t kv_token_bytes = 0;
  std::uint32_t context = 0;
  std::uint64_t weight_bytes = 0;
  std::uint64_t pool_bytes = 0;
};

// Text of a file for people: what is no valid UTF-8, and control characters, which could steer a
// terminal, are escaped.
std::string Printable(std::string_view text) {
  std::string out;
  std::size_t chars = 0;
  for (std::size_t i = 0; i < text.size(); ++chars) {
    if (chars == kMaxValueChars) return out + "...";
    const Utf8Char c = DecodeUtf8(text, i);
    const bool control = c.code_point < 0x20 || (c.code_point >= 0x7f && c.code_point < 0xa0);
    if (c.state == Utf8State::kValid && !control) {
      out += text.substr(i, c.size);
    } else {
      for (const char byte : text.substr(i, c.size)) {
        char escape[8];
        std::snprintf(escape, sizeof(escape), "\\x%02x", static_cast<unsigned char>(byte));
        out += byte == '\n' ? "\\n" : escape;
      }
    }
    i += c.size;
  }
  return out;
}

std::string HumanBytes(std::uint64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024.0 && unit + 1 < std::size(kUnits)) {
    value /= 1024.0;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof(text), unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
  return text;
}

std::string HumanCount(std::uint64_t count) {
  static constexpr std::pair<double, const char*> kUnits[] = {
      {1e9, " G"}, {1e6, " M"}, {1e3, " k"}};
  for (const auto& [size, name] : kUnits) {
    if (static_cast<double>(count) >= size) {
      char text[32];
      std::snprintf(text, sizeof(text), "%.2f%s", static_cast<double>(count) / size, name);
      return text;
    }
  }
  return std::to_string(count);
}

// The first elements of an array, or the value itself.
std::string ValueText(const GgufFile& file, const std::string& key, const GgufValue& value) {
  if (value.type != GgufType::kArray) {
    if (const auto text = file.GetString(key)) return Printable(*text);
    if (const auto number = file.GetUint(key)) return std::to_string(*number);
    if (const auto number = file.GetFloat(key)) {
      return value.type == GgufType::kFloat32 ? NumberText(static_cast<float>(*number))
                                              : NumberText(*number);
    }
    if (const auto flag = file.GetBool(key)) return *flag ? "true" : "false";
    return "(negative)";
  }
  std::vector<std::string> parts;
  const auto take = [&parts](const auto& values, const auto& text_of) {
    for (std::size_t i = 0; i < std::min(values.size(), kMaxArrayElements); ++i)
      parts.push_back(text_of(values[i]));
  };
  if (const auto strings = file.GetStrings(key)) {
    take(*strings, [](std::string_view s) { return "\"" + Printable(s) + "\""; });
  } else if (const auto floats = file.GetFloats(key)) {
    take(*floats, [](float f) { return NumberText(f); });
  } else if (const auto integers = file.GetInts(key)) {
    take(*integers, [](std::int64_t i) { return std::to_string(i); });
  }
  std::string out = "[";
  for (const std::string& part : parts)
    out += (out.size() > 1 ? ", " : "") + part;
  return out + (value.count > parts.size() ? ", ...] (" + std::to_string(value.count) + ")" : "]");
}

std::string ShapeText(std::span<const std::uint64_t> dims) {
  std::string out;
  for (const std::uint64_t dim : dims)
    out += (out.empty() ? "" : " x ") + std::to_string(dim);
  return out.empty() ? "scalar" : out;
}

void DescribeGguf(const GgufFile& file, Report* report) {
  report->format = "GGUF version " + std::to_string(file.version());
  report->file_bytes = file.file_bytes();
  if (const auto name = file.GetString("general.architecture")) {
    report->architecture = Printable(*name);
  }
  for (const GgufTensor& tensor : file.tensors()) {
    // Outermost first, as everywhere else.
    std::vector<std::uint64_t> dims(tensor.dims.begin(), tensor.dims.begin() + tensor.num_dims);
    std::reverse(dims.begin(), dims.end());
    std::uint64_t elements = 1;
    for (const std::uint64_t dim : dims)
      elements *= dim;  // Its bytes are in the file, so this cannot overflow.
    report->tensors.push_back({Printable(tensor.name), DTypeName(tensor.type), ShapeText(dims),
                               elements, tensor.data.size()});
  }
  for (const auto& [key, value] : file.metadata()) {
    std::string type = GgufTypeName(value.type);
    if (value.type == GgufType::kArray) type = std::string(GgufTypeName(value.element_type)) + "[]";
    report->metadata.push_back({Printable(key), type, ValueText(file, std::string(key), value)});
  }
  if (const auto config = ConfigFromGguf(file)) report->config = *config;
  const Result<Tokenizer> tokenizer = Tokenizer::FromGguf(file);
  report->tokenizer = tokenizer ? std::string(tokenizer->kind()) + ", " +
                                      std::to_string(tokenizer->num_tokens()) + " tokens"
                                : "none: " + tokenizer.error().message;
  report->has_chat_template = file.Has("tokenizer.chat_template");
}

void DescribeFolder(const std::string& path, Report* report) {
  const SafetensorsFolder folder = OrThrow(SafetensorsFolder::Open(path));
  report->format = "Hugging Face folder, " + std::to_string(folder.files().size()) +
                   (folder.files().size() == 1 ? " file" : " files") + " of safetensors";
  for (const SafetensorsFile& file : folder.files()) {
    report->file_bytes += file.file_bytes();
    for (const SafetensorsTensor& tensor : file.tensors()) {
      const std::span<const std::uint64_t> shape(tensor.shape.data(), tensor.num_dims);
      std::uint64_t elements = 1;
      for (const std::uint64_t dim : shape)
        elements *= dim;
      report->tensors.push_back({Printable(tensor.name), Printable(tensor.dtype), ShapeText(shape),
                                 elements, tensor.data.size()});
    }
    if (!file.metadata_json().empty()) {
      report->metadata.push_back({"__metadata__", "object", Printable(file.metadata_json())});
    }
  }
}

// What only a loaded model tells, or why it does not load.
void DescribeModel(const Result<Model>& model, Report* report) {
  if (!model) {
    report->refusal = model.error().message;
    return;
  }
  report->config = model->config();
  report->architecture = ArchitectureName(model->config().architecture);
  report->tokenizer = std::string(model->tokenizer().kind()) + ", " +
                      std::to_string(model->tokenizer().num_tokens()) + " tokens";
  report->has_chat_template = !model->chat_template().empty();
}

bool IsFolder(const std::string& path) {
  struct stat status = {};
  return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

Report Inspect(const std::string& path) {
  Report report;
  report.path = path.empty() ? "the demo model" : path;
  if (path.empty()) {
    const GgufFile file = OrThrow(GgufFile::Parse(DemoModelBytes(), report.path));
    DescribeGguf(file, &report);
    DescribeModel(Model::LoadDemo(), &report);
  } else if (IsFolder(path)) {
    const Result<Model> model = Model::Load(path);
    // A folder without weights has nothing to show but this error.
    if (!model && model.error().code == ErrorCode::kNotFound)
      throw StartError(model.error().message);
    DescribeFolder(path, &report);
    DescribeModel(model, &report);
  } else {
    const Result<Model> model = Model::Load(path);
    const Result<GgufFile> file = GgufFile::Open(path);
    // Model::Load knows better what a file is that is no GGUF.
    if (!file) throw StartError(model ? file.error().message : model.error().message);
    DescribeGguf(*file, &report);
    DescribeModel(model, &report);
  }
  return report;
}

std::map<std::string, TypeSum> SumByType(const Report& report) {
  std::map<std::string, TypeSum> sums;
  for (const TensorRow& tensor : report.tensors) {
    TypeSum& sum = sums[tensor.type];
    ++sum.tensors;
    sum.elements += tensor.elements;
    sum.bytes += tensor.bytes;
  }
  return sums;
}

Memory MemoryFor(const Report& report, const InspectFlags& flags) {
  const ModelConfig& config = *report.config;
  const KvLayout layout = {.num_layers = config.num_layers,
                           .num_kv_heads = config.num_kv_heads,
                           .head_dim = config.head_dim};
  Memory memory;
  memory.kv_token_bytes = layout.token_bytes();
  memory.context =
      flags.context != 0 ? flags.context : std::min(config.max_context, kDefaultContext);
  for (const TensorRow& tensor : report.tensors)
    memory.weight_bytes += tensor.bytes;
  const std::uint64_t blocks =
      (std::uint64_t{memory.context} + layout.block_tokens - 1) / layout.block_tokens;
  memory.pool_bytes = blocks * flags.rows * layout.block_bytes();
  return memory;
}

// Two columns, or bold headings where people watch.
class Printer {
 public:
  explicit Printer(bool terminal) : terminal_(terminal) {}
  void Heading(const std::string& text) const {
    std::printf(terminal_ ? "\n\x1b[1m%s\x1b[0m\n" : "\n%s\n", text.c_str());
  }
  void Line(const std::string& what, const std::string& value) const {
    std::printf("  %-22s %s\n", what.c_str(), value.c_str());
  }

 private:
  bool terminal_;
};

void PrintConfig(const Printer& printer, const ModelConfig& config) {
  printer.Line("layers", std::to_string(config.num_layers));
  printer.Line("hidden, feed-forward",
               std::to_string(config.hidden_dim) + ", " + std::to_string(config.ffn_dim));
  printer.Line("heads", std::to_string(config.num_heads) + " over " +
                            std::to_string(config.num_kv_heads) + " key-value heads of " +
                            std::to_string(config.head_dim));
  if (config.vocab_size != 0) {
    printer.Line("vocabulary", std::to_string(config.vocab_size) + " rows" +
                                   (config.tied_output ? ", shared with the output" : ""));
  }
  printer.Line(
      "context",
      std::to_string(config.max_context) + " tokens" +
          (config.sliding_window != 0 ? ", window " + std::to_string(config.sliding_window) : ""));
  printer.Line("rope", "base " + NumberText(config.rope_base) + ", " +
                           std::to_string(config.rope_dim) + " dimensions" +
                           (config.rope_factors.empty() ? "" : ", scaled frequencies"));
  if (config.qkv_bias) printer.Line("biases", "of q, k and v");
  if (config.qk_norm) printer.Line("norms", "of q and k, per head");
}

void PrintMemory(const Printer& printer, const Memory& memory, const InspectFlags& flags) {
  printer.Heading("Memory");
  printer.Line("KV cache (F16)", HumanBytes(memory.kv_token_bytes) + " a token");
  printer.Line("weights", HumanBytes(memory.weight_bytes));
  printer.Line("KV pool", HumanBytes(memory.pool_bytes) + " for " + std::to_string(flags.rows) +
                              " rows of " + std::to_string(memory.context) + " tokens");
  printer.Line("serving", HumanBytes(memory.weight_bytes + memory.pool_bytes));
}

void PrintText(const Report& report, const InspectFlags& flags) {
  const Printer printer(IsTerminal(1));
  std::printf("%s\n", Printable(report.path).c_str());
  printer.Line("format", report.format + ", " + HumanBytes(report.file_bytes));
  printer.Line("served", report.refusal.empty() ? "yes" : "no: " + report.refusal);
  printer.Heading("Model");
  if (report.config && !report.config->name.empty()) {
    printer.Line("name", Printable(report.config->name));
  }
  printer.Line("architecture", report.architecture.empty() ? "unknown" : report.architecture);
  if (report.config) PrintConfig(printer, *report.config);
  printer.Line("tokenizer", report.tokenizer.empty() ? "unknown" : report.tokenizer);
  printer.Line("chat template", report.has_chat_template ? "yes" : "no");

  printer.Heading("Weights");
  TypeSum all;
  for (const auto& [type, sum] : SumByType(report)) {
    printer.Line(type, std::to_string(sum.tensors) + " tensors, " + HumanCount(sum.elements) +
                           " parameters, " + HumanBytes(sum.bytes));
    all = {all.tensors + sum.tensors, all.elements + sum.elements, all.bytes + sum.bytes};
  }
  printer.Line("all", std::to_string(all.tensors) + " tensors, " + HumanCount(all.elements) +
                          " parameters, " + HumanBytes(all.bytes));
  if (report.config && !report.tensors.empty()) {
    PrintMemory(printer, MemoryFor(report, flags), flags);
  }
  if (!report.metadata.empty()) printer.Heading("Metadata");
  for (const MetadataRow& row : report.metadata)
    std::printf("  %-42s %-10s %s\n", row.key.c_str(), row.type.c_str(), row.value.c_str());
  if (!flags.tensors) return;
  printer.Heading("Tensors");
  for (const TensorRow& row : report.tensors)
    std::printf("  %-42s %-6s %-18s %12llu\n", row.name.c_str(), row.type.c_str(),
                row.shape.c_str(), static_cast<unsigned long long>(row.bytes));
}

json::object ConfigJson(const ModelConfig& config) {
  return {{"name", Printable(config.name)},    {"layers", config.num_layers},
          {"hidden_dim", config.hidden_dim},   {"ffn_dim", config.ffn_dim},
          {"heads", config.num_heads},         {"kv_heads", config.num_kv_heads},
          {"head_dim", config.head_dim},       {"vocab_size", config.vocab_size},
          {"max_context", config.max_context}, {"sliding_window", config.sliding_window},
          {"rms_eps", config.rms_eps},         {"rope_dim", config.rope_dim},
          {"rope_base", config.rope_base},     {"rope_scaled", !config.rope_factors.empty()},
          {"tied_output", config.tied_output}, {"qkv_bias", config.qkv_bias},
          {"qk_norm", config.qk_norm}};
}

void PrintJson(const Report& report, const InspectFlags& flags) {
  json::object out = {
      {"path", Printable(report.path)},           {"format", report.format},
      {"file_bytes", report.file_bytes},          {"architecture", report.architecture},
      {"served", report.refusal.empty()},         {"tokenizer", report.tokenizer},
      {"chat_template", report.has_chat_template}};
  if (!report.refusal.empty()) out["refusal"] = report.refusal;
  if (report.config) out["config"] = ConfigJson(*report.config);
  json::object types;
  std::uint64_t parameters = 0;
  for (const auto& [type, sum] : SumByType(report)) {
    types[type] = {{"tensors", sum.tensors}, {"parameters", sum.elements}, {"bytes", sum.bytes}};
    parameters += sum.elements;
  }
  out["parameters"] = parameters;
  out["types"] = std::move(types);
  if (report.config && !report.tensors.empty()) {
    const Memory memory = MemoryFor(report, flags);
    out["memory"] = {{"kv_token_bytes", memory.kv_token_bytes},
                     {"context", memory.context},
                     {"rows", flags.rows},
                     {"weight_bytes", memory.weight_bytes},
                     {"kv_pool_bytes", memory.pool_bytes},
                     {"serving_bytes", memory.weight_bytes + memory.pool_bytes}};
  }
  json::object metadata;
  for (const MetadataRow& row : report.metadata)
    metadata[row.key] = row.value;
  out["metadata"] = std::move(metadata);
  if (flags.tensors) {
    json::array tensors;
    for (const TensorRow& row : report.tensors)
      tensors.push_back(
          {{"name", row.name}, {"type", row.type}, {"shape", row.shape}, {"bytes", row.bytes}});
    out["tensors"] = std::move(tensors);
  }
  std::printf("%s\n", json::serialize(out).c_str());
}

}  // namespace

void AddInspectCommand(CLI::App& app) {
  auto flags = std::make_shared<InspectFlags>();
  CLI::App* command = app.add_subcommand("inspect", "show what is in a model file or folder");
  command->add_option("model", flags->path,
                      "GGUF file or Hugging Face folder; none: the demo model");
  command->add_flag("--json", flags->json, "print JSON");
  command->add_flag("--tensors", flags->tensors, "list every tensor");
  command->add_option("--context", flags->context, "tokens a row, for the memory figures")
      ->check(CLI::Range(1u, 16u << 20));
  command->add_option("--rows", flags->rows, "sequences at once, for the memory figures")
      ->check(CLI::Range(1u, 65'536u));
  command->callback([flags] {
    const Report report = Inspect(flags->path);
    flags->json ? PrintJson(report, *flags) : PrintText(report, *flags);
  });
}

}  // namespace kvrm
