// SPDX-License-Identifier: Apache-2.0
#include "model/tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/rng.h"
#include "base/utf8.h"
#include "model/small_vocabulary.h"

namespace kvrm {
namespace {

using Ids = std::vector<std::int32_t>;

constexpr EncodeOptions kPlain = {.add_special = false, .parse_special = false};
constexpr EncodeOptions kTrusted = {.add_special = false, .parse_special = true};

Result<Tokenizer> Make(GgufWriter writer) {
  const std::string image = writer.Build();
  const Result<GgufFile> file =
      GgufFile::Parse({reinterpret_cast<const std::byte*>(image.data()), image.size()}, "t.gguf");
  if (!file) return file.error();
  return Tokenizer::FromGguf(*file);
}

std::string ErrorOf(GgufWriter writer) {
  const Result<Tokenizer> tokenizer = Make(std::move(writer));
  return tokenizer ? "accepted" : tokenizer.error().message;
}

Tokenizer ByteLevel() {
  return OrThrow(Make(SmallByteLevel().Gguf()));
}
Tokenizer SentencePiece() {
  return OrThrow(Make(SmallSentencePiece().Gguf()));
}

// Piece k of SmallSentencePiece.
constexpr std::int32_t P(int k) {
  return SmallSentencePiece::kFirstPiece + k;
}
constexpr std::int32_t ByteId(int byte) {
  return 3 + byte;
}
constexpr std::int32_t kUser = P(23);
constexpr std::int32_t kEnd = P(25);

TEST(ByteLevel, MergesByRankWithinPieces) {
  const Tokenizer t = ByteLevel();
  EXPECT_EQ(t.kind(), "BPE gpt-2");
  EXPECT_EQ(t.Encode("hello", kPlain), (Ids{259}));
  EXPECT_EQ(t.Encode("hello world", kPlain), (Ids{259, 261, 'r', 'l', 'd'}));
  EXPECT_EQ(t.Encode("aaaaa", kPlain), (Ids{263, 'a'}));
  EXPECT_EQ(t.Encode("1212", kPlain), (Ids{265, 265}));
  EXPECT_EQ(t.Encode("", kPlain), Ids{});
  EXPECT_EQ(t.Encode("", {}), (Ids{266}));
  EXPECT_EQ(t.Encode("h", {}), (Ids{266, 'h'}));
  EXPECT_TRUE(t.adds_bos());
  EXPECT_EQ(t.stop_ids(), (Ids{267}));
}

TEST(ByteLevel, SpecialTokensInTrustedTextOnly) {
  const Tokenizer t = ByteLevel();
  EXPECT_EQ(t.Encode("hello<|eot_id|>", kTrusted), (Ids{259, 267}));
  const Ids written_out = t.Encode("<|eot_id|>", kPlain);
  EXPECT_EQ(std::count(written_out.begin(), written_out.end(), 267), 0);
  EXPECT_EQ(t.Decode(written_out), "<|eot_id|>");
  // User-defined tokens are words, not structure.
  EXPECT_EQ(t.Encode("a<tool>a", kPlain), (Ids{'a', 268, 'a'}));
  EXPECT_EQ(t.Decode(Ids{'a', 268, 267}), "a<tool>");
  EXPECT_EQ(t.Decode(Ids{'a', 268, 267}, true), "a<tool><|eot_id|>");
}

TEST(ByteLevel, PiecesEncodeAsOneText) {
  const Tokenizer t = ByteLevel();
  const TextPiece across[] = {{"hel", true}, {"lo", false}};
  EXPECT_EQ(t.EncodePieces(across, true), (Ids{266, 259}));
  const TextPiece mixed[] = {{"<|begin|>", true}, {"<|eot_id|>", false}, {"<|eot_id|>", true}};
  const Ids ids = t.EncodePieces(mixed, false);
  EXPECT_EQ(ids.front(), 266);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 267), 1);
  EXPECT_EQ(ids.back(), 267);
  // A control token lies whole in trusted text, but may lie across two trusted pieces.
  const TextPiece cut[] = {{"<|eot", true}, {"_id|>", false}};
  const Ids cut_ids = t.EncodePieces(cut, false);
  EXPECT_EQ(std::count(cut_ids.begin(), cut_ids.end(), 267), 0);
  const TextPiece split[] = {{"<|eot", true}, {"_id|>", true}};
  EXPECT_EQ(t.EncodePieces(split, false), (Ids{267}));
  const TextPiece tool[] = {{"<to", true}, {"ol>", false}};
  EXPECT_EQ(t.EncodePieces(tool, false), (Ids{268}));
  EXPECT_EQ(t.EncodePieces({}, false), Ids{});
}

TEST(ByteLevel, AnyBytesRoundTrip) {
  const Tokenizer t = ByteLevel();
  Rng rng(3);
  for (int round = 0; round < 2000; ++round) {
    std::string text(rng.Below(24), '\0');
    for (char& c : text) {
      c = rng.Below(3) == 0 ? static_cast<char>(rng.Below(256)) : "hello wor12aa\n"[rng.Below(14)];
    }
    ASSERT_EQ(t.Decode(t.Encode(text, kPlain)), text);
  }
}

TEST(ByteLevel, LongWordsAreNotQuadratic) {
  // 1 MiB of one word: a quadratic merge would take the better part of an hour.
  const Tokenizer t = ByteLevel();
  const std::string text(std::size_t{1} << 20, 'a');
  EXPECT_EQ(t.Encode(text, kPlain), Ids(text.size() / 4, 263));
  const std::string spaces = std::string(std::size_t{1} << 20, ' ') + "+";
  EXPECT_TRUE(t.Decode(t.Encode(spaces, kPlain)) == spaces);
}

TEST(ByteLevel, MissingBytesGiveTheUnknownTokenOrNothing) {
  SmallByteLevel small;
  small.tokens[0x7A] = "unused-place";
  EXPECT_EQ(OrThrow(Make(small.Gguf())).Encode("hezzhe", kPlain), (Ids{256, 256}));
  GgufWriter writer = small.Gguf();
  writer.AddUint("tokenizer.ggml.unknown_token_id", 268);
  EXPECT_EQ(OrThrow(Make(writer)).Encode("hezzhe", kPlain), (Ids{256, 268, 256}));
  // An end token named as the unknown one is not used: text must not end a sequence.
  writer.Remove("tokenizer.ggml.unknown_token_id");
  writer.AddUint("tokenizer.ggml.unknown_token_id", 267);
  EXPECT_EQ(OrThrow(Make(writer)).Encode("hezzhe", kPlain), (Ids{256, 256}));
}

TEST(ByteLevel, MergesNeverMakeAControlToken) {
  SmallByteLevel small;
  small.merges.push_back("< t");
  small.tokens.push_back("<t");
  small.types.push_back(3);
  EXPECT_EQ(OrThrow(Make(small.Gguf())).Encode("<t", kPlain), (Ids{'<', 't'}));
  EXPECT_EQ(OrThrow(Make(small.Gguf())).Encode("<t", kTrusted), (Ids{269}));
}

TEST(SentencePiece, MergesByScoreFromTheLeft) {
  const Tokenizer t = SentencePiece();
  EXPECT_EQ(t.kind(), "SPM");
  EXPECT_EQ(t.Encode("hello", kPlain), (Ids{P(3)}));
  EXPECT_EQ(t.Encode("hello", {}), (Ids{1, P(3)}));
  EXPECT_EQ(t.Encode("", kPlain), Ids{});
  // "ab" ranks above "bc", so "abc" is ab + c, then abc.
  EXPECT_EQ(t.Encode("xabc", kPlain), (Ids{P(9), ByteId('x'), P(8)}));
  EXPECT_EQ(t.Encode("  w", kPlain), (Ids{P(5), P(4)}));
  EXPECT_EQ(t.Encode("\xC3\xA9", kPlain), (Ids{P(9), P(21)}));
}

TEST(SentencePiece, FallsBackToBytes) {
  const Tokenizer t = SentencePiece();
  EXPECT_EQ(t.Encode("\xE2\x82\xAC", kPlain),
            (Ids{P(9), ByteId(0xE2), ByteId(0x82), ByteId(0xAC)}));
  EXPECT_EQ(t.Encode("\xFF\n", kPlain), (Ids{P(9), ByteId(0xFF), ByteId('\n')}));
  EXPECT_EQ(t.Decode(Ids{P(9), ByteId(0xFF), ByteId('\n')}), "\xFF\n");
  // Spelled-out byte and control tokens stay text.
  EXPECT_EQ(t.Decode(t.Encode("<0x41>", kPlain)), "<0x41>");
  const Ids ids = t.Encode("<s>", kPlain);
  EXPECT_EQ(ids, (Ids{P(9), P(18), P(19), P(20)}));
}

TEST(SentencePiece, UnknownRunsAreOneToken) {
  SmallSentencePiece small;
  const std::vector<float>& scores = small.scores;
  for (std::size_t i = 3; i < 259; ++i) {
    small.types[i] = 5;
  }
  ASSERT_EQ(scores.size(), small.types.size());
  const Tokenizer t = OrThrow(Make(small.Gguf()));
  EXPECT_EQ(t.Encode("xyhello zz w", kPlain), (Ids{P(9), 0, P(10), P(1), P(22), P(9), 0, P(4)}));
}

TEST(SentencePiece, SpacePrefixFollowsSpecialTokens) {
  const Tokenizer t = SentencePiece();
  EXPECT_EQ(t.Encode("<|user|>hello<|end|>", kTrusted), (Ids{kUser, P(3), kEnd}));
  EXPECT_EQ(t.Encode("w<|end|>\n", kTrusted), (Ids{P(4), kEnd, P(9), ByteId('\n')}));
  EXPECT_EQ(t.stop_ids(), (Ids{2, kEnd}));
  GgufWriter writer = SmallSentencePiece().Gguf();
  writer.AddBool("tokenizer.ggml.add_space_prefix", false);
  const Tokenizer bare = OrThrow(Make(writer));
  EXPECT_EQ(bare.Encode("w<|end|>\n", kTrusted), (Ids{P(14), kEnd, ByteId('\n')}));
  EXPECT_EQ(bare.Decode(Ids{P(3)}), " hello");
}

TEST(SentencePiece, DecodeStripsOneSpaceAtTheStart) {
  const Tokenizer t = SentencePiece();
  EXPECT_EQ(t.Decode(Ids{1, P(3), P(4)}), "hello w");
  EXPECT_EQ(t.Decode(Ids{1, P(3)}, true), "<s>hello");
  EXPECT_EQ(t.Decode(Ids{P(5), P(4)}), "  w");
  EXPECT_EQ(t.TokenBytes(P(3)), " hello");
  EXPECT_EQ(t.TokenBytes(1), "");
  EXPECT_EQ(t.TokenBytes(1, true), "<s>");
  EXPECT_EQ(t.TokenBytes(-1), "");
  EXPECT_EQ(t.TokenBytes(1 << 30), "");
  EXPECT_EQ(t.TokenName(P(0)), "\xE2\x96\x81h");
  EXPECT_EQ(t.FindToken("<|user|>"), kUser);
  EXPECT_EQ(t.FindToken("nowhere"), -1);
}

TEST(SentencePiece, RemovesExtraSpacesWhenAsked) {
  GgufWriter writer = SmallSentencePiece().Gguf();
  writer.AddBool("tokenizer.ggml.remove_extra_whitespaces", true);
  EXPECT_EQ(OrThrow(Make(writer)).Encode("  hello   w ", kPlain), (Ids{P(3), P(4)}));
}

TEST(SentencePiece, WordByWordIsTheSameAsWhole) {
  // A token with a space inside forbids going word by word; it is never used here, so the ids of
  // both vocabularies agree.
  SmallSentencePiece crossing;
  crossing.Add("q\xE2\x96\x81q", -100, 1);
  const Tokenizer whole = OrThrow(Make(crossing.Gguf()));
  const Tokenizer words = SentencePiece();
  Rng rng(5);
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (std::uint64_t i = rng.Below(30); i > 0; --i) {
      text += "hello  wabc<s>\xC3\xA9"[rng.Below(16)];
    }
    ASSERT_EQ(words.Encode(text, kPlain), whole.Encode(text, kPlain)) << text;
  }
}

TEST(StreamDecoder, NeverSplitsACharacter) {
  const Tokenizer t = SentencePiece();
  StreamDecoder decoder(t);
  EXPECT_EQ(decoder.Push(P(3)), " hello");
  EXPECT_EQ(decoder.Push(ByteId(0xE2)), "");
  EXPECT_EQ(decoder.Push(ByteId(0x82)), "");
  EXPECT_EQ(decoder.Push(ByteId(0xAC)), "\xE2\x82\xAC");
  EXPECT_EQ(decoder.Push(ByteId(0xE2)), "");
  EXPECT_EQ(decoder.Push(P(15)),
            "\xEF\xBF\xBD"
            "a");
  EXPECT_EQ(decoder.Push(kEnd), "");
  EXPECT_EQ(decoder.Push(ByteId(0xFF)), "\xEF\xBF\xBD");
  EXPECT_EQ(decoder.Push(ByteId(0xF0)), "");
  EXPECT_EQ(decoder.Push(ByteId(0x9F)), "");
  EXPECT_EQ(decoder.Finish(), "\xEF\xBF\xBD");
  EXPECT_EQ(decoder.Finish(), "");
}

TEST(StreamDecoder, AMessageBeginsWithoutTheSpaceInFront) {
  const Tokenizer t = SentencePiece();
  StreamDecoder message(t, StreamDecoder::Start::kMessage);
  EXPECT_EQ(message.Push(kUser), "");
  EXPECT_EQ(message.Push(P(3)), "hello");
  EXPECT_EQ(message.Push(P(3)), " hello");
  const Tokenizer bytes = ByteLevel();
  StreamDecoder kept(bytes, StreamDecoder::Start::kMessage);
  const Ids ids = bytes.Encode(" a", kPlain);
  std::string text;
  for (const std::int32_t id : ids)
    text += kept.Push(id);
  EXPECT_EQ(text + kept.Finish(), " a");
}

TEST(StreamDecoder, PushesGiveTheWholeText) {
  const Tokenizer t = ByteLevel();
  Rng rng(11);
  for (int round = 0; round < 3000; ++round) {
    Ids ids(rng.Below(30));
    for (std::int32_t& id : ids) {
      // Mostly bytes that begin, continue or break sequences.
      id = static_cast<std::int32_t>(rng.Below(4) == 0 ? rng.Below(t.num_tokens())
                                                       : 0x80 + rng.Below(0x80));
    }
    StreamDecoder decoder(t);
    std::string streamed;
    for (const std::int32_t id : ids) {
      const std::string text = decoder.Push(id);
      ASSERT_TRUE(IsValidUtf8(text));
      streamed += text;
    }
    streamed += decoder.Finish();
    std::string whole;
    AppendValidUtf8(whole, t.Decode(ids));
    ASSERT_EQ(streamed, whole);
  }
}

TEST(GgufVocabulary, EveryPreTokenizerNameBuildsAndLosesNothing) {
  const char* const names[] = {"default",        "llama3",      "llama-v3",
                               "llama-bpe",      "falcon3",     "deepseek-llm",
                               "deepseek-coder", "deepseek-v3", "deepseek-r1-qwen",
                               "falcon",         "mpt",         "starcoder",
                               "refact",         "command-r",   "gpt-2",
                               "phi-2",          "jina-es",     "jina-de",
                               "jina-v2-code",   "roberta-bpe", "qwen2",
                               "qwen35",         "stablelm2",   "olmo",
                               "dbrx",           "smaug-bpe",   "smollm",
                               "codeshell",      "tekken",      "mistral-bpe",
                               "gpt-4o",         "llama4",      "exaone",
                               "bloom",          "viking",      "seed-coder",
                               "bailingmoe",     "chatglm-bpe"};
  Rng rng(13);
  for (const std::string name : names) {
    const Result<Tokenizer> t = Make(SmallByteLevel().Gguf(name));
    ASSERT_TRUE(t) << name << ": " << t.error().message;
    EXPECT_EQ(t->kind(), "BPE " + name);
    for (int round = 0; round < 200; ++round) {
      std::string text;
      for (std::uint64_t i = rng.Below(20); i > 0; --i) {
        AppendUtf8(text,
                   static_cast<char32_t>(rng.Below(3) == 0 ? 0x20 + rng.Below(0x3000)
                                                           : U" \n\r'sA1+-\t"[rng.Below(10)]));
        if (rng.Below(20) == 0) text += '\xC3';
      }
      ASSERT_EQ(t->Decode(t->Encode(text, kPlain)), text) << name;
    }
  }
}

TEST(GgufVocabulary, MissingPreTokenizerIsTheDefaultOne) {
  GgufWriter writer = SmallByteLevel().Gguf();
  writer.Remove("tokenizer.ggml.pre");
  EXPECT_EQ(OrThrow(Make(writer)).kind(), "BPE default (no tokenizer.ggml.pre)");
}

TEST(GgufVocabulary, RefusesOtherKindsByName) {
  for (const std::string kind : {"bert", "t5", "rwkv", "plamo2", "none", "no_vocab", "x"}) {
    GgufWriter writer = SmallByteLevel().Gguf();
    writer.Remove("tokenizer.ggml.model");
    writer.AddString("tokenizer.ggml.model", kind);
    const Result<Tokenizer> t = Make(writer);
    ASSERT_FALSE(t);
    EXPECT_EQ(t.error().code, ErrorCode::kUnsupported);
    EXPECT_NE(t.error().message.find("tokenizer.ggml.model: tokenizer kind '" + kind + "'"),
              std::string::npos);
  }
  EXPECT_EQ(ErrorOf(SmallByteLevel().Gguf("kimi-k2")),
            "tokenizer.ggml.pre: pre-tokenizer 'kimi-k2' is not supported");
}

TEST(GgufVocabulary, RefusesWhatDoesNotFit) {
  struct Bad {
    std::string message;
    GgufWriter writer;
  };
  std::vector<Bad> bad;
  const auto byte_level = [&](const std::string& message, auto change) {
    SmallByteLevel small;
    change(small);
    bad.push_back({message, small.Gguf()});
  };
  const auto replaced = [&](const std::string& message, const std::string& key, auto add) {
    GgufWriter writer = SmallSentencePiece().Gguf();
    writer.Remove(key);
    add(writer, key);
    bad.push_back({message, std::move(writer)});
  };
  byte_level("tokenizer.ggml.tokens: the vocabulary is empty", [](auto& s) { s.tokens.clear(); });
  byte_level("tokenizer.ggml.tokens[256]: the token is empty", [](auto& s) { s.tokens[256] = ""; });
  byte_level("tokenizer.ggml.tokens[257]: the token repeats token 256",
             [](auto& s) { s.tokens[257] = "he"; });
  byte_level("tokenizer.ggml.token_type: has 268 entries for 269 tokens",
             [](auto& s) { s.types.pop_back(); });
  byte_level("tokenizer.ggml.token_type[0]: 7 is no token type (0 to 6)",
             [](auto& s) { s.types[0] = 7; });
  byte_level("tokenizer.ggml.token_type[0]: -1 is no token type (0 to 6)",
             [](auto& s) { s.types[0] = -1; });
  byte_level("tokenizer.ggml.merges[0]: must be two pieces and a space",
             [](auto& s) { s.merges[0] = "he"; });
  byte_level("tokenizer.ggml.merges[0]: must be two pieces and a space",
             [](auto& s) { s.merges[0] = "h "; });
  byte_level("tokenizer.ggml.merges[0]: must be two pieces and a space",
             [](auto& s) { s.merges[0] = ""; });
  byte_level("tokenizer.ggml.merges[1]: 'zz' is not in the vocabulary",
             [](auto& s) { s.merges[1] = "zz l"; });
  byte_level("tokenizer.ggml.merges[1]: 'lh' is not in the vocabulary",
             [](auto& s) { s.merges[1] = "l h"; });
  byte_level("has 257 bytes; the limit is 256",
             [](auto& s) { s.tokens[266] = std::string(257, 'x'); });
  byte_level("has 4097 bytes; the limit is 4096",
             [](auto& s) { s.tokens[256] = std::string(4097, 'x'); });
  for (const std::string spelling : {"<0x-1>", "<0xZZ>", "<0x>", "<0x123>", "0x0A", "<0x+1>"}) {
    SmallSentencePiece small;
    small.tokens[3] = spelling;
    bad.push_back(
        {"tokenizer.ggml.tokens[3]: '" + spelling + "' must be spelled <0xHH>", small.Gguf()});
  }
  replaced("tokenizer.ggml.scores: has 1 entries for 286 tokens", "tokenizer.ggml.scores",
           [](GgufWriter& w, const std::string& key) {
             w.AddArray<float>(key, GgufType::kFloat32, {1.0f});
           });
  replaced("key 'tokenizer.ggml.scores' is missing", "tokenizer.ggml.scores",
           [](GgufWriter&, const std::string&) {});
  replaced("tokenizer.ggml.scores[0]: is not a number", "tokenizer.ggml.scores",
           [](GgufWriter& w, const std::string& key) {
             w.AddArray(key, GgufType::kFloat32, std::vector<float>(286, std::nanf("")));
           });
  replaced("tokenizer.ggml.scores", "tokenizer.ggml.scores",
           [](GgufWriter& w, const std::string& key) { w.AddString(key, "x"); });
  for (const std::string name : {"bos", "eos", "unknown", "eot", "eom"}) {
    const std::string key = "tokenizer.ggml." + name + "_token_id";
    replaced(key + ": 286 is not an id of the vocabulary, which has 286 tokens", key,
             [](GgufWriter& w, const std::string& k) { w.AddUint(k, 286); });
    replaced(key, key, [](GgufWriter& w, const std::string& k) { w.AddUint(k, 0xFFFFFFFFu); });
    replaced(key, key, [](GgufWriter& w, const std::string& k) { w.AddString(k, "1"); });
  }
  for (const std::string key : {"tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token",
                                "tokenizer.ggml.add_space_prefix", "tokenizer.chat_template",
                                "tokenizer.ggml.remove_extra_whitespaces"}) {
    replaced(key, key, [](GgufWriter& w, const std::string& k) { w.AddFloat(k, 1); });
  }
  GgufWriter no_bos = SmallByteLevel().Gguf();
  no_bos.Remove("tokenizer.ggml.bos_token_id");
  bad.push_back(
      {"tokenizer.ggml.add_bos_token: is true, but there is no bos_token_id", std::move(no_bos)});
  for (Bad& item : bad) {
    const std::string error = ErrorOf(std::move(item.writer));
    EXPECT_NE(error.find(item.message), std::string::npos)
        << "got: " << error << "\nwant: " << item.message;
  }
  EXPECT_GE(bad.size(), 40u);
}

TEST(GgufVocabulary, UntypedVocabulariesKeepTheirControlTokens) {
  GgufWriter writer = SmallByteLevel().Gguf();
  writer.Remove("tokenizer.ggml.token_type");
  const Tokenizer t = OrThrow(Make(writer));
  EXPECT_TRUE(t.IsControl(266));
  EXPECT_TRUE(t.IsControl(267));
  EXPECT_EQ(t.Encode("<|eot_id|>", kTrusted), (Ids{267}));
}

TEST(GgufVocabulary, UserDefinedEndsOfTurnAreControl) {
  SmallByteLevel small;
  small.types[267] = 4;
  const Tokenizer t = OrThrow(Make(small.Gguf()));
  EXPECT_TRUE(t.IsControl(267));
  const Ids ids = t.Encode("<|eot_id|>", kPlain);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 267), 0);
}

TEST(GgufVocabulary, Phi3TokensEatTheSpaceAfterThem) {
  GgufWriter writer = SmallSentencePiece().Gguf();
  writer.AddString("general.name", "Phi-3 mini");
  const Tokenizer t = OrThrow(Make(writer));
  EXPECT_EQ(t.Encode("<|user|>\n hello<|end|>\n", kTrusted), (Ids{kUser, P(3), kEnd}));
  EXPECT_EQ(t.Encode("<s> hello", kTrusted), (Ids{1, P(9), P(3)}));
}

}  // namespace
}  // namespace kvrm
