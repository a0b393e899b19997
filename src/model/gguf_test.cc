// SPDX-License-Identifier: Apache-2.0
#include "model/gguf.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "model/gguf_writer.h"

namespace kvrm {
namespace {

std::string ErrorOf(const std::string& image) {
  const Result<GgufFile> file = GgufFile::Parse(AsBytes(image), "t.gguf");
  return file ? "" : file.error().message;
}

GgufWriter SmallFile() {
  GgufWriter writer;
  writer.AddString("general.architecture", "llama");
  writer.AddUint("u32", 7);
  writer.AddRaw("i8", GgufType::kInt8, GgufWriter::Raw<std::int8_t>(-3));
  writer.AddRaw("u64", GgufType::kUint64, GgufWriter::Raw<std::uint64_t>(1ull << 63));
  writer.AddFloat("f32", 0.5f);
  writer.AddRaw("f64", GgufType::kFloat64, GgufWriter::Raw(0.25));
  writer.AddBool("yes", true);
  writer.AddStrings("words", {"a", "", "ccc"});
  writer.AddArray<float>("floats", GgufType::kFloat32, {1.0f, -2.0f});
  writer.AddArray<std::int16_t>("shorts", GgufType::kInt16, {-1, 2});
  writer.tensors.push_back({"w", 0, {32, 2}, std::string(256, 'w'), 0, false});
  writer.tensors.push_back({"q", 8, {64}, std::string(68, 'q'), 0, false});
  return writer;
}

TEST(Gguf, ReadsValuesAndTensors) {
  GgufWriter writer = SmallFile();
  for (const std::uint32_t version : {2u, 3u}) {
    writer.version = version;
    const std::string image = writer.Build() + "trailing data is allowed";
    const Result<GgufFile> file = GgufFile::Parse(AsBytes(image), "t.gguf");
    ASSERT_TRUE(file) << file.error().message;
    EXPECT_EQ(file->version(), version);
    EXPECT_EQ(file->metadata().size(), 10u);
    EXPECT_EQ(file->GetString("general.architecture").value(), "llama");
    EXPECT_EQ(file->GetUint("u32").value(), 7u);
    EXPECT_EQ(file->GetUint("u64").value(), 1ull << 63);
    EXPECT_EQ(file->GetFloat("f32").value(), 0.5);
    EXPECT_EQ(file->GetFloat("f64").value(), 0.25);
    EXPECT_TRUE(file->GetBool("yes").value());
    EXPECT_EQ(file->GetStrings("words").value(), (std::vector<std::string_view>{"a", "", "ccc"}));
    EXPECT_EQ(file->GetFloats("floats").value(), (std::vector<float>{1.0f, -2.0f}));
    EXPECT_EQ(file->GetInts("shorts").value(), (std::vector<std::int64_t>{-1, 2}));
    const GgufTensor* w = file->FindTensor("w");
    ASSERT_NE(w, nullptr);
    EXPECT_EQ(w->type, DType::kF32);
    EXPECT_EQ(w->dims, (std::array<std::uint64_t, 4>{32, 2, 1, 1}));
    EXPECT_EQ(w->data.size(), 256u);
    EXPECT_EQ(w->data[0], std::byte{'w'});
    const GgufTensor* q = file->FindTensor("q");
    ASSERT_NE(q, nullptr);
    EXPECT_EQ(q->data.size(), 68u);
    EXPECT_EQ(q->data[67], std::byte{'q'});
    EXPECT_EQ(file->FindTensor("x"), nullptr);
  }
}

TEST(Gguf, LookUpsTellMissingFromMistyped) {
  const std::string image = SmallFile().Build();
  const Result<GgufFile> file = GgufFile::Parse(AsBytes(image), "t.gguf");
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(file->GetUint("none").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(file->GetUint("none").error().message, "t.gguf: key 'none' is missing");
  EXPECT_EQ(file->GetUint("f32").error().message,
            "t.gguf: key 'f32' is of type float32; expected an integer");
  EXPECT_EQ(file->GetUint("i8").error().message, "t.gguf: key 'i8' is negative");
  EXPECT_EQ(file->GetFloat("u32").error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(file->GetBool("u32").error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(file->GetString("words").error().message,
            "t.gguf: key 'words' is of type array of string; expected string");
  EXPECT_EQ(file->GetStrings("floats").error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(file->GetFloats("words").error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(file->GetInts("floats").error().code, ErrorCode::kInvalidArgument);
}

TEST(Gguf, VocabularyOnlyFilesHaveNoTensors) {
  GgufWriter writer = SmallFile();
  writer.tensors.clear();
  const std::string image = writer.Build().substr(0, writer.header_bytes);
  const Result<GgufFile> file = GgufFile::Parse(AsBytes(image), "t.gguf");
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_TRUE(file->tensors().empty());
}

TEST(Gguf, OtherFilesAreNamed) {
  EXPECT_EQ(ErrorOf("GGU"), "t.gguf: the file ends inside the magic number at byte 3");
  EXPECT_EQ(ErrorOf("{\"a\": 1}"), "t.gguf: not a GGUF file (it does not begin with GGUF)");
  EXPECT_NE(ErrorOf("tjgg\1\0\0\0").find("before GGUF"), std::string::npos);
  GgufWriter writer = SmallFile();
  writer.version = 1;
  EXPECT_NE(ErrorOf(writer.Build()).find("GGUF version 1 is not supported"), std::string::npos);
  writer.version = 4;
  EXPECT_NE(ErrorOf(writer.Build()).find("GGUF version 4 is not supported"), std::string::npos);
  writer.version = 3u << 24;
  EXPECT_NE(ErrorOf(writer.Build()).find("big-endian"), std::string::npos);
}

TEST(Gguf, UnsupportedTensorTypesAreNamed) {
  GgufWriter writer = SmallFile();
  writer.tensors[0].type = 11;
  EXPECT_NE(ErrorOf(writer.Build()).find("tensor 'w' has type Q3_K, which is not supported"),
            std::string::npos);
  writer.tensors[0].type = 39;
  EXPECT_NE(ErrorOf(writer.Build()).find("type MXFP4"), std::string::npos);
  writer.tensors[0].type = 1000;
  EXPECT_NE(ErrorOf(writer.Build()).find("type number 1000"), std::string::npos);
}

TEST(Gguf, AlignmentMovesTheData) {
  GgufWriter writer = SmallFile();
  writer.AddUint("general.alignment", 64);
  writer.alignment = 64;
  const std::string image = writer.Build();
  const Result<GgufFile> file = GgufFile::Parse(AsBytes(image), "t.gguf");
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(file->FindTensor("w")->data.data(), AsBytes(image).data() + writer.header_bytes);
  writer.FindPair("general.alignment")->value = GgufWriter::Raw<std::uint32_t>(48);
  EXPECT_NE(ErrorOf(writer.Build()).find("general.alignment is 48"), std::string::npos);
  writer.FindPair("general.alignment")->type = static_cast<std::uint32_t>(GgufType::kInt32);
  EXPECT_NE(ErrorOf(writer.Build()).find("is of type int32; expected uint32"), std::string::npos);
}

TEST(Gguf, TensorsMustNotOverlapNorLeaveTheFile) {
  GgufWriter writer = SmallFile();
  writer.tensors[1].fixed_offset = true;
  writer.tensors[1].offset = 224;
  EXPECT_NE(ErrorOf(writer.Build()).find("tensors 'w' and 'q' overlap"), std::string::npos);
  writer.tensors[1].offset = 225;
  EXPECT_NE(ErrorOf(writer.Build()).find("no multiple of the alignment"), std::string::npos);
  writer.tensors[1].offset = std::numeric_limits<std::uint64_t>::max() - 31;
  EXPECT_NE(ErrorOf(writer.Build()).find("beyond the end"), std::string::npos);
  writer = SmallFile();
  writer.tensors[0].dims = {std::uint64_t{1} << 62, 2};
  EXPECT_NE(ErrorOf(writer.Build()).find("beyond the end"), std::string::npos);
  writer.tensors[0].dims = {32, 2, 1, 1, 1};
  EXPECT_NE(ErrorOf(writer.Build()).find("5 dimensions"), std::string::npos);
  writer.tensors[0].dims = {32, 0};
  EXPECT_NE(ErrorOf(writer.Build()).find("a dimension of 0"), std::string::npos);
}

TEST(Gguf, NamesMustBeUnique) {
  GgufWriter writer = SmallFile();
  writer.AddUint("u32", 8);
  EXPECT_EQ(ErrorOf(writer.Build()), "t.gguf: key 'u32' stands twice");
  writer = SmallFile();
  writer.tensors[1].name = "w";
  EXPECT_EQ(ErrorOf(writer.Build()), "t.gguf: tensor 'w' stands twice");
}

TEST(Gguf, MessagesStayOnOneLine) {
  GgufWriter writer = SmallFile();
  writer.AddUint("a\nb\x1b[31m", 1);
  writer.AddUint("a\nb\x1b[31m", 1);
  EXPECT_EQ(ErrorOf(writer.Build()), "t.gguf: key 'a\\x0ab\\x1b[31m' stands twice");
}

}  // namespace
}  // namespace kvrm
