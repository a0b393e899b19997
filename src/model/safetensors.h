// SPDX-License-Identifier: Apache-2.0
// SafetensorsFile and SafetensorsFolder: read-only, fully validated views of safetensors weights.
//
// The header is read by a small parser of its own, not through JSON values: it keeps to the one
// shape such a header may have, sees duplicate names (which a JSON object would hide), never
// recurses, and its tables stay in proportion to the header. Tensors must cover the data exactly:
// in order of their offsets each begins where the one before ends.
//
// Threading: immutable, safe to read from many threads. Memory: at most four times the header, and
// nothing that grows with the weights.
//
// Limits: header 16 MiB, 65,536 tensors in all files together, 4 dimensions, 1,024 files.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/result.h"

namespace kvrm {

struct SafetensorsTensor {
  std::string_view name;
  std::string_view dtype;  // As spelt in the file; of any kind.
  // Outermost first, as stored; absent dimensions are 1.
  std::array<std::uint64_t, 4> shape = {1, 1, 1, 1};
  std::uint32_t num_dims = 0;
  std::span<const std::byte> data;
};

class SafetensorsFile {
 public:
  static Result<SafetensorsFile> Open(const std::string& path);
  // Over memory that outlives the object.
  static Result<SafetensorsFile> Parse(std::span<const std::byte> bytes, const std::string& name);

  const std::string& name() const { return name_; }
  std::uint64_t file_bytes() const { return bytes_.size(); }
  bool is_mapped() const { return file_.has_value(); }
  // In order of their names.
  const std::vector<SafetensorsTensor>& tensors() const { return tensors_; }
  const SafetensorsTensor* Find(std::string_view name) const;
  // The object __metadata__, strings to strings, as JSON text; empty: none.
  std::string_view metadata_json() const { return metadata_json_; }

 private:
  SafetensorsFile() = default;
  Status CheckCover(std::uint64_t data_bytes) const;

  std::optional<MappedFile> file_;
  std::span<const std::byte> bytes_;
  std::string name_;
  std::vector<SafetensorsTensor> tensors_;
  std::string_view metadata_json_;
};

// model.safetensors, or the files that model.safetensors.index.json names.
class SafetensorsFolder {
 public:
  static Result<SafetensorsFolder> Open(const std::string& folder);

  const std::vector<SafetensorsFile>& files() const { return files_; }

 private:
  std::vector<SafetensorsFile> files_;
};

// File names an index may hold: in the same folder, nothing else.
// Checked before any of them is opened.
Result<std::vector<std::string>> SafetensorsIndexFiles(std::string_view index_json,
                                                       const std::string& name);

}  // namespace kvrm
