// SPDX-License-Identifier: Apache-2.0
#include "model/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <type_traits>

#include "base/checked_math.h"
#include "model/quoted.h"

namespace kvrm {

static_assert(std::endian::native == std::endian::little, "GGUF files are read as little-endian");

namespace {

constexpr std::uint64_t kMaxStringBytes = std::uint64_t{16} << 20;
constexpr std::uint64_t kMaxKeyBytes = 65'535;
constexpr std::uint64_t kMaxPairs = 65'536;
constexpr std::uint64_t kMaxTensors = 65'536;
constexpr std::uint64_t kMaxArrayElements = std::uint64_t{4} << 20;
constexpr std::uint32_t kMaxDims = 4;
constexpr std::uint64_t kDefaultAlignment = 32;
// The least bytes a pair takes: key length, one byte of key, type, a one-byte value.
constexpr std::uint64_t kMinPairBytes = 8 + 1 + 4 + 1;
// Name length, one byte of name, number of dimensions, one dimension, type, offset.
constexpr std::uint64_t kMinTensorBytes = 8 + 1 + 4 + 8 + 4 + 8;

// Bytes of one value of a fixed size; 0 for strings, arrays and numbers that are no type.
std::uint64_t ScalarBytes(GgufType type) {
  switch (type) {
    case GgufType::kUint8:
    case GgufType::kInt8:
    case GgufType::kBool:
      return 1;
    case GgufType::kUint16:
    case GgufType::kInt16:
      return 2;
    case GgufType::kUint32:
    case GgufType::kInt32:
    case GgufType::kFloat32:
      return 4;
    case GgufType::kUint64:
    case GgufType::kInt64:
    case GgufType::kFloat64:
      return 8;
    case GgufType::kString:
    case GgufType::kArray:
      return 0;
  }
  return 0;
}

template <typename T>
T Load(const std::byte* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(T));
  return value;
}

std::optional<DType> DTypeOf(std::uint32_t type) {
  switch (type) {
    case 0:
      return DType::kF32;
    case 1:
      return DType::kF16;
    case 2:
      return DType::kQ4_0;
    case 6:
      return DType::kQ5_0;
    case 8:
      return DType::kQ8_0;
    case 12:
      return DType::kQ4_K;
    case 13:
      return DType::kQ5_K;
    case 14:
      return DType::kQ6_K;
    case 30:
      return DType::kBf16;
    default:
      return std::nullopt;
  }
}

// An integer of any width and sign; nullopt when the type is not an integer's.
std::optional<std::pair<bool, std::uint64_t>> LoadInteger(GgufType type, const std::byte* bytes) {
  const auto with_sign = [](std::int64_t value) {
    return std::pair<bool, std::uint64_t>{value < 0, static_cast<std::uint64_t>(value)};
  };
  switch (type) {
    case GgufType::kUint8:
      return std::pair{false, std::uint64_t{Load<std::uint8_t>(bytes)}};
    case GgufType::kUint16:
      return std::pair{false, std::uint64_t{Load<std::uint16_t>(bytes)}};
    case GgufType::kUint32:
      return std::pair{false, std::uint64_t{Load<std::uint32_t>(bytes)}};
    case GgufType::kUint64:
      return std::pair{false, Load<std::uint64_t>(bytes)};
    case GgufType::kInt8:
      return with_sign(Load<std::int8_t>(bytes));
    case GgufType::kInt16:
      return with_sign(Load<std::int16_t>(bytes));
    case GgufType::kInt32:
      return with_sign(Load<std::int32_t>(bytes));
    case GgufType::kInt64:
      return with_sign(Load<std::int64_t>(bytes));
    default:
      return std::nullopt;
  }
}

}  // namespace

// A cursor over the header. Every read is checked against the bytes that are left; `what` names
// the thing that was cut off.
class GgufReader {
 public:
  GgufReader(std::span<const std::byte> bytes, const std::string& name)
      : bytes_(bytes), name_(name) {}

  std::uint64_t position() const { return position_; }
  std::uint64_t left() const { return bytes_.size() - position_; }

  Error Fail(const std::string& what, ErrorCode code = ErrorCode::kInvalidArgument) const {
    return Error{code, name_ + ": " + what};
  }
  Error CutOff(const std::string& what) const {
    return Fail("the file ends inside " + what + " at byte " + std::to_string(bytes_.size()));
  }

  template <typename T>
  Result<T> Read(const std::string& what) {
    if (left() < sizeof(T)) return CutOff(what);
    const T value = Load<T>(bytes_.data() + position_);
    position_ += sizeof(T);
    return value;
  }

  Result<std::string_view> ReadString(const std::string& what, std::uint64_t max_bytes) {
    Result<std::uint64_t> size = Read<std::uint64_t>(what);
    if (!size) return size.error();
    if (*size > max_bytes) {
      return Fail(what + " has " + std::to_string(*size) + " bytes; the limit is " +
                      std::to_string(max_bytes),
                  ErrorCode::kTooLarge);
    }
    if (*size > left()) return CutOff(what);
    const std::string_view text(reinterpret_cast<const char*>(bytes_.data() + position_), *size);
    position_ += *size;
    return text;
  }

  // The value of one metadata key, of a type just read.
  Result<GgufValue> ReadValue(GgufType type, const std::string& key);

 private:
  Status SkipElements(const GgufValue& value, const std::string& key);

  std::span<const std::byte> bytes_;
  const std::string& name_;
  std::uint64_t position_ = 0;  // <= bytes_.size()
};

Result<GgufValue> GgufReader::ReadValue(GgufType type, const std::string& key) {
  GgufValue value;
  value.type = type;
  value.count = 1;
  value.element_type = type;
  if (type == GgufType::kArray) {
    Result<std::uint32_t> element = Read<std::uint32_t>("an array's element type");
    if (!element) return element.error();
    value.element_type = static_cast<GgufType>(*element);
    if (value.element_type == GgufType::kArray) {
      return Fail("key " + key + " is an array of arrays, which is not supported",
                  ErrorCode::kUnsupported);
    }
    Result<std::uint64_t> count = Read<std::uint64_t>("an array's length");
    if (!count) return count.error();
    if (*count > kMaxArrayElements) {
      return Fail("key " + key + " has " + std::to_string(*count) + " elements; the limit is " +
                      std::to_string(kMaxArrayElements),
                  ErrorCode::kTooLarge);
    }
    value.count = *count;
  }
  if (ScalarBytes(value.element_type) == 0 && value.element_type != GgufType::kString) {
    return Fail("key " + key + " has unknown value type " +
                std::to_string(static_cast<std::uint32_t>(value.element_type)));
  }
  const std::uint64_t begin = position_;
  const Status skipped = SkipElements(value, key);
  if (!skipped) return skipped.error();
  value.bytes = bytes_.subspan(begin, position_ - begin);
  return value;
}

Status GgufReader::SkipElements(const GgufValue& value, const std::string& key) {
  if (value.element_type == GgufType::kString) {
    // Every string takes eight bytes at least: no walk over a count the file cannot hold.
    if (value.count > left() / sizeof(std::uint64_t)) return CutOff("key " + key);
    const std::string what = "a string of key " + key;
    for (std::uint64_t i = 0; i < value.count; ++i) {
      Result<std::string_view> text = ReadString(what, kMaxStringBytes);
      if (!text) return text.error();
    }
    return Done{};
  }
  const std::optional<std::uint64_t> size =
      CheckedMul(value.count, ScalarBytes(value.element_type));
  if (!size || *size > left()) return CutOff("key " + key);
  if (value.element_type == GgufType::kBool) {
    for (const std::byte b : bytes_.subspan(position_, *size)) {
      if (b > std::byte{1}) return Fail("key " + key + " holds a bool that is neither 0 nor 1");
    }
  }
  position_ += *size;
  return Done{};
}

namespace {

// Sorts `order` by `name_of(index)`; tells an index whose name stands twice.
template <typename NameOf>
std::optional<std::uint32_t> SortAndFindTwin(std::size_t count, const NameOf& name_of,
                                             std::vector<std::uint32_t>* order) {
  order->resize(count);
  for (std::uint32_t i = 0; i < count; ++i)
    (*order)[i] = i;
  std::sort(order->begin(), order->end(),
            [&](std::uint32_t a, std::uint32_t b) { return name_of(a) < name_of(b); });
  for (std::size_t i = 1; i < count; ++i) {
    if (name_of((*order)[i - 1]) == name_of((*order)[i])) return (*order)[i];
  }
  return std::nullopt;
}

Result<std::uint32_t> ReadVersion(GgufReader& reader) {
  Result<std::uint32_t> magic = reader.Read<std::uint32_t>("the magic number");
  if (!magic) return magic.error();
  static constexpr char kOld[][5] = {"lmgg", "fmgg", "tjgg"};
  for (const char* old : kOld) {
    if (std::memcmp(&*magic, old, 4) == 0) {
      return reader.Fail("this is a GGML file of the time before GGUF; convert it again",
                         ErrorCode::kUnsupported);
    }
  }
  if (std::memcmp(&*magic, "GGUF", 4) != 0) {
    return reader.Fail("not a GGUF file (it does not begin with GGUF)");
  }
  Result<std::uint32_t> version = reader.Read<std::uint32_t>("the version");
  if (!version) return version.error();
  if (*version == 2 || *version == 3) return *version;
  const std::uint32_t swapped = __builtin_bswap32(*version);
  if (swapped >= 1 && swapped <= 0xffff) {
    return reader.Fail("this is a big-endian GGUF file, which is not supported",
                       ErrorCode::kUnsupported);
  }
  return reader.Fail(
      "GGUF version " + std::to_string(*version) + " is not supported; supported: 2 and 3",
      ErrorCode::kUnsupported);
}

// A count that the bytes left can hold, each entry taking `min_bytes` at least.
Result<std::uint64_t> CheckCount(const GgufReader& reader, std::uint64_t count,
                                 std::uint64_t max_count, std::uint64_t min_bytes,
                                 const std::string& what) {
  if (count > max_count) {
    return reader.Fail(
        std::to_string(count) + " " + what + "; the limit is " + std::to_string(max_count),
        ErrorCode::kTooLarge);
  }
  if (count > reader.left() / min_bytes) {
    return reader.Fail("the file is too short for the " + std::to_string(count) + " " + what +
                       " it announces");
  }
  return count;
}

// Dimensions and type; the data's place is settled once the header's end is known.
Result<GgufTensor> ReadTensorHead(GgufReader& reader) {
  Result<std::string_view> name = reader.ReadString("a tensor's name", kMaxKeyBytes);
  if (!name) return name.error();
  if (name->empty()) return reader.Fail("a tensor's name is empty");
  GgufTensor tensor;
  tensor.name = *name;
  const std::string who = "tensor " + Quoted(*name);
  Result<std::uint32_t> num_dims = reader.Read<std::uint32_t>("a tensor's dimensions");
  if (!num_dims) return num_dims.error();
  if (*num_dims < 1 || *num_dims > kMaxDims) {
    return reader.Fail(who + " has " + std::to_string(*num_dims) +
                       " dimensions; the limits are 1 and 4");
  }
  tensor.num_dims = *num_dims;
  for (std::uint32_t i = 0; i < tensor.num_dims; ++i) {
    Result<std::uint64_t> dim = reader.Read<std::uint64_t>("a tensor's dimensions");
    if (!dim) return dim.error();
    if (*dim == 0) return reader.Fail(who + " has a dimension of 0");
    tensor.dims[i] = *dim;
  }
  Result<std::uint32_t> type = reader.Read<std::uint32_t>("a tensor's type");
  if (!type) return type.error();
  const std::optional<DType> dtype = DTypeOf(*type);
  if (!dtype) {
    const char* type_name = GgufTensorTypeName(*type);
    return reader.Fail(
        who + " has type " +
            (type_name != nullptr ? std::string(type_name) : "number " + std::to_string(*type)) +
            ", which is not supported; supported: F32, F16, BF16, Q8_0, Q4_0, "
            "Q5_0, Q4_K, Q5_K, Q6_K",
        ErrorCode::kUnsupported);
  }
  tensor.type = *dtype;
  return tensor;
}

// Bytes of a tensor's data as stored; nullopt when they do not fit in 64 bits.
std::optional<std::uint64_t> TensorBytes(const GgufTensor& tensor) {
  std::optional<std::uint64_t> blocks = tensor.dims[0] / DTypeBlockElements(tensor.type);
  for (std::uint32_t i = 1; i < tensor.num_dims && blocks; ++i)
    blocks = CheckedMul(*blocks, tensor.dims[i]);
  return blocks ? CheckedMul(*blocks, DTypeBlockBytes(tensor.type)) : std::nullopt;
}

}  // namespace

Result<GgufFile> GgufFile::Open(const std::string& path) {
  Result<MappedFile> file = MappedFile::Open(path);
  if (!file) return file.error();
  Result<GgufFile> parsed = Parse(file->bytes(), path);
  if (parsed) parsed->file_ = std::move(file).value();
  return parsed;
}

Result<GgufFile> GgufFile::Parse(std::span<const std::byte> bytes, const std::string& name) {
  GgufFile file;
  file.bytes_ = bytes;
  file.name_ = name;
  GgufReader reader(bytes, file.name_);
  Result<std::uint32_t> version = ReadVersion(reader);
  if (!version) return version.error();
  file.version_ = *version;
  Result<std::uint64_t> num_tensors = reader.Read<std::uint64_t>("the number of tensors");
  if (!num_tensors) return num_tensors.error();
  Result<std::uint64_t> num_pairs = reader.Read<std::uint64_t>("the number of metadata keys");
  if (!num_pairs) return num_pairs.error();
  Status done = file.ReadMetadata(reader, *num_pairs);
  if (done) done = file.ReadTensors(reader, *num_tensors);
  if (!done) return done.error();
  return file;
}

Status GgufFile::ReadMetadata(GgufReader& reader, std::uint64_t count) {
  Result<std::uint64_t> checked =
      CheckCount(reader, count, kMaxPairs, kMinPairBytes, "metadata keys");
  if (!checked) return checked.error();
  metadata_.reserve(*checked);
  for (std::uint64_t i = 0; i < *checked; ++i) {
    Result<std::string_view> key = reader.ReadString("a metadata key", kMaxKeyBytes);
    if (!key) return key.error();
    if (key->empty()) return reader.Fail("a metadata key is empty");
    Result<std::uint32_t> type = reader.Read<std::uint32_t>("a metadata key's type");
    if (!type) return type.error();
    Result<GgufValue> value = reader.ReadValue(static_cast<GgufType>(*type), Quoted(*key));
    if (!value) return value.error();
    metadata_.emplace_back(*key, *value);
  }
  const std::optional<std::uint32_t> twin = SortAndFindTwin(
      metadata_.size(), [&](std::uint32_t i) { return metadata_[i].first; }, &metadata_by_key_);
  if (twin) return reader.Fail("key " + Quoted(metadata_[*twin].first) + " stands twice");
  return Done{};
}

Status GgufFile::ReadTensors(GgufReader& reader, std::uint64_t count) {
  Result<std::uint64_t> checked =
      CheckCount(reader, count, kMaxTensors, kMinTensorBytes, "tensors");
  if (!checked) return checked.error();
  tensors_.reserve(*checked);
  std::vector<std::uint64_t> offsets;
  offsets.reserve(*checked);
  for (std::uint64_t i = 0; i < *checked; ++i) {
    Result<GgufTensor> tensor = ReadTensorHead(reader);
    if (!tensor) return tensor.error();
    Result<std::uint64_t> offset = reader.Read<std::uint64_t>("a tensor's offset");
    if (!offset) return offset.error();
    tensors_.push_back(*tensor);
    offsets.push_back(*offset);
  }
  const std::optional<std::uint32_t> twin = SortAndFindTwin(
      tensors_.size(), [&](std::uint32_t i) { return tensors_[i].name; }, &tensors_by_name_);
  if (twin) return reader.Fail("tensor " + Quoted(tensors_[*twin].name) + " stands twice");
  return PlaceTensors(reader.position(), offsets);
}

Status GgufFile::PlaceTensors(std::uint64_t header_end, std::span<const std::uint64_t> offsets) {
  const auto fail = [this](const std::string& what) {
    return Error{ErrorCode::kInvalidArgument, name_ + ": " + what};
  };
  Result<std::uint64_t> alignment = Alignment();
  if (!alignment) return alignment.error();
  const std::optional<std::uint64_t> data_begin = CheckedAlignUp(header_end, *alignment);
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    GgufTensor& tensor = tensors_[i];
    const std::string who = "tensor " + Quoted(tensor.name);
    if (tensor.dims[0] % DTypeBlockElements(tensor.type) != 0) {
      return fail(who + " has rows of " + std::to_string(tensor.dims[0]) + " elements; " +
                  DTypeName(tensor.type) + " needs a multiple of " +
                  std::to_string(DTypeBlockElements(tensor.type)));
    }
    if (offsets[i] % *alignment != 0) {
      return fail(who + " begins at offset " + std::to_string(offsets[i]) +
                  ", which is no multiple of the alignment " + std::to_string(*alignment));
    }
    const std::optional<std::uint64_t> size = TensorBytes(tensor);
    const std::optional<std::uint64_t> begin =
        data_begin ? CheckedAdd(*data_begin, offsets[i]) : std::nullopt;
    const std::optional<std::uint64_t> end =
        size && begin ? CheckedAdd(*begin, *size) : std::nullopt;
    if (!end || *end > bytes_.size()) {
      return fail(who + " lies beyond the end of the file (" + std::to_string(bytes_.size()) +
                  " bytes); the file is cut off or damaged");
    }
    tensor.data = bytes_.subspan(*begin, *size);
  }
  std::vector<std::uint32_t> by_place(tensors_by_name_);
  std::sort(by_place.begin(), by_place.end(), [this](std::uint32_t a, std::uint32_t b) {
    return tensors_[a].data.data() < tensors_[b].data.data();
  });
  for (std::size_t i = 1; i < by_place.size(); ++i) {
    const GgufTensor& before = tensors_[by_place[i - 1]];
    const GgufTensor& after = tensors_[by_place[i]];
    if (before.data.data() + before.data.size() > after.data.data()) {
      return fail("tensors " + Quoted(before.name) + " and " + Quoted(after.name) + " overlap");
    }
  }
  return Done{};
}

Result<std::uint64_t> GgufFile::Alignment() const {
  const GgufValue* value = Find("general.alignment");
  if (value == nullptr) return kDefaultAlignment;
  if (value->type != GgufType::kUint32) return WrongType("general.alignment", *value, "uint32");
  const std::uint64_t alignment = Load<std::uint32_t>(value->bytes.data());
  if (!std::has_single_bit(alignment) || alignment < 8 || alignment > 65'536) {
    return Error{ErrorCode::kInvalidArgument, name_ + ": general.alignment is " +
                                                  std::to_string(alignment) +
                                                  "; it must be a power of two from 8 to 65536"};
  }
  return alignment;
}

const GgufValue* GgufFile::Find(std::string_view key) const {
  const auto found = std::lower_bound(
      metadata_by_key_.begin(), metadata_by_key_.end(), key,
      [this](std::uint32_t i, std::string_view k) { return metadata_[i].first < k; });
  if (found == metadata_by_key_.end() || metadata_[*found].first != key) return nullptr;
  return &metadata_[*found].second;
}

const GgufTensor* GgufFile::FindTensor(std::string_view name) const {
  const auto found = std::lower_bound(
      tensors_by_name_.begin(), tensors_by_name_.end(), name,
      [this](std::uint32_t i, std::string_view n) { return tensors_[i].name < n; });
  if (found == tensors_by_name_.end() || tensors_[*found].name != name) return nullptr;
  return &tensors_[*found];
}

bool GgufFile::Has(std::string_view key) const {
  return Find(key) != nullptr;
}

Error GgufFile::WrongType(std::string_view key, const GgufValue& value,
                          const char* expected) const {
  std::string type = GgufTypeName(value.type);
  if (value.type == GgufType::kArray)
    type += std::string(" of ") + GgufTypeName(value.element_type);
  return Error{ErrorCode::kInvalidArgument,
               name_ + ": key " + Quoted(key) + " is of type " + type + "; expected " + expected};
}

namespace {

Error Absent(const std::string& name, std::string_view key) {
  return Error{ErrorCode::kNotFound, name + ": key " + Quoted(key) + " is missing"};
}

}  // namespace

Result<std::uint64_t> GgufFile::GetUint(std::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return Absent(name_, key);
  const auto integer = LoadInteger(value->type, value->bytes.data());
  if (!integer) return WrongType(key, *value, "an integer");
  if (integer->first) {
    return Error{ErrorCode::kInvalidArgument, name_ + ": key " + Quoted(key) + " is negative"};
  }
  return integer->second;
}

Result<double> GgufFile::GetFloat(std::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return Absent(name_, key);
  if (value->type == GgufType::kFloat32)
    return static_cast<double>(Load<float>(value->bytes.data()));
  if (value->type == GgufType::kFloat64) return Load<double>(value->bytes.data());
  return WrongType(key, *value, "a float");
}

Result<bool> GgufFile::GetBool(std::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return Absent(name_, key);
  if (value->type != GgufType::kBool) return WrongType(key, *value, "bool");
  return value->bytes[0] == std::byte{1};
}

Result<std::string_view> GgufFile::GetString(std::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return Absent(name_, key);
  if (value->type != GgufType::kString) return WrongType(key, *value, "string");
  const std::span<const std::byte> text = value->bytes.subspan(sizeof(std::uint64_t));
  return std::string_view(reinterpret_cast<const char*>(text.data()), text.size());
}

Result<const GgufValue*> GgufFile::FindArray(std::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return Absent(name_, key);
  if (value->type != GgufType::kArray) return WrongType(key, *value, "an array");
  return value;
}

Result<std::vector<std::string_view>> GgufFile::GetStrings(std::string_view key) const {
  Result<const GgufValue*> value = FindArray(key);
  if (!value) return value.error();
  if ((*value)->element_type != GgufType::kString) {
    return WrongType(key, **value, "an array of strings");
  }
  std::vector<std::string_view> strings;
  strings.reserve((*value)->count);
  const std::byte* at = (*value)->bytes.data();
  for (std::uint64_t i = 0; i < (*value)->count; ++i) {
    const std::uint64_t size = Load<std::uint64_t>(at);
    at += sizeof(size);
    strings.emplace_back(reinterpret_cast<const char*>(at), size);
    at += size;
  }
  return strings;
}

Result<std::vector<float>> GgufFile::GetFloats(std::string_view key) const {
  Result<const GgufValue*> value = FindArray(key);
  if (!value) return value.error();
  const GgufValue& array = **value;
  const bool wide = array.element_type == GgufType::kFloat64;
  if (!wide && array.element_type != GgufType::kFloat32) {
    return WrongType(key, array, "an array of floats");
  }
  std::vector<float> floats;
  floats.reserve(array.count);
  for (std::uint64_t i = 0; i < array.count; ++i) {
    const std::byte* at = array.bytes.data() + i * (wide ? sizeof(double) : sizeof(float));
    floats.push_back(wide ? static_cast<float>(Load<double>(at)) : Load<float>(at));
  }
  return floats;
}

Result<std::vector<std::int64_t>> GgufFile::GetInts(std::string_view key) const {
  Result<const GgufValue*> value = FindArray(key);
  if (!value) return value.error();
  const GgufValue& array = **value;
  std::vector<std::int64_t> integers;
  if (array.element_type == GgufType::kFloat32 || array.element_type == GgufType::kFloat64 ||
      array.element_type == GgufType::kBool || array.element_type == GgufType::kString) {
    return WrongType(key, array, "an array of integers");
  }
  integers.reserve(array.count);
  const std::uint64_t stride = ScalarBytes(array.element_type);
  for (std::uint64_t i = 0; i < array.count; ++i) {
    const auto integer = LoadInteger(array.element_type, array.bytes.data() + i * stride);
    const auto signed_value = static_cast<std::int64_t>(integer->second);
    if (!integer->first && signed_value < 0) {
      return Error{ErrorCode::kInvalidArgument,
                   name_ + ": key " + Quoted(key) + " holds an integer above 2^63 - 1"};
    }
    integers.push_back(signed_value);
  }
  return integers;
}

const char* GgufTypeName(GgufType type) {
  static constexpr const char* kNames[] = {"uint8",  "int8",    "uint16", "int16",  "uint32",
                                           "int32",  "float32", "bool",   "string", "array",
                                           "uint64", "int64",   "float64"};
  const auto number = static_cast<std::uint32_t>(type);
  return number < std::size(kNames) ? kNames[number] : "unknown";
}

const char* GgufTensorTypeName(std::uint32_t type) {
  static constexpr const char* kNames[] = {
      "F32",   "F16",        "Q4_0",       "Q4_1",       "Q4_2",     "Q4_3",     "Q5_0",
      "Q5_1",  "Q8_0",       "Q8_1",       "Q2_K",       "Q3_K",     "Q4_K",     "Q5_K",
      "Q6_K",  "Q8_K",       "IQ2_XXS",    "IQ2_XS",     "IQ3_XXS",  "IQ1_S",    "IQ4_NL",
      "IQ3_S", "IQ2_S",      "IQ4_XS",     "I8",         "I16",      "I32",      "I64",
      "F64",   "IQ1_M",      "BF16",       "Q4_0_4_4",   "Q4_0_4_8", "Q4_0_8_8", "TQ1_0",
      "TQ2_0", "IQ4_NL_4_4", "IQ4_NL_4_8", "IQ4_NL_8_8", "MXFP4",    "NVFP4",    "Q1_0",
      "Q2_0"};
  return type < std::size(kNames) ? kNames[type] : nullptr;
}

}  // namespace kvrm
