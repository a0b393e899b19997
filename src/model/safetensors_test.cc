// SPDX-License-Identifier: Apache-2.0
#include "model/safetensors.h"

#include <gtest/gtest.h>

#include "model/small_model.h"

namespace kvrm {
namespace {

std::string ErrorOf(const std::string& image) {
  const Result<SafetensorsFile> file = SafetensorsFile::Parse(AsBytes(image), "t");
  return file ? "" : file.error().message;
}

// One tensor "a" of eight bytes under this header.
std::string HeaderError(const std::string& header) {
  return ErrorOf(SafetensorsWriter::Assemble(header, "12345678"));
}

void ExpectContains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << '"' << text << "\" lacks \"" << part << '"';
}

TEST(Safetensors, ReadsTensorsOfEveryShape) {
  SafetensorsWriter w;
  w.AddText(R"("__metadata__":{"format":"pt","note":"a \"quoted\" word"})");
  w.Add("m", "F32", "[2,3]", std::string(24, 'm'));
  w.Add("cube", "F16", "[1,2,2,1]", std::string(8, 'c'));
  w.Add("scalar", "BF16", "[]", "sc");
  w.Add("none", "F32", "[0, 4]", "");
  w.Add("bytes", "F8_E4M3", "[6]", "bytes!");
  w.Add("of the future", "X9", "[100]", "??");
  const std::string image = w.Build();
  const Result<SafetensorsFile> file = SafetensorsFile::Parse(AsBytes(image), "t");
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(file->tensors().size(), 6u);
  EXPECT_EQ(file->metadata_json(), R"({"format":"pt","note":"a \"quoted\" word"})");
  const SafetensorsTensor* m = file->Find("m");
  ASSERT_NE(m, nullptr);
  EXPECT_EQ(m->dtype, "F32");
  EXPECT_EQ(m->num_dims, 2u);
  EXPECT_EQ(m->shape, (std::array<std::uint64_t, 4>{2, 3, 1, 1}));
  EXPECT_EQ(m->data.size(), 24u);
  EXPECT_EQ(m->data[23], std::byte{'m'});
  EXPECT_EQ(file->Find("cube")->data[0], std::byte{'c'});
  EXPECT_EQ(file->Find("scalar")->num_dims, 0u);
  EXPECT_EQ(file->Find("none")->data.size(), 0u);
  EXPECT_EQ(file->Find("of the future")->dtype, "X9");
  EXPECT_EQ(file->Find("absent"), nullptr);
}

TEST(Safetensors, DuplicatesAreSeen) {
  const std::string a = R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  const std::string empty = R"("a":{"dtype":"F32","shape":[0],"data_offsets":[8,8]})";
  EXPECT_EQ(HeaderError("{" + a + "}"), "");
  ExpectContains(HeaderError("{" + a + "," + empty + "}"), "tensor 'a' stands twice");
  ExpectContains(HeaderError(R"({"a":{"dtype":"F32","dtype":"F32","shape":[2],)"
                             R"("data_offsets":[0,8]}})"),
                 "has 'dtype' twice");
  ExpectContains(HeaderError(R"({"__metadata__":{},"__metadata__":{},)" + a + "}"),
                 "__metadata__ stands twice");
}

TEST(Safetensors, DataMustBeCoveredExactly) {
  const auto two = [](const std::string& x, const std::string& y) {
    return R"({"x":{"dtype":"U8","shape":[4],"data_offsets":)" + x +
           R"(},"y":{"dtype":"U8","shape":[4],"data_offsets":)" + y + "}}";
  };
  EXPECT_EQ(HeaderError(two("[4,8]", "[0,4]")), "");
  ExpectContains(HeaderError(two("[0,4]", "[2,6]")), "overlaps");
  ExpectContains(HeaderError(two("[0,4]", "[0,4]")), "overlaps");
  ExpectContains(HeaderError(R"({"x":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})"), "gap");
  ExpectContains(HeaderError(R"({"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})"),
                 "do not cover the data");
  ExpectContains(HeaderError(two("[0,4]", "[8,12]")), "cut off or damaged");
  ExpectContains(HeaderError(two("[4,0]", "[4,8]")), "cut off or damaged");
}

TEST(Safetensors, ShapesMustMatchTheBytes) {
  const auto with = [](const std::string& dtype, const std::string& shape) {
    return HeaderError(R"({"x":{"dtype":")" + dtype + R"(","shape":)" + shape +
                       R"(,"data_offsets":[0,8]}})");
  };
  EXPECT_EQ(with("F32", "[2]"), "");
  EXPECT_EQ(with("F4", "[16]"), "");
  ExpectContains(with("F32", "[3]"), "not what its shape and dtype 'F32' take");
  ExpectContains(with("F32", "[9223372036854775808,2]"), "not what its shape");
  ExpectContains(with("F4", "[15]"), "not what its shape");
  ExpectContains(with("F32", "[1,1,1,1,2]"), "more than 4 dimensions");
  ExpectContains(with("F32", "[18446744073709551616]"), "whole number");
  ExpectContains(with("F32", "[-2]"), "whole number");
  ExpectContains(with("F32", "[2.0]"), "','");
  ExpectContains(with("F32", "[02]"), "whole number");
}

TEST(Safetensors, OtherFilesAreNamed) {
  ExpectContains(ErrorOf("abc"), "shorter than 8 bytes");
  ExpectContains(ErrorOf(SmallLlama().Build()), "or this is no safetensors file");
  ExpectContains(ErrorOf(SafetensorsWriter::Assemble("[]", "")), "does not begin with '{'");
  ExpectContains(ErrorOf(GgufWriter::Raw<std::uint64_t>(100) + "{}"), "ends inside its header");
  EXPECT_EQ(ErrorOf(SafetensorsWriter::Assemble("{}", "")), "");
  EXPECT_EQ(ErrorOf(SafetensorsWriter::Assemble("{}   ", "")), "");
  ExpectContains(ErrorOf(SafetensorsWriter::Assemble("{} {}", "")), "goes on after its end");
}

TEST(Safetensors, IndexesNameFilesOfTheirOwnFolderOnly) {
  const auto names = [](const std::string& file) {
    return SafetensorsIndexFiles(R"({"weight_map":{"a":")" + file + R"("}})", "index");
  };
  EXPECT_EQ(names("x.safetensors").value(), (std::vector<std::string>{"x.safetensors"}));
  for (const char* bad :
       {"../x.safetensors", "/etc/x.safetensors", "x.bin", "", "..", "a\\u0000.safetensors"}) {
    EXPECT_FALSE(names(bad)) << bad;
  }
  EXPECT_FALSE(SafetensorsIndexFiles(R"({"weight_map":{}})", "index"));
  EXPECT_FALSE(SafetensorsIndexFiles(R"({"weight_map":{"a":1}})", "index"));
  EXPECT_FALSE(SafetensorsIndexFiles(R"([])", "index"));
}

}  // namespace
}  // namespace kvrm
