// SPDX-License-Identifier: Apache-2.0
// GgufWriter: builds small GGUF images for tests, right and wrong ones alike.
//
// Remembers where every length, count, type and offset field of the last image lies, so that a
// test can overwrite each of them in turn.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "model/gguf.h"

namespace kvrm {

class GgufWriter {
 public:
  // A number in the image that says how to read the rest.
  struct Field {
    std::string what;
    std::size_t position = 0;
    std::size_t bytes = 0;
  };
  struct Tensor {
    std::string name;
    std::uint32_t type = 0;  // as numbered in files
    std::vector<std::uint64_t> dims;
    std::string data;
    std::uint64_t offset = 0;  // set by Build unless `fixed_offset`
    bool fixed_offset = false;
  };
  struct Pair {
    std::string key;
    std::uint32_t type = 0;
    std::string value;          // as stored, without the type
    std::vector<Field> fields;  // positions relative to the value
  };

  template <typename T>
  static std::string Raw(T value) {
    static_assert(std::is_trivially_copyable_v<T>);
    std::string out(sizeof(T), '\0');
    std::memcpy(out.data(), &value, sizeof(T));
    return out;
  }
  static std::string RawString(std::string_view text) {
    return Raw<std::uint64_t>(text.size()).append(text);
  }

  void AddRaw(std::string key, GgufType type, std::string value) {
    pairs.push_back({std::move(key), static_cast<std::uint32_t>(type), std::move(value), {}});
  }
  void AddUint(std::string key, std::uint32_t value) {
    AddRaw(std::move(key), GgufType::kUint32, Raw(value));
  }
  void AddFloat(std::string key, float value) {
    AddRaw(std::move(key), GgufType::kFloat32, Raw(value));
  }
  void AddBool(std::string key, bool value) {
    AddRaw(std::move(key), GgufType::kBool, std::string(1, value ? '\1' : '\0'));
  }
  void AddString(std::string key, std::string_view value) {
    AddRaw(std::move(key), GgufType::kString, RawString(value));
    pairs.back().fields = {{"string length", 0, 8}};
  }
  void AddStrings(std::string key, const std::vector<std::string>& values) {
    std::string raw = ArrayHead(GgufType::kString, values.size());
    std::vector<Field> lengths = ArrayFields();
    for (const std::string& value : values) {
      lengths.push_back({"string length", raw.size(), 8});
      raw += RawString(value);
    }
    AddRaw(std::move(key), GgufType::kArray, std::move(raw));
    pairs.back().fields = std::move(lengths);
  }
  template <typename T>
  void AddArray(std::string key, GgufType type, const std::vector<T>& values) {
    std::string raw = ArrayHead(type, values.size());
    for (const T value : values)
      raw += Raw(value);
    AddRaw(std::move(key), GgufType::kArray, std::move(raw));
    pairs.back().fields = ArrayFields();
  }

  Pair* FindPair(std::string_view key) {
    for (Pair& pair : pairs) {
      if (pair.key == key) return &pair;
    }
    return nullptr;
  }
  void Remove(std::string_view key) {
    std::erase_if(pairs, [key](const Pair& pair) { return pair.key == key; });
  }
  Tensor* FindTensor(std::string_view name) {
    for (Tensor& tensor : tensors) {
      if (tensor.name == name) return &tensor;
    }
    return nullptr;
  }

  std::string Build() {
    fields.clear();
    std::string out = "GGUF";
    Append(&out, "version", version);
    Append(&out, "tensor count", static_cast<std::uint64_t>(tensors.size()));
    Append(&out, "key count", static_cast<std::uint64_t>(pairs.size()));
    for (const Pair& pair : pairs) {
      Append(&out, "key length", static_cast<std::uint64_t>(pair.key.size()));
      out += pair.key;
      Append(&out, "value type", pair.type);
      for (const Field& field : pair.fields)
        fields.push_back({field.what, out.size() + field.position, field.bytes});
      out += pair.value;
    }
    std::uint64_t data_bytes = 0;
    for (Tensor& tensor : tensors) {
      if (!tensor.fixed_offset) tensor.offset = data_bytes;
      data_bytes = AlignUp(data_bytes + tensor.data.size());
      AppendHead(&out, tensor);
    }
    out.resize(AlignUp(out.size()), '\0');
    header_bytes = out.size();
    for (const Tensor& tensor : tensors)
      out.append(tensor.data).resize(AlignUp(out.size()), '\0');
    return out;
  }

  std::uint32_t version = 3;
  std::uint64_t alignment = 32;  // of the layout; the key general.alignment is the caller's
  std::vector<Pair> pairs;
  std::vector<Tensor> tensors;
  std::vector<Field> fields;     // of the last Build
  std::size_t header_bytes = 0;  // of the last Build, with padding

 private:
  static std::string ArrayHead(GgufType type, std::size_t count) {
    return Raw(static_cast<std::uint32_t>(type)) + Raw<std::uint64_t>(count);
  }
  static std::vector<Field> ArrayFields() {
    return {{"element type", 0, 4}, {"array length", 4, 8}};
  }
  std::uint64_t AlignUp(std::uint64_t value) const {
    return (value + alignment - 1) / alignment * alignment;
  }
  template <typename T>
  void Append(std::string* out, const char* what, T value) {
    fields.push_back({what, out->size(), sizeof(T)});
    *out += Raw(value);
  }
  void AppendHead(std::string* out, const Tensor& tensor) {
    Append(out, "name length", static_cast<std::uint64_t>(tensor.name.size()));
    *out += tensor.name;
    Append(out, "dimension count", static_cast<std::uint32_t>(tensor.dims.size()));
    for (const std::uint64_t dim : tensor.dims)
      Append(out, "dimension", dim);
    Append(out, "tensor type", tensor.type);
    Append(out, "tensor offset", tensor.offset);
  }
};

inline std::span<const std::byte> AsBytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

}  // namespace kvrm
