// SPDX-License-Identifier: Apache-2.0
// libFuzzer target: any bytes as a safetensors file. What is accepted covers its data exactly.
#include <cstdint>
#include <cstring>

#include "base/check.h"
#include "model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using kvrm::SafetensorsFile;
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  const kvrm::Result<SafetensorsFile> file = SafetensorsFile::Parse(bytes, "fuzz");
  if (!file) {
    CHECK(!file.error().message.empty());
    CHECK(file.error().message.find('\n') == std::string::npos);
    return 0;
  }
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, data, sizeof(header_bytes));
  std::uint64_t covered = 0;
  for (const kvrm::SafetensorsTensor& tensor : file->tensors()) {
    CHECK(file->Find(tensor.name) == &tensor);
    covered += tensor.data.size();
  }
  CHECK(sizeof(header_bytes) + header_bytes + covered == size);
  return 0;
}
