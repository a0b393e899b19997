// SPDX-License-Identifier: Apache-2.0
// GgufFile: a read-only, fully validated view of a GGUF v2 or v3 file (little-endian).
//
// Open maps the file and validates everything (F1-F3, F5, F9: every length, count and offset is
// checked against the bytes present before anything is sized by it, limits below). Keys, names,
// strings and arrays are views into the map. What is unknown is refused by name.
//
// Threading: immutable, safe to read from many threads. Memory: the tables take at most four times
// the bytes of the header they describe; nothing grows with the weights.
//
// Limits: strings 16 MiB, keys 65,535 bytes, 65,536 key-value pairs, 65,536 tensors, 4 dimensions,
// array elements 4 Mi, alignment a power of two in [8, 65536].
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/file.h"
#include "base/result.h"
#include "step/dtype.h"

namespace kvrm {

// Value types as numbered in the file.
enum class GgufType : std::uint32_t {
  kUint8 = 0,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64,
};

struct GgufValue {
  GgufType type = GgufType::kUint8;
  GgufType element_type = GgufType::kUint8;  // Arrays only; nested arrays are refused.
  std::uint64_t count = 0;                   // Arrays only.
  std::span<const std::byte> bytes;          // The value as stored (for arrays: all elements).
};

struct GgufTensor {
  std::string_view name;
  DType type = DType::kF32;
  // Sizes as stored: dims[0] is the innermost (columns); absent dimensions are 1.
  std::array<std::uint64_t, 4> dims = {1, 1, 1, 1};
  std::uint32_t num_dims = 0;
  std::span<const std::byte> data;
};

class GgufReader;

class GgufFile {
 public:
  static Result<GgufFile> Open(const std::string& path);
  // Over memory that outlives the object (the embedded demo model, tests, fuzzing).
  // `name` stands in error messages.
  static Result<GgufFile> Parse(std::span<const std::byte> bytes, const std::string& name);

  std::uint32_t version() const { return version_; }
  const std::string& name() const { return name_; }
  std::uint64_t file_bytes() const { return bytes_.size(); }
  bool is_mapped() const { return file_.has_value() || is_mapped_; }
  // Parsed memory is a mapping of a file as well.
  void SetMapped() { is_mapped_ = true; }

  // Metadata in file order, for inspection.
  const std::vector<std::pair<std::string_view, GgufValue>>& metadata() const { return metadata_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }

  bool Has(std::string_view key) const;
  // Typed look-ups: kNotFound when absent; kInvalidArgument naming key and type when of another
  // kind. Integers of any width and sign are accepted where the value fits.
  Result<std::uint64_t> GetUint(std::string_view key) const;
  Result<double> GetFloat(std::string_view key) const;
  Result<bool> GetBool(std::string_view key) const;
  Result<std::string_view> GetString(std::string_view key) const;
  Result<std::vector<std::string_view>> GetStrings(std::string_view key) const;
  Result<std::vector<float>> GetFloats(std::string_view key) const;
  Result<std::vector<std::int64_t>> GetInts(std::string_view key) const;

  const GgufTensor* FindTensor(std::string_view name) const;

 private:
  GgufFile() = default;

  Status ReadMetadata(GgufReader& reader, std::uint64_t count);
  Status ReadTensors(GgufReader& reader, std::uint64_t count);
  Status PlaceTensors(std::uint64_t header_end, std::span<const std::uint64_t> offsets);
  Result<std::uint64_t> Alignment() const;
  const GgufValue* Find(std::string_view key) const;
  Result<const GgufValue*> FindArray(std::string_view key) const;
  Error WrongType(std::string_view key, const GgufValue& value, const char* expected) const;

  std::optional<MappedFile> file_;
  bool is_mapped_ = false;
  std::span<const std::byte> bytes_;
  std::string name_;
  std::uint32_t version_ = 0;
  std::vector<std::pair<std::string_view, GgufValue>> metadata_;
  std::vector<GgufTensor> tensors_;
  // Indices into the tables above, sorted by key and by name.
  std::vector<std::uint32_t> metadata_by_key_;
  std::vector<std::uint32_t> tensors_by_name_;
};

// "uint32", "string", "array", ...; "unknown" for a number that is no type.
const char* GgufTypeName(GgufType type);
// The name of any tensor type number ever used by GGUF files, supported here or not; null: none.
const char* GgufTensorTypeName(std::uint32_t type);

}  // namespace kvrm
