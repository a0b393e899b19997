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

}  // namespace kvrm
