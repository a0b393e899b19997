// SPDX-License-Identifier: Apache-2.0
#include "server/logprob_format.h"

#include <algorithm>
#include <utility>

#include "base/utf8.h"

namespace kvrm {
namespace {

std::string TextOf(const std::string& bytes) {
  std::string text;
  AppendValidUtf8(text, bytes);
  return text;
}

json::object ChatToken(std::int32_t token, float logprob, const TokenBytes& bytes) {
  const std::string own = bytes(token);
  json::array numbers;
  for (const char c : own)
    numbers.push_back(static_cast<unsigned char>(c));
  return {{"token", TextOf(own)}, {"logprob", logprob}, {"bytes", std::move(numbers)}};
}

std::size_t NumCharacters(std::string_view text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xc0u) != 0x80u;
  }));
}

json::object PromptToken(const TokenLogprob& token, std::uint32_t rank, const TokenBytes& bytes) {
  return {
      {"logprob", token.logprob}, {"rank", rank}, {"decoded_token", TextOf(bytes(token.token))}};
}

}  // namespace

json::object ChatLogprobs(std::span<const ScoredToken> tokens, const TokenBytes& bytes) {
  json::array content;
  for (const ScoredToken& token : tokens) {
    json::object item = ChatToken(token.token, token.logprob, bytes);
    json::array top;
    for (const TokenLogprob& likely : token.likeliest)
      top.push_back(ChatToken(likely.token, likely.logprob, bytes));
    item["top_logprobs"] = std::move(top);
    content.push_back(std::move(item));
  }
  return {{"content", std::move(content)}};
}

json::object CompletionLogprobs(std::span<const ScoredToken> tokens, const TokenBytes& bytes,
                                std::size_t* text_offset) {
  json::array texts;
  json::array logprobs;
  json::array tops;
  json::array offsets;
  for (const ScoredToken& token : tokens) {
    const std::string text = TextOf(bytes(token.token));
    texts.push_back(json::string(text));
    offsets.push_back(*text_offset);
    *text_offset += NumCharacters(text);
    if (token.is_first) {
      logprobs.push_back(nullptr);
      tops.push_back(nullptr);
      continue;
    }
    logprobs.push_back(static_cast<double>(token.logprob));
    json::object top;
    for (const TokenLogprob& likely : token.likeliest)
      top.emplace(TextOf(bytes(likely.token)), likely.logprob);
    top.emplace(text, token.logprob);  // Always there, whatever its rank.
    tops.push_back(std::move(top));
  }
  return {{"tokens", std::move(texts)},
          {"token_logprobs", std::move(logprobs)},
          {"top_logprobs", std::move(tops)},
          {"text_offset", std::move(offsets)}};
}

json::array PromptLogprobs(std::span<const TopLogprobs> prompt, const TokenBytes& bytes) {
  json::array list = {nullptr};
  for (const TopLogprobs& one : prompt) {
    json::object item;
    item.emplace(std::to_string(one.token.token), PromptToken(one.token, one.rank, bytes));
    for (std::uint32_t i = 0; i < one.num_top; ++i) {
      const TokenLogprob& likely = one.likeliest[i];
      item.emplace(std::to_string(likely.token), PromptToken(likely, i + 1, bytes));
    }
    list.push_back(std::move(item));
  }
  return list;
}

}  // namespace kvrm
