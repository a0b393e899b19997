// SPDX-License-Identifier: Apache-2.0
#include "model/safetensors.h"

#include <sys/stat.h>

#include <algorithm>
#include <boost/json/object.hpp>
#include <boost/json/string.hpp>
#include <charconv>
#include <cstring>

#include "base/checked_math.h"
#include "base/json.h"
#include "model/quoted.h"

namespace kvrm {
namespace {

constexpr std::uint64_t kMaxHeaderBytes = std::uint64_t{16} << 20;
constexpr std::size_t kMaxTensors = 65'536;
constexpr std::size_t kMaxFiles = 1'024;
constexpr std::uint32_t kMaxDims = 4;
// The shortest entry there can be: "a":{"dtype":"X","shape":[],"data_offsets":[0,0]}
constexpr std::size_t kMinTensorText = 49;

// Bits of one element; nullopt: a type this program has never heard of.
std::optional<std::uint64_t> DtypeBits(std::string_view dtype) {
  static constexpr std::pair<std::string_view, std::uint64_t> kBits[] = {
      {"F32", 32}, {"F16", 16},    {"BF16", 16},   {"F64", 64}, {"I64", 64},    {"I32", 32},
      {"I16", 16}, {"I8", 8},      {"U64", 64},    {"U32", 32}, {"U16", 16},    {"U8", 8},
      {"BOOL", 8}, {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"C64", 64}, {"F8_E8M0", 8}, {"F4", 4}};
  for (const auto& [name, bits] : kBits) {
    if (name == dtype) return bits;
  }
  return std::nullopt;
}

// One pass over a header of the only shape allowed:
//   {"NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...,
//    "__metadata__": {"KEY": "VALUE", ...}}
class HeaderParser {
 public:
  HeaderParser(std::string_view text, std::span<const std::byte> data, const std::string& name)
      : text_(text), data_(data), name_(name) {}

  Status Parse(std::vector<SafetensorsTensor>* tensors, std::string_view* metadata);

 private:
  Status ParseTensor(std::string_view tensor_name, SafetensorsTensor* tensor);
  Status ParseField(std::string_view key, SafetensorsTensor* tensor);
  Status ParseShape(SafetensorsTensor* tensor);
  Status ParseOffsets(SafetensorsTensor* tensor);
  Status SkipMetadata();
  Status CheckSize(const SafetensorsTensor& tensor) const;
  // What stands between the quotes, escapes untouched.
  Result<std::string_view> String();
  Result<std::uint64_t> Number();
  // After '{' or '[' and after each entry: true when another entry follows.
  Result<bool> More(char close, bool first);
  bool Take(char c);
  Status Expect(char c);
  void SkipSpace();
  Error Fail(const std::string& what) const {
    return Error{ErrorCode::kInvalidArgument,
                 name_ + ": " + what + " at byte " + std::to_string(position_ + 8)};
  }

  std::string_view text_;
  std::span<const std::byte> data_;
  const std::string& name_;
  std::size_t position_ = 0;
};

void HeaderParser::SkipSpace() {
  while (position_ < text_.size() && (text_[position_] == ' ' || text_[position_] == '\n' ||
                                      text_[position_] == '\r' || text_[position_] == '\t')) {
    ++position_;
  }
}

bool HeaderParser::Take(char c) {
  SkipSpace();
  if (position_ >= text_.size() || text_[position_] != c) return false;
  ++position_;
  return true;
}

Status HeaderParser::Expect(char c) {
  if (Take(c)) return Done{};
  return Fail(std::string("the header has no '") + c + "' where it must");
}

Result<bool> HeaderParser::More(char close, bool first) {
  if (Take(close)) return false;
  if (!first) {
    if (const Status comma = Expect(','); !comma) return comma.error();
  }
  return true;
}

Result<std::string_view> HeaderParser::String() {
  if (const Status quote = Expect('"'); !quote) return quote.error();
  const std::size_t begin = position_;
  while (position_ < text_.size() && text_[position_] != '"') {
    if (static_cast<unsigned char>(text_[position_]) < 0x20) {
      return Fail("a control character in a string of the header");
    }
    if (text_[position_] == '\\') {
      ++position_;
      static constexpr std::string_view kEscapes = "\"\\/bfnrtu";
      if (position_ >= text_.size() || kEscapes.find(text_[position_]) == std::string_view::npos) {
        return Fail("an invalid escape in a string of the header");
      }
    }
    ++position_;
  }
  if (position_ >= text_.size()) return Fail("a string of the header does not end");
  return text_.substr(begin, position_++ - begin);
}

Result<std::uint64_t> HeaderParser::Number() {
  SkipSpace();
  std::uint64_t value = 0;
  const char* begin = text_.data() + position_;
  const auto [end, code] = std::from_chars(begin, text_.data() + text_.size(), value);
  if (code != std::errc() || (*begin == '0' && end - begin > 1)) {
    return Fail("the header has no whole number below 2^64 where it must");
  }
  position_ += static_cast<std::size_t>(end - begin);
  return value;
}

Status HeaderParser::Parse(std::vector<SafetensorsTensor>* tensors, std::string_view* metadata) {
  tensors->reserve(std::min(text_.size() / kMinTensorText + 1, kMaxTensors));
  Status status = Expect('{');
  bool has_metadata = false;
  for (bool first = true; status; first = false) {
    Result<bool> more = More('}', first);
    if (!more) return more.error();
    if (!*more) break;
    Result<std::string_view> key = String();
    if (!key) return key.error();
    status = Expect(':');
    if (!status) break;
    if (*key == "__metadata__") {
      if (std::exchange(has_metadata, true)) return Fail("__metadata__ stands twice");
      SkipSpace();
      const std::size_t begin = position_;
      status = SkipMetadata();
      *metadata = text_.substr(begin, position_ - begin);
      continue;
    }
    if (key->empty() || key->find('\\') != std::string_view::npos) {
      return Fail("tensor name " + Quoted(*key) + " is empty or has escapes");
    }
    if (tensors->size() == kMaxTensors) {
      return Fail("more than " + std::to_string(kMaxTensors) + " tensors");
    }
    SafetensorsTensor tensor;
    status = ParseTensor(*key, &tensor);
    if (status) tensors->push_back(tensor);
  }
  if (!status) return status;
  SkipSpace();
  if (position_ != text_.size()) return Fail("the header goes on after its end");
  return Done{};
}

Status HeaderParser::ParseTensor(std::string_view tensor_name, SafetensorsTensor* tensor) {
  tensor->name = tensor_name;
  tensor->num_dims = kMaxDims + 1;  // Not seen yet.
  Status status = Expect('{');
  for (bool first = true; status; first = false) {
    Result<bool> more = More('}', first);
    if (!more) return more.error();
    if (!*more) break;
    Result<std::string_view> key = String();
    if (!key) return key.error();
    status = Expect(':');
    if (status) status = ParseField(*key, tensor);
  }
  if (!status) return status;
  if (tensor->dtype.empty() || tensor->num_dims > kMaxDims || tensor->data.data() == nullptr) {
    return Fail("tensor " + Quoted(tensor_name) + " lacks dtype, shape or data_offsets");
  }
  return CheckSize(*tensor);
}

Status HeaderParser::ParseField(std::string_view key, SafetensorsTensor* tensor) {
  const std::string who = "tensor " + Quoted(tensor->name);
  if (key == "dtype" && tensor->dtype.empty()) {
    Result<std::string_view> dtype = String();
    if (!dtype) return dtype.error();
    if (dtype->empty()) return Fail(who + " has an empty dtype");
    tensor->dtype = *dtype;
    return Done{};
  }
  if (key == "shape" && tensor->num_dims > kMaxDims) return ParseShape(tensor);
  if (key == "data_offsets" && tensor->data.data() == nullptr) return ParseOffsets(tensor);
  return Fail(who + " has " + Quoted(key) + " twice or against the format");
}

Status HeaderParser::ParseShape(SafetensorsTensor* tensor) {
  const std::string who = "tensor " + Quoted(tensor->name);
  tensor->num_dims = 0;
  Status status = Expect('[');
  for (bool first = true; status; first = false) {
    Result<bool> more = More(']', first);
    if (!more) return more.error();
    if (!*more) break;
    Result<std::uint64_t> dim = Number();
    if (!dim) return dim.error();
    if (tensor->num_dims == kMaxDims) return Fail(who + " has more than 4 dimensions");
    tensor->shape[tensor->num_dims++] = *dim;
  }
  return status;
}

Status HeaderParser::ParseOffsets(SafetensorsTensor* tensor) {
  const std::string who = "tensor " + Quoted(tensor->name);
  std::uint64_t offsets[2] = {};
  Status status = Expect('[');
  for (int i = 0; i < 2 && status; ++i) {
    Result<std::uint64_t> offset = Number();
    if (!offset) return offset.error();
    offsets[i] = *offset;
    status = Expect(i == 0 ? ',' : ']');
  }
  if (!status) return status;
  if (offsets[0] > offsets[1] || offsets[1] > data_.size()) {
    return Fail(who + " lies at [" + std::to_string(offsets[0]) + ", " +
                std::to_string(offsets[1]) + "), but there are " + std::to_string(data_.size()) +
                " bytes of data; the file is cut off or damaged");
  }
  tensor->data = data_.subspan(offsets[0], offsets[1] - offsets[0]);
  return Done{};
}

Status HeaderParser::CheckSize(const SafetensorsTensor& tensor) const {
  const std::optional<std::uint64_t> bits = DtypeBits(tensor.dtype);
  if (!bits) return Done{};  // Refused by name where such a tensor is needed.
  std::optional<std::uint64_t> size = bits;
  for (std::uint32_t i = 0; i < tensor.num_dims && size; ++i)
    size = CheckedMul(*size, tensor.shape[i]);
  if (!size || *size % 8 != 0 || *size / 8 != tensor.data.size()) {
    return Fail("tensor " + Quoted(tensor.name) + " has " + std::to_string(tensor.data.size()) +
                " bytes, which is not what its shape and dtype " + Quoted(tensor.dtype) + " take");
  }
  return Done{};
}

Status HeaderParser::SkipMetadata() {
  Status status = Expect('{');
  for (bool first = true; status; first = false) {
    Result<bool> more = More('}', first);
    if (!more) return more.error();
    if (!*more) break;
    Result<std::string_view> key = String();
    if (!key) return key.error();
    status = Expect(':');
    if (!status) break;
    Result<std::string_view> value = String();
    if (!value) return value.error();
  }
  return status;
}

bool IsFile(const std::string& path) {
  struct stat status = {};
  return ::stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode);
}

}  // namespace

Result<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  Result<MappedFile> file = MappedFile::Open(path);
  if (!file) return file.error();
  Result<SafetensorsFile> parsed = Parse(file->bytes(), path);
  if (parsed) parsed->file_ = std::move(file).value();
  return parsed;
}

Result<SafetensorsFile> SafetensorsFile::Parse(std::span<const std::byte> bytes,
                                               const std::string& name) {
  const auto refuse = [&name](ErrorCode code, const std::string& what) {
    return Error{code, name + ": " + what};
  };
  std::uint64_t header_bytes = 0;
  if (bytes.size() < sizeof(header_bytes)) {
    return refuse(ErrorCode::kInvalidArgument, "not a safetensors file (shorter than 8 bytes)");
  }
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  if (header_bytes > kMaxHeaderBytes) {
    return refuse(ErrorCode::kTooLarge,
                  "the header has " + std::to_string(header_bytes) + " bytes; the limit is " +
                      std::to_string(kMaxHeaderBytes) + " (or this is no safetensors file)");
  }
  const std::span<const std::byte> rest = bytes.subspan(sizeof(header_bytes));
  if (header_bytes > rest.size()) {
    return refuse(ErrorCode::kInvalidArgument, "the file ends inside its header");
  }
  const std::string_view header(reinterpret_cast<const char*>(rest.data()), header_bytes);
  if (header.empty() || header.front() != '{') {
    return refuse(ErrorCode::kInvalidArgument,
                  "not a safetensors file (the header does not begin with '{')");
  }
  SafetensorsFile file;
  file.bytes_ = bytes;
  file.name_ = name;
  // Empty data still has a place: the parser tells "not seen" by a null pointer.
  const std::span<const std::byte> data(rest.data() + header_bytes, rest.size() - header_bytes);
  HeaderParser parser(header, data, name);
  if (const Status parsed = parser.Parse(&file.tensors_, &file.metadata_json_); !parsed) {
    return parsed.error();
  }
  if (const Status cover = file.CheckCover(data.size()); !cover) return cover.error();
  std::sort(file.tensors_.begin(), file.tensors_.end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  for (std::size_t i = 1; i < file.tensors_.size(); ++i) {
    if (file.tensors_[i - 1].name == file.tensors_[i].name) {
      return refuse(ErrorCode::kInvalidArgument,
                    "tensor " + Quoted(file.tensors_[i].name) + " stands twice");
    }
  }
  return file;
}

Status SafetensorsFile::CheckCover(std::uint64_t data_bytes) const {
  std::vector<std::uint32_t> order(tensors_.size());
  for (std::uint32_t i = 0; i < order.size(); ++i)
    order[i] = i;
  std::sort(order.begin(), order.end(), [this](std::uint32_t a, std::uint32_t b) {
    const std::span<const std::byte> x = tensors_[a].data;
    const std::span<const std::byte> y = tensors_[b].data;
    return x.data() != y.data() ? x.data() < y.data() : x.size() < y.size();
  });
  const std::byte* expected = bytes_.data() + bytes_.size() - data_bytes;
  for (const std::uint32_t i : order) {
    if (tensors_[i].data.data() != expected) {
      return Error{ErrorCode::kInvalidArgument,
                   name_ + ": tensor " + Quoted(tensors_[i].name) +
                       (tensors_[i].data.data() < expected ? " overlaps the one before it"
                                                           : " leaves a gap before it")};
    }
    expected += tensors_[i].data.size();
  }
  if (expected != bytes_.data() + bytes_.size()) {
    return Error{ErrorCode::kInvalidArgument,
                 name_ + ": the tensors do not cover the data to the end of the file"};
  }
  return Done{};
}

const SafetensorsTensor* SafetensorsFile::Find(std::string_view name) const {
  const auto found =
      std::lower_bound(tensors_.begin(), tensors_.end(), name,
                       [](const SafetensorsTensor& t, std::string_view n) { return t.name < n; });
  return found == tensors_.end() || found->name != name ? nullptr : &*found;
}

Result<std::vector<std::string>> SafetensorsIndexFiles(std::string_view index_json,
                                                       const std::string& name) {
  const auto refuse = [&name](const std::string& what) {
    return Error{ErrorCode::kInvalidArgument, name + ": " + what};
  };
  Result<json::value> parsed =
      ParseJson(index_json, {.max_bytes = std::size_t{8} << 20, .max_depth = 8});
  if (!parsed) return Error{parsed.error().code, name + ": " + parsed.error().message};
  const json::object* object = parsed->if_object();
  const json::value* map_value = object == nullptr ? nullptr : object->if_contains("weight_map");
  const json::object* map = map_value == nullptr ? nullptr : map_value->if_object();
  if (map == nullptr || map->empty()) return refuse("weight_map is missing or empty");
  std::vector<std::string> files;
  for (const auto& entry : *map) {
    const json::string* file = entry.value().if_string();
    if (file == nullptr) return refuse("weight_map holds something that is no file name");
    const std::string_view text(file->data(), file->size());
    if (!text.ends_with(".safetensors") || text.find('/') != std::string_view::npos ||
        text.find('\0') != std::string_view::npos || text.size() > 255) {
      return refuse("weight_map names " + Quoted(text) +
                    ", which is no *.safetensors file of the same folder");
    }
    files.emplace_back(text);
  }
  std::sort(files.begin(), files.end());
  files.erase(std::unique(files.begin(), files.end()), files.end());
  if (files.size() > kMaxFiles) {
    return refuse("weight_map names " + std::to_string(files.size()) + " files; the limit is " +
                  std::to_string(kMaxFiles));
  }
  return files;
}

Result<SafetensorsFolder> SafetensorsFolder::Open(const std::string& folder) {
  std::vector<std::string> names = {"model.safetensors"};
  const std::string index_path = folder + "/model.safetensors.index.json";
  if (IsFile(index_path)) {
    Result<std::string> index = ReadFile(index_path, std::uint64_t{8} << 20);
    if (!index) return index.error();
    Result<std::vector<std::string>> indexed = SafetensorsIndexFiles(*index, index_path);
    if (!indexed) return indexed.error();
    names = std::move(indexed).value();
  } else if (!IsFile(folder + "/model.safetensors")) {
    return Error{ErrorCode::kNotFound,
                 folder +
                     ": neither model.safetensors nor model.safetensors.index.json is here; "
                     "pickled weights (*.bin, *.pth) are not supported"};
  }
  SafetensorsFolder out;
  std::vector<std::string_view> all;
  for (const std::string& name : names) {
    Result<SafetensorsFile> file = SafetensorsFile::Open(folder + "/" + name);
    if (!file) return file.error();
    out.files_.push_back(std::move(file).value());
    for (const SafetensorsTensor& tensor : out.files_.back().tensors())
      all.push_back(tensor.name);
  }
  if (all.size() > kMaxTensors) {
    return Error{ErrorCode::kTooLarge, folder + ": " + std::to_string(all.size()) +
                                           " tensors; the limit is " + std::to_string(kMaxTensors)};
  }
  std::sort(all.begin(), all.end());
  const auto twin = std::adjacent_find(all.begin(), all.end());
  if (twin != all.end()) {
    return Error{ErrorCode::kInvalidArgument,
                 folder + ": tensor " + Quoted(*twin) + " stands in two files"};
  }
  return out;
}

}  // namespace kvrm
