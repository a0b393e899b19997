// SPDX-License-Identifier: Apache-2.0
#include "server/api_parse.h"

#include <gtest/gtest.h>

#include <cmath>

#include "engine/request.h"

namespace kvrm {
namespace {

// The field a completion is refused for; "" when it is accepted, "?" when no field is named.
std::string RefusedField(const std::string& members) {
  const ApiResult<GenerationFields> result =
      ParseCompletion(R"({"prompt":"a",)" + members + "}", {});
  const ApiError* error = ErrorOf(result);
  if (error == nullptr) return "";
  EXPECT_EQ(error->status, 400);
  EXPECT_NE(error->message.find(error->param), std::string::npos) << error->message;
  return error->param.empty() ? "?" : error->param;
}

GenerationFields Accept(const std::string& body, bool chat = false) {
  ApiResult<GenerationFields> result = chat ? ParseChat(body, {}) : ParseCompletion(body, {});
  const ApiError* error = ErrorOf(result);
  EXPECT_EQ(error, nullptr) << (error != nullptr ? error->message : "");
  return error == nullptr ? std::get<GenerationFields>(std::move(result)) : GenerationFields();
}

TEST(ApiParse, ReadsSampling) {
  const GenerationFields fields = Accept(
      R"({"prompt":"a","temperature":0.5,"top_p":0.9,"top_k":40,"min_p":0.1,"seed":7,
          "max_tokens":12,"stop":["x","y"],"stream":true,"stream_options":{"include_usage":true}})");
  EXPECT_EQ(fields.sampling.temperature, 0.5);
  EXPECT_EQ(fields.sampling.top_p, 0.9);
  EXPECT_EQ(fields.sampling.top_k, 40);
  EXPECT_EQ(fields.sampling.min_p, 0.1);
  EXPECT_EQ(fields.sampling.seed, 7u);
  EXPECT_EQ(fields.max_tokens, 12u);
  EXPECT_EQ(fields.stop, (std::vector<std::string>{"x", "y"}));
  EXPECT_TRUE(fields.stream);
  EXPECT_TRUE(fields.include_usage);
  EXPECT_TRUE(fields.ignored.empty());
}

TEST(ApiParse, NullIsAbsent) {
  const GenerationFields fields = Accept(
      R"({"prompt":"a","temperature":null,"stop":null,"seed":null,"logit_bias":null,"n":null})");
  EXPECT_FALSE(fields.sampling.temperature.has_value());
  EXPECT_FALSE(fields.sampling.seed.has_value());
}

TEST(ApiParse, WrongTypesAndRangesNameTheField) {
  EXPECT_EQ(RefusedField(R"("temperature":"hot")"), "temperature");
  EXPECT_EQ(RefusedField(R"("temperature":2.01)"), "temperature");
  EXPECT_EQ(RefusedField(R"("temperature":-0.1)"), "temperature");
  EXPECT_EQ(RefusedField(R"("temperature":1e999)"), "temperature");
  EXPECT_EQ(RefusedField(R"("top_p":0)"), "top_p");
  EXPECT_EQ(RefusedField(R"("top_p":1.5)"), "top_p");
  EXPECT_EQ(RefusedField(R"("min_p":-1)"), "min_p");
  EXPECT_EQ(RefusedField(R"("top_k":1.5)"), "top_k");
  EXPECT_EQ(RefusedField(R"("top_k":-2)"), "top_k");
  EXPECT_EQ(RefusedField(R"("top_k":4294967296)"), "top_k");
  EXPECT_EQ(RefusedField(R"("max_tokens":0)"), "max_tokens");
  EXPECT_EQ(RefusedField(R"("max_tokens":-1)"), "max_tokens");
  EXPECT_EQ(RefusedField(R"("max_tokens":4294967296)"), "max_tokens");
  EXPECT_EQ(RefusedField(R"("max_tokens":18446744073709551615)"), "max_tokens");
  EXPECT_EQ(RefusedField(R"("max_tokens":10.0)"), "max_tokens");
  EXPECT_EQ(RefusedField(R"("seed":1.5)"), "seed");
  EXPECT_EQ(RefusedField(R"("seed":18446744073709551616)"), "seed");
  EXPECT_EQ(RefusedField(R"("stream":1)"), "stream");
  EXPECT_EQ(RefusedField(R"("stream_options":{"include_usage":1})"), "stream_options");
  EXPECT_EQ(RefusedField(R"("stop":5)"), "stop");
  EXPECT_EQ(RefusedField(R"("stop":["a",5])"), "stop");
  EXPECT_EQ(RefusedField(R"("stop":["1","2","3","4","5","6","7","8","9"])"), "stop");
  EXPECT_EQ(RefusedField("\"stop\":\"" + std::string(129, 'a') + "\""), "stop");
  EXPECT_EQ(RefusedField(R"("stop_token_ids":[-1])"), "stop_token_ids");
  EXPECT_EQ(RefusedField(R"("model":5)"), "model");
}

TEST(ApiParse, RefusesByNameWhatWouldChangeTheAnswer) {
  for (const char* members :
       {R"("best_of":2)", R"("tools":[{}])", R"("suffix":"x")", R"("chat_template":"{{x}}")",
        R"("typical_p":0.5)", R"("mirostat":1)", R"("dry_multiplier":0.8)", R"("lora":[{}])"}) {
    const std::string text = members;
    EXPECT_EQ(RefusedField(text), text.substr(1, text.find('"', 1) - 1));
  }
  for (const char* members :
       {R"("n":1)", R"("logprobs":false)", R"("logit_bias":{})", R"("presence_penalty":0)",
        R"("repeat_penalty":1.0)", R"("tools":[])", R"("response_format":{"type":"text"})",
        R"("suffix":"")", R"("skip_special_tokens":true)", R"("typical_p":1)"})
    EXPECT_EQ(RefusedField(members), "") << members;
}

TEST(ApiParse, ReadsPenaltiesInBothSpellings) {
  const SamplingFields fields =
      Accept(R"({"prompt":"a","repeat_penalty":1.5,"repeat_last_n":64,"presence_penalty":1,
                 "frequency_penalty":-2})")
          .sampling;
  EXPECT_EQ(fields.repetition_penalty, 1.5);
  EXPECT_EQ(fields.penalty_window, 64);
  EXPECT_EQ(fields.presence_penalty, 1.0);
  EXPECT_EQ(fields.frequency_penalty, -2.0);
  EXPECT_EQ(Accept(R"({"prompt":"a","repeat_penalty":1.5,"repetition_penalty":1.2})")
                .sampling.repetition_penalty,
            1.2);
  EXPECT_EQ(RefusedField(R"("repetition_penalty":0)"), "repetition_penalty");
  EXPECT_EQ(RefusedField(R"("presence_penalty":2.1)"), "presence_penalty");
  EXPECT_EQ(RefusedField(R"("frequency_penalty":"x")"), "frequency_penalty");
  EXPECT_EQ(RefusedField(R"("repeat_last_n":-2)"), "repeat_last_n");
}

TEST(ApiParse, ReadsBiasAsObjectAndAsPairs) {
  const std::vector<BiasField> object =
      Accept(R"({"prompt":"a","logit_bias":{"5":-100,"word":2.5}})").sampling.bias;
  ASSERT_EQ(object.size(), 2u);
  EXPECT_EQ(std::get<std::int32_t>(object[0].token), 5);
  EXPECT_EQ(object[0].bias, -100.0f);
  EXPECT_EQ(std::get<std::string>(object[1].token), "word");
  const std::vector<BiasField> pairs =
      Accept(R"({"prompt":"a","logit_bias":[[7,1],["x",false]]})").sampling.bias;
  ASSERT_EQ(pairs.size(), 2u);
  EXPECT_EQ(std::get<std::int32_t>(pairs[0].token), 7);
  EXPECT_TRUE(std::isinf(pairs[1].bias));
  for (const char* members :
       {R"("logit_bias":5)", R"("logit_bias":{"5":101})", R"("logit_bias":{"5":"x"})",
        R"("logit_bias":[[1]])", R"("logit_bias":[[-1,1]])", R"("logit_bias":[[1,true]])",
        R"("logit_bias":{"5":1e999})"})
    EXPECT_EQ(RefusedField(members), "logit_bias") << members;
  std::string many = R"("logit_bias":{"0":1)";
  for (int i = 1; i < 301; ++i)
    many += ",\"" + std::to_string(i) + "\":1";
  EXPECT_EQ(RefusedField(many + "}"), "logit_bias");
}

TEST(ApiParse, ReadsLogprobsOfBothRoutes) {
  const std::string chat = R"({"messages":[{"role":"user","content":"a"}],)";
  EXPECT_FALSE(Accept(chat + R"("logprobs":false})", true).logprobs.output);
  EXPECT_EQ(Accept(chat + R"("logprobs":true})", true).logprobs.output, 0u);
  EXPECT_EQ(Accept(chat + R"("logprobs":true,"top_logprobs":20})", true).logprobs.output, 20u);
  EXPECT_EQ(Accept(chat + R"("n_probs":3,"prompt_logprobs":0})", true).logprobs.output, 3u);
  EXPECT_EQ(Accept(chat + R"("prompt_logprobs":0})", true).logprobs.prompt, 0u);
  EXPECT_EQ(Accept(R"({"prompt":"a","logprobs":5})").logprobs.output, 5u);
  EXPECT_FALSE(Accept(R"({"prompt":"a","n_probs":0})").logprobs.output);
  EXPECT_EQ(RefusedField(R"("logprobs":true)"), "logprobs");
  EXPECT_EQ(RefusedField(R"("logprobs":21)"), "logprobs");
  EXPECT_EQ(RefusedField(R"("prompt_logprobs":-1)"), "prompt_logprobs");
  const ApiResult<GenerationFields> refused = ParseChat(chat + R"("top_logprobs":2})", {});
  ASSERT_NE(ErrorOf(refused), nullptr);
  EXPECT_EQ(ErrorOf(refused)->param, "top_logprobs");
}

TEST(ApiParse, ReadsFormsInAllSpellings) {
  struct Example {
    const char* members;
    GrammarKind kind;
    const char* text;
  };
  const Example examples[] = {
      {R"("response_format":{"type":"json_object"})", GrammarKind::kJsonObject, ""},
      {R"("response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"a":1}}})",
       GrammarKind::kJsonSchema, R"({"a":1})"},
      {R"("response_format":{"type":"json_schema","schema":{"a":1}})", GrammarKind::kJsonSchema,
       R"({"a":1})"},
      {R"("response_format":{"type":"json_object","schema":{"a":1}})", GrammarKind::kJsonSchema,
       R"({"a":1})"},
      {R"("json_schema":{"a":1})", GrammarKind::kJsonSchema, R"({"a":1})"},
      {R"("guided_json":"{}")", GrammarKind::kJsonSchema, "{}"},
      {R"("grammar":"root ::= x")", GrammarKind::kGbnf, "root ::= x"},
      {R"("guided_regex":"a+")", GrammarKind::kRegex, "a+"},
      {R"("guided_choice":["a","b\"\n"])", GrammarKind::kGbnf, "root ::= \"a\" | \"b\\\"\\x0a\"\n"},
      {R"("structured_outputs":{"regex":"x"})", GrammarKind::kRegex, "x"},
      {R"("structured_outputs":{"json_object":true})", GrammarKind::kJsonObject, ""},
      {R"("grammar":"","json_schema":null)", GrammarKind::kNone, ""},
  };
  for (const Example& example : examples) {
    const GrammarSpec spec =
        Accept(R"({"prompt":"a",)" + std::string(example.members) + "}").grammar.spec;
    EXPECT_EQ(spec.kind, example.kind) << example.members;
    EXPECT_EQ(spec.text, example.text) << example.members;
  }
  EXPECT_EQ(RefusedField(R"("grammar":5)"), "grammar");
  EXPECT_EQ(RefusedField(R"("guided_choice":[])"), "guided_choice");
  EXPECT_EQ(RefusedField(R"("response_format":{"type":"xml"})"), "response_format");
  EXPECT_EQ(RefusedField(R"("response_format":{"type":"json_schema"})"), "response_format");
  EXPECT_EQ(RefusedField(R"("grammar":"a","guided_regex":"b")"), "guided_regex");
}

TEST(ApiParse, ReadsTools) {
  const auto with = [](const std::string& members) {
    return R"({"messages":[{"role":"user","content":"a"}],)" + members + "}";
  };
  const std::string tools =
      R"("tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}])";
  const ToolFields fields = Accept(with(tools), true).tools;
  EXPECT_EQ(fields.names, (std::vector<std::string>{"f"}));
  EXPECT_EQ(fields.choice, ToolFields::Choice::kAuto);
  EXPECT_EQ(Accept(with(tools + R"(,"tool_choice":"none")"), true).tools.choice,
            ToolFields::Choice::kNone);
  const ToolFields named =
      Accept(with(tools + R"(,"tool_choice":{"type":"function","function":{"name":"f"}})"), true)
          .tools;
  EXPECT_EQ(named.choice, ToolFields::Choice::kNamed);
  EXPECT_EQ(ForcedCallGrammar(named).text, R"({"type":"object"})");
  const ToolFields required =
      Accept(with(tools + R"(,"tool_choice":"required","parallel_tool_calls":false)"), true).tools;
  EXPECT_EQ(ForcedCallGrammar(required).text,
            R"({"type":"array","minItems":1,"items":{"anyOf":[{"type":"object","properties":)"
            R"({"name":{"const":"f"},"parameters":{"type":"object"}},"required":["name",)"
            R"("parameters"],"additionalProperties":false}]},"maxItems":1})");
  for (const std::string& members :
       {std::string(R"("tools":[{}])"), std::string(R"("tools":"f")"),
        std::string(R"("tools":[{"type":"function","function":{"name":"a b"}}])")}) {
    const ApiResult<GenerationFields> refused = ParseChat(with(members), {});
    ASSERT_NE(ErrorOf(refused), nullptr) << members;
    EXPECT_EQ(ErrorOf(refused)->param, "tools");
  }
  for (const char* choice : {R"("required")", R"("maybe")", R"({"function":{"name":"f"}})"}) {
    const ApiResult<GenerationFields> refused =
        ParseChat(with(std::string(R"("tool_choice":)") + choice), {});
    ASSERT_NE(ErrorOf(refused), nullptr) << choice;
    EXPECT_EQ(ErrorOf(refused)->param, "tool_choice");
  }
}

TEST(ApiParse, ArgumentsOfEarlierCallsBecomeObjects) {
  const GenerationFields fields = Accept(
      R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":null,
          "tool_calls":[{"id":"1","type":"function","function":{"name":"f",
          "arguments":"{\"x\":1}"}}]},{"role":"tool","tool_call_id":"1","content":"2"}]})",
      true);
  const json::value& call = fields.messages.at(1).at("tool_calls").at(0).at("function");
  EXPECT_EQ(call.at("arguments").at("x"), 1);
  const ApiResult<GenerationFields> refused =
      ParseChat(R"({"messages":[{"role":"assistant","content":null,"tool_calls":[{"x":1}]}]})", {});
  ASSERT_NE(ErrorOf(refused), nullptr);
  EXPECT_EQ(ErrorOf(refused)->param, "messages");
}

TEST(ApiParse, NothingIsGeneratedOnlyForAnEcho) {
  EXPECT_TRUE(Accept(R"({"prompt":"a","echo":true,"max_tokens":0})").only_echo);
  EXPECT_FALSE(Accept(R"({"prompt":"a","echo":true,"max_tokens":1})").only_echo);
}

TEST(ApiParse, ReadsEmbeddings) {
  const ApiResult<EmbeddingFields> parsed = ParseEmbeddings(
      R"({"input":["a","b"],"encoding_format":"base64","dimensions":8,"pooling":"mean"})", {});
  ASSERT_EQ(ErrorOf(parsed), nullptr);
  const auto& fields = std::get<EmbeddingFields>(parsed);
  EXPECT_EQ(fields.inputs.size(), 2u);
  EXPECT_TRUE(fields.base64);
  EXPECT_EQ(fields.dimensions, 8u);
  EXPECT_EQ(fields.pooling, Pooling::kMean);
  const std::pair<const char*, const char*> refused[] = {
      {R"({})", "input"},
      {R"({"input":5})", "input"},
      {R"({"input":"a","encoding_format":"hex"})", "encoding_format"},
      {R"({"input":"a","dimensions":0})", "dimensions"},
      {R"({"input":"a","pooling":"max"})", "pooling"}};
  for (const auto& [body, param] : refused) {
    const ApiResult<EmbeddingFields> result = ParseEmbeddings(body, {});
    ASSERT_NE(ErrorOf(result), nullptr) << body;
    EXPECT_EQ(ErrorOf(result)->param, param);
  }
}

TEST(ApiParse, SamplesAndSalt) {
  for (const bool chat : {false, true}) {
    const std::string body =
        chat ? R"({"messages":[{"role":"user","content":"a"}])" : R"({"prompt":"a")";
    EXPECT_EQ(Accept(body + "}", chat).num_samples, 1u);
    EXPECT_EQ(Accept(body + "}", chat).cache_salt, "");
    const GenerationFields fields = Accept(body + R"(,"n":16,"cache_salt":"\u0000b"})", chat);
    EXPECT_EQ(fields.num_samples, 16u);
    EXPECT_EQ(fields.cache_salt, std::string("\0b", 2));
    EXPECT_TRUE(fields.ignored.empty());
  }
  for (const char* members :
       {R"("n":0)", R"("n":-1)", R"("n":17)", R"("n":4294967297)", R"("n":18446744073709551615)",
        R"("n":2.0)", R"("n":"2")", R"("n":true)", R"("n":[2])"})
    EXPECT_EQ(RefusedField(members), "n") << members;
  const std::string salt(kMaxClientSaltBytes, 's');
  EXPECT_EQ(Accept(R"({"prompt":"a","cache_salt":")" + salt + "\"}").cache_salt, salt);
  EXPECT_EQ(RefusedField(R"("cache_salt":"s)" + salt + '"'), "cache_salt");
  EXPECT_EQ(RefusedField(R"("cache_salt":5)"), "cache_salt");
  // The engine's own limit holds too.
  ApiLimits limits;
  limits.max_samples = 1000;
  const ApiResult<GenerationFields> result = ParseCompletion(R"({"prompt":"a","n":129})", limits);
  ASSERT_NE(ErrorOf(result), nullptr);
  EXPECT_EQ(ErrorOf(result)->message, "n must be between 1 and 128");
}

TEST(ApiParse, IgnoresAndListsOtherFields) {
  const GenerationFields fields =
      Accept(R"({"prompt":"a","user":"u","cache_prompt":true,"colour":1,"shape":2})");
  EXPECT_EQ(fields.ignored, (std::vector<std::string>{"colour", "shape"}));
  std::string many = R"({"prompt":"a")";
  for (int i = 0; i < 100; ++i)
    many += ",\"" + std::string(200, 'x') + std::to_string(i) + "\":1";
  const GenerationFields bounded = Accept(many + "}");
  EXPECT_EQ(bounded.ignored.size(), 8u);
  EXPECT_EQ(bounded.ignored[0].size(), 64u);
}

TEST(ApiParse, AliasesAndSeeds) {
  EXPECT_EQ(Accept(R"({"prompt":"a","n_predict":5})").max_tokens, 5u);
  EXPECT_FALSE(Accept(R"({"prompt":"a","n_predict":-1})").max_tokens.has_value());
  EXPECT_EQ(Accept(R"({"prompt":"a","max_completion_tokens":6,"max_tokens":5})").max_tokens, 6u);
  EXPECT_EQ(Accept(R"({"prompt":"a","top_k":-1})").sampling.top_k, 0);
  EXPECT_EQ(Accept(R"({"prompt":"a","seed":18446744073709551615})").sampling.seed, UINT64_MAX);
  EXPECT_EQ(Accept(R"({"prompt":"a","seed":9007199254740993})").sampling.seed, 9007199254740993u);
  EXPECT_FALSE(Accept(R"({"prompt":"a","seed":-1})").sampling.seed.has_value());
}

TEST(ApiParse, PromptShapes) {
  EXPECT_EQ(Accept(R"({"prompt":"a"})").prompts.size(), 1u);
  EXPECT_EQ(Accept(R"({"prompt":["a","b"]})").prompts.size(), 2u);
  const GenerationFields ids = Accept(R"({"prompt":[1,2,3]})");
  ASSERT_EQ(ids.prompts.size(), 1u);
  EXPECT_EQ(std::get<1>(ids.prompts[0]), (std::vector<std::int32_t>{1, 2, 3}));
  EXPECT_EQ(Accept(R"({"prompt":[[1],[2,3]]})").prompts.size(), 2u);
  for (const char* body :
       {"{}", R"({"prompt":null})", R"({"prompt":5})", R"({"prompt":[]})", R"({"prompt":[1,"a"]})",
        R"({"prompt":["a",1]})", R"({"prompt":[[1],"a"]})", R"({"prompt":[-1]})",
        R"({"prompt":[1.0]})", R"({"prompt":[2147483648]})", R"({"prompt":[{}]})"}) {
    const ApiResult<GenerationFields> result = ParseCompletion(body, {});
    ASSERT_NE(ErrorOf(result), nullptr) << body;
    EXPECT_EQ(ErrorOf(result)->param, "prompt") << body;
  }
  std::string many = R"({"prompt":["a")";
  for (int i = 0; i < 32; ++i)
    many += R"(,"a")";
  const ApiResult<GenerationFields> result = ParseCompletion(many + "]}", {});
  ASSERT_NE(ErrorOf(result), nullptr);
}

TEST(ApiParse, BodiesThatAreNoObjects) {
  for (const char* body : {"", "[]", "1", "{", "{}x", "\xff", R"({"prompt":"\ud800"})"}) {
    const ApiResult<GenerationFields> result = ParseCompletion(body, {});
    ASSERT_NE(ErrorOf(result), nullptr) << body;
    EXPECT_EQ(ErrorOf(result)->status, 400);
  }
  const std::string deep = std::string(100000, '[') + std::string(100000, ']');
  const ApiResult<GenerationFields> result = ParseCompletion(R"({"x":)" + deep + "}", {});
  EXPECT_NE(ErrorOf(result), nullptr);
}

TEST(ApiParse, MessagesAreBroughtToOneShape) {
  const GenerationFields fields = Accept(
      R"({"messages":[{"role":"developer","content":"be brief"},
          {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
          {"role":"assistant","content":null},{"role":"tool","content":"x"}],
          "chat_template_kwargs":{"enable_thinking":false}})",
      true);
  ASSERT_EQ(fields.messages.size(), 4u);
  EXPECT_EQ(fields.messages[0].at("role").as_string(), "system");
  EXPECT_EQ(fields.messages[1].at("content").as_string(), "ab");
  EXPECT_TRUE(fields.messages[2].at("content").is_null());
  EXPECT_EQ(fields.template_kwargs.at("enable_thinking"), false);
  EXPECT_TRUE(fields.add_generation_prompt);
}

TEST(ApiParse, WrongMessagesAreNamed) {
  const auto param = [](const char* body) {
    const ApiResult<GenerationFields> result = ParseChat(body, {});
    return ErrorOf(result) == nullptr ? std::string() : ErrorOf(result)->param;
  };
  EXPECT_EQ(param("{}"), "messages");
  EXPECT_EQ(param(R"({"messages":[]})"), "messages");
  EXPECT_EQ(param(R"({"messages":"hi"})"), "messages");
  EXPECT_EQ(param(R"({"messages":["hi"]})"), "messages");
  EXPECT_EQ(param(R"({"messages":[{"content":"hi"}]})"), "messages");
  EXPECT_EQ(param(R"({"messages":[{"role":"root","content":"hi"}]})"), "messages");
  EXPECT_EQ(param(R"({"messages":[{"role":"user","content":5}]})"), "messages");
  EXPECT_EQ(
      param(R"({"messages":[{"role":"user","content":[{"type":"image_url","image_url":{}}]}]})"),
      "messages");
  const std::string user = R"({"messages":[{"role":"user","content":"a"}],)";
  EXPECT_EQ(param((user + R"("chat_template_kwargs":{"messages":1}})").c_str()),
            "chat_template_kwargs");
  EXPECT_EQ(param((user + R"("chat_template_kwargs":{"x":[]}})").c_str()), "chat_template_kwargs");
  EXPECT_EQ(param((user + R"("echo":true})").c_str()), "echo");
}

TEST(ApiParse, TokenizeTakesBothSpellings) {
  const auto llama = ParseTokenize(R"({"content":"a","with_pieces":true})", {});
  ASSERT_EQ(ErrorOf(llama), nullptr);
  EXPECT_FALSE(std::get<TokenizeFields>(llama).add_special);
  EXPECT_TRUE(std::get<TokenizeFields>(llama).with_pieces);
  const auto vllm = ParseTokenize(R"({"prompt":"a"})", {});
  ASSERT_EQ(ErrorOf(vllm), nullptr);
  EXPECT_TRUE(std::get<TokenizeFields>(vllm).add_special);
  EXPECT_NE(ErrorOf(ParseTokenize("{}", {})), nullptr);
  EXPECT_NE(ErrorOf(ParseTokenize(R"({"content":1})", {})), nullptr);
  EXPECT_NE(ErrorOf(ParseDetokenize(R"({"tokens":"a"})", {})), nullptr);
  EXPECT_NE(ErrorOf(ParseDetokenize(R"({"tokens":[1,-1]})", {})), nullptr);
  const auto ids = ParseDetokenize(R"({"tokens":[1,2]})", {});
  ASSERT_EQ(ErrorOf(ids), nullptr);
  EXPECT_EQ(std::get<0>(ids).size(), 2u);
}

}  // namespace
}  // namespace kvrm
