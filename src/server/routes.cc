// SPDX-License-Identifier: Apache-2.0
#include "server/routes.h"

#include <array>
#include <charconv>

namespace kvrm {
namespace {

constexpr std::string_view kModelPrefix = "/v1/models/";

constexpr std::array kRoutes = {
    Route{.path = "/health", .id = RouteId::kHealth, .is_post = false, .is_public = true},
    Route{.path = "/v1/health", .id = RouteId::kHealth, .is_post = false, .is_public = true},
    Route{.path = "/version", .id = RouteId::kVersion, .is_post = false},
    Route{.path = "/v1/kv/ledger", .id = RouteId::kLedger, .is_post = false},
    Route{.path = "/metrics", .id = RouteId::kMetrics, .is_post = false},
    Route{.path = "/v1/models", .id = RouteId::kModels, .is_post = false},
    Route{.path = "/models", .id = RouteId::kModels, .is_post = false},
    Route{.path = kModelPrefix, .id = RouteId::kModel, .is_post = false},
    Route{.path = "/v1/chat/completions", .id = RouteId::kChat},
    Route{.path = "/chat/completions", .id = RouteId::kChat},
    Route{.path = "/v1/completions", .id = RouteId::kCompletion},
    Route{.path = "/completions", .id = RouteId::kCompletion},
    Route{.path = "/v1/chat/completions/input_tokens", .id = RouteId::kCountTokens},
    Route{.path = "/chat/completions/input_tokens", .id = RouteId::kCountTokens},
    Route{.path = "/v1/embeddings", .id = RouteId::kEmbeddings},
    Route{.path = "/embeddings", .id = RouteId::kEmbeddings},
    Route{.path = "/apply-template", .id = RouteId::kApplyTemplate},
    Route{.path = "/props", .id = RouteId::kProps, .is_post = false},
    Route{.path = "/slots", .id = RouteId::kSlots, .is_post = false},
    Route{.path = "/tokenize", .id = RouteId::kTokenize},
    Route{.path = "/v1/tokenize", .id = RouteId::kTokenize},
    Route{.path = "/detokenize", .id = RouteId::kDetokenize},
    Route{.path = "/v1/detokenize", .id = RouteId::kDetokenize},
};

}  // namespace

std::span<const Route> AllRoutes() {
  return kRoutes;
}

const Route* FindRoute(std::string_view path) {
  for (const Route& route : kRoutes) {
    if (route.id == RouteId::kModel) {
      if (path.starts_with(kModelPrefix) && path.size() > kModelPrefix.size()) return &route;
    } else if (route.path == path) {
      return &route;
    }
  }
  return nullptr;
}

std::optional<std::string> ModelNameOf(std::string_view path) {
  path.remove_prefix(kModelPrefix.size());
  std::string name;
  for (std::size_t i = 0; i < path.size(); ++i) {
    if (path[i] != '%') {
      name += path[i];
      continue;
    }
    unsigned byte = 0;
    const std::string_view digits = path.substr(i + 1, 2);
    const char* end = digits.data() + digits.size();
    const auto [stop, error] = std::from_chars(digits.data(), end, byte, 16);
    if (digits.size() != 2 || error != std::errc() || stop != end) return std::nullopt;
    name += static_cast<char>(byte);
    i += 2;
  }
  return name;
}

bool KeyMatches(std::string_view presented, std::string_view key) {
  // Every byte presented is compared with some byte of the key; only the length shows in the time.
  unsigned difference = presented.size() == key.size() ? 0 : 1;
  for (std::size_t i = 0; i < presented.size(); ++i) {
    const char expected = key.empty() ? '\0' : key[i % key.size()];
    difference |= static_cast<unsigned>(static_cast<unsigned char>(presented[i] ^ expected));
  }
  return difference == 0;
}

std::string_view PresentedKey(std::string_view authorization, std::string_view x_api_key) {
  constexpr std::string_view kBearer = "Bearer ";
  if (authorization.starts_with(kBearer)) return authorization.substr(kBearer.size());
  return x_api_key;
}

}  // namespace kvrm
