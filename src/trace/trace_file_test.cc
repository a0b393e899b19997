// SPDX-License-Identifier: Apache-2.0
#include "trace/trace_file.h"

#include <gtest/gtest.h>

#include <fstream>
#include <set>
#include <string>

namespace kvrm {
namespace {

std::string ErrorOf(TraceFormat format, std::string_view text) {
  const Result<ParsedTrace> trace = ParseTrace(format, text);
  return trace ? "none" : trace.error().message;
}

TEST(TraceFile, ReadsAzure) {
  const Result<ParsedTrace> trace = ParseTrace(TraceFormat::kAzure,
                                               "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
                                               "2023-11-16 23:59:59.9999999,374,44\r\n"
                                               "2023-11-17 00:00:00.5000000,396,109\r\n");
  ASSERT_TRUE(trace) << trace.error().message;
  const Workload& workload = trace->workload;
  ASSERT_EQ(workload.requests.size(), 2u);
  EXPECT_EQ(workload.requests[0].arrival_ns, 0);
  EXPECT_EQ(workload.requests[1].arrival_ns, 500'000'100);
  EXPECT_EQ(workload.requests[1].prompt_tokens, 396u);
  EXPECT_EQ(workload.requests[1].output_tokens, 109u);
}

TEST(TraceFile, ReadsTheDatesOfLaterAzureTraces) {
  const Result<ParsedTrace> trace = ParseTrace(TraceFormat::kAzure,
                                               "TIMESTAMP,ContextTokens,GeneratedTokens\n"
                                               "2024-02-28 23:59:00+00:00,1,2\n"
                                               "2024-03-01 00:00:00.25+00:00,3,4\n");
  ASSERT_TRUE(trace) << trace.error().message;
  // 2024 has a 29th of February.
  EXPECT_EQ(trace->workload.requests[1].arrival_ns,
            (std::int64_t{24} * 3600 + 60) * 1'000'000'000 + 250'000'000);
}

TEST(TraceFile, ReadsBothFormsOfBurstGpt) {
  const Result<ParsedTrace> first =
      ParseTrace(TraceFormat::kBurstGpt,
                 "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
                 "5,ChatGPT,472,18,490,Conversation log\n"
                 "45,ChatGPT,1087,0,1087,Conversation log\n"
                 "118.5,GPT-4,417,276,693,API log\n");
  ASSERT_TRUE(first) << first.error().message;
  EXPECT_EQ(first->num_left_out, 1u);
  ASSERT_EQ(first->workload.requests.size(), 2u);
  EXPECT_EQ(first->workload.requests[1].arrival_ns, 113'500'000'000);
  const Result<ParsedTrace> second = ParseTrace(
      TraceFormat::kBurstGpt,
      "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log "
      "Type\n5.0,7,1.5,GPT-4,10,20.0,30,API log\n");
  ASSERT_TRUE(second) << second.error().message;
  EXPECT_EQ(second->workload.requests[0].output_tokens, 20u);
}

TEST(TraceFile, ReadsMooncakeAndWritesIt) {
  const std::string text =
      R"({"timestamp": 10, "input_length": 1000, "output_length": 5, "hash_ids": [0, 7]})"
      "\n"
      R"({"timestamp": 3, "input_length": 600, "output_length": 6, "hash_ids": [0, 8]})"
      "\n";
  const Result<ParsedTrace> trace = ParseTrace(TraceFormat::kMooncake, text);
  ASSERT_TRUE(trace) << trace.error().message;
  const Workload& workload = trace->workload;
  ASSERT_EQ(workload.requests.size(), 2u);
  EXPECT_EQ(workload.requests[0].prompt_tokens, 600u);  // sorted by arrival
  EXPECT_EQ(workload.HashIds(workload.requests[0])[1], 8u);
  EXPECT_EQ(workload.requests[1].arrival_ns, 7'000'000);
  EXPECT_EQ(
      MooncakeLine(workload, workload.requests[1]),
      "{\"timestamp\": 7, \"input_length\": 1000, \"output_length\": 5, \"hash_ids\": [0, 7]}\n");
}

TEST(TraceFile, SortsByArrivalAndKeepsTheOrderOfEqualOnes) {
  const Result<ParsedTrace> trace = ParseTrace(TraceFormat::kMooncake,
                                               R"({"timestamp":1,"input_length":1,"output_length":1}
{"timestamp":0,"input_length":2,"output_length":1}
{"timestamp":0,"input_length":3,"output_length":1})");
  ASSERT_TRUE(trace);
  EXPECT_EQ(trace->workload.requests[0].prompt_tokens, 2u);
  EXPECT_EQ(trace->workload.requests[1].prompt_tokens, 3u);
}

TEST(TraceFile, NamesLineAndFieldOfWhatIsWrong) {
  const std::string head = "TIMESTAMP,ContextTokens,GeneratedTokens\n";
  const std::string good = "2023-11-16 18:17:03.97,1,2\n";
  EXPECT_EQ(ErrorOf(TraceFormat::kAzure, head + good + "2023-13-16 18:17:03,1,2\n"),
            "line 3: TIMESTAMP is no date of 2000 to 2030: '2023-13-16 18:17:03'");
  EXPECT_EQ(ErrorOf(TraceFormat::kAzure, head + "2023-11-16 18:17:03,-1,2\n"),
            "line 2: ContextTokens is no number of tokens from 0 to 16777216: '-1'");
  EXPECT_EQ(ErrorOf(TraceFormat::kAzure, head + "2023-11-16 18:17:03,1,16777217\n"),
            "line 2: GeneratedTokens is no number of tokens from 0 to 16777216: '16777217'");
  EXPECT_EQ(ErrorOf(TraceFormat::kAzure, head + "2023-11-16 18:17:03,1\n"),
            "line 2: columns are 2; the header has 3");
  EXPECT_EQ(ErrorOf(TraceFormat::kAzure, head), "there is no request in it");
  EXPECT_EQ(ErrorOf(TraceFormat::kAzure, "a,b\n").substr(0, 20), "line 1: header lacks");
  EXPECT_EQ(ErrorOf(TraceFormat::kBurstGpt, "Timestamp,Request tokens,Response tokens\nx,1,1\n"),
            "line 2: Timestamp is no time in s: 'x'");
}

TEST(TraceFile, NamesTheFieldOfABadJsonLine) {
  const auto error = [](std::string_view line) { return ErrorOf(TraceFormat::kMooncake, line); };
  EXPECT_EQ(error(R"({"timestamp":-1,"input_length":1,"output_length":1})"),
            "line 1: timestamp is no number from 0 to " + std::to_string(kMaxTraceNs / 1'000'000));
  EXPECT_EQ(error(R"({"timestamp":1,"output_length":1})"), "line 1: input_length is missing");
  EXPECT_EQ(error(R"({"timestamp":1,"input_length":1,"output_length":"1"})"),
            "line 1: output_length is no number from 0 to 16777216");
  EXPECT_EQ(error(R"({"timestamp":1,"input_length":1,"output_length":1,"hash_ids":[1.5]})"),
            "line 1: hash_ids has something that is no whole number from 0");
  EXPECT_EQ(error(R"({"timestamp":1,"input_length":1,"output_length":1,"hash_ids":{}})"),
            "line 1: hash_ids is no array");
  EXPECT_EQ(error("[]"), "line 1:  is no JSON object");
  EXPECT_EQ(error("{\n").substr(0, 8), "line 1: ");
}

TEST(TraceFile, DetectsTheFormat) {
  EXPECT_EQ(DetectTraceFormat("TIMESTAMP,ContextTokens,GeneratedTokens\n"), TraceFormat::kAzure);
  EXPECT_EQ(DetectTraceFormat("Timestamp,Model,Request tokens,Response tokens\n"),
            TraceFormat::kBurstGpt);
  EXPECT_EQ(DetectTraceFormat("{\"timestamp\": 0}"), TraceFormat::kMooncake);
  EXPECT_EQ(DetectTraceFormat("hello"), std::nullopt);
  for (const char* name : {"azure", "burstgpt", "mooncake"})
    EXPECT_STREQ(TraceFormatName(*FindTraceFormat(name)), name);
}

TEST(Overlay, TurnsEveryCopyByItsShareAndSharesNoHashIds) {
  Workload workload;
  workload.hash_ids = {5, 6};
  workload.requests = {{.arrival_ns = 0, .prompt_tokens = 9, .first_hash = 0, .num_hashes = 1},
                       {.arrival_ns = 400, .prompt_tokens = 8, .first_hash = 1, .num_hashes = 1}};
  const Workload one = workload;
  ASSERT_TRUE(Overlay(1, &workload));
  EXPECT_EQ(workload.requests.size(), 2u);
  ASSERT_TRUE(Overlay(3, &workload));
  ASSERT_EQ(workload.requests.size(), 6u);
  // It takes 400 ns and a mean gap of 200; copies are turned by 200.
  const std::int64_t arrivals[] = {0, 0, 200, 200, 400, 400};
  const std::uint32_t prompts[] = {9, 8, 9, 8, 8, 9};
  std::set<std::uint64_t> ids;
  for (std::size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(workload.requests[i].arrival_ns, arrivals[i]) << i;
    EXPECT_EQ(workload.requests[i].prompt_tokens, prompts[i]) << i;
    ids.insert(workload.HashIds(workload.requests[i])[0]);
  }
  EXPECT_EQ(ids.size(), 6u);

  workload = one;
  const Status status = Overlay(3u << 20, &workload);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().message, "3145728 copies of 2 requests are more than 4194304");
}

// The public traces themselves, where they are beside the checkout.
TEST(TraceFile, ReadsThePublicTraces) {
  const std::string folder = std::string(KVRM_SOURCE_DIR) + "/../shared/data/traces/";
  const std::string azure = folder + "AzureLLMInferenceTrace_conv.csv";
  if (!std::ifstream(azure)) GTEST_SKIP() << "no " << azure;
  const Result<ParsedTrace> conv = ReadTrace(azure, std::nullopt);
  ASSERT_TRUE(conv) << conv.error().message;
  EXPECT_EQ(conv->workload.requests.size() + conv->num_left_out, 19366u);
  const Result<ParsedTrace> mooncake =
      ReadTrace(folder + "mooncake_conversation_trace.jsonl", std::nullopt);
  ASSERT_TRUE(mooncake) << mooncake.error().message;
  EXPECT_EQ(mooncake->workload.requests.size(), 12031u);
}

}  // namespace
}  // namespace kvrm
