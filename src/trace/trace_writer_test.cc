// SPDX-License-Identifier: Apache-2.0
#include "trace/trace_writer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "base/file.h"
#include "base/result.h"
#include "trace/trace_file.h"

namespace kvrm {
namespace {

// What becomes of two prompts that share a block and one that does not.
std::string Written(const std::string& name, const std::string& salt) {
  const std::string path = ::testing::TempDir() + std::to_string(::getpid()) + name;
  std::remove(path.c_str());
  {
    TraceWriter writer(path, salt);
    std::vector<std::int32_t> prompt(1000, 7);
    writer.Begin(1, 5'000'000'000, prompt);
    prompt[600] = 8;
    writer.Begin(2, 5'002'000'000, prompt);
    prompt[0] = 8;
    prompt.resize(100);
    writer.Begin(3, 5'001'000'000, prompt);
    for (int i = 0; i < 3; ++i)
      writer.AddToken(2);
    writer.AddToken(1);
    writer.AddToken(9);  // of nobody
    writer.End(2);
    writer.End(1);
    writer.End(3);  // without an output: left out
    writer.End(3);
    EXPECT_EQ(writer.num_lost(), 0u);
    EXPECT_THROW(TraceWriter(path, salt), StartError);  // never over a file that is there
  }
  const std::string text = ReadFile(path, 1u << 20).value();
  std::remove(path.c_str());
  return text;
}

TEST(TraceWriter, WritesLengthsTimesAndSharedPrefixes) {
  const std::string text = Written("kvrm_trace_a", "salt a");
  const Result<ParsedTrace> trace = ParseTrace(TraceFormat::kMooncake, text);
  ASSERT_TRUE(trace) << trace.error().message;
  const Workload& workload = trace->workload;
  ASSERT_EQ(workload.requests.size(), 2u);
  EXPECT_EQ(workload.requests[1].arrival_ns, 2'000'000);
  EXPECT_EQ(workload.requests[0].prompt_tokens, 1000u);
  EXPECT_EQ(workload.requests[0].output_tokens, 1u);
  EXPECT_EQ(workload.requests[1].output_tokens, 3u);
  const auto first = workload.HashIds(workload.requests[0]);
  const auto second = workload.HashIds(workload.requests[1]);
  ASSERT_EQ(first.size(), 2u);
  EXPECT_EQ(first[0], second[0]);
  EXPECT_NE(first[1], second[1]);
  EXPECT_LT(first[0], std::uint64_t{1} << 53);
}

TEST(TraceWriter, AnotherSaltGivesOtherIds) {
  EXPECT_EQ(Written("kvrm_trace_b", "salt a"), Written("kvrm_trace_c", "salt a"));
  EXPECT_NE(Written("kvrm_trace_b", "salt a"), Written("kvrm_trace_c", "salt b"));
  EXPECT_NE(DrawSalt(), DrawSalt());
}

}  // namespace
}  // namespace kvrm
