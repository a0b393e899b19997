// SPDX-License-Identifier: Apache-2.0
// A whole server on a loopback socket, with a scripted engine behind it. Tests only.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>

#include "base/log.h"
#include "server/api.h"
#include "server/fakes_for_test.h"

namespace kvrm {

class LoopbackServer : public testing::Test {
 protected:
  void SetUp() override { SetLogLevel(LogLevel::kError); }

  void Start(ServerOptions options = {}) {
    options.port = 0;
    options.http.tick_ms = 2;
    server_ = std::make_unique<Server>(engine_.Port(), model_, options, clock_);
    port_ = server_->Listen();
    server_->Start();
  }
  ServerStats Stop() {
    server_->Stop();
    return server_->stats();
  }
  ClientResponse Ask(const std::string& text) {
    TestClient client(port_);
    EXPECT_TRUE(client.Send(text));
    return client.ReadResponse();
  }
  static bool Has(const ClientResponse& response, const std::string& line) {
    return response.head.find("\r\n" + line + "\r\n") != std::string::npos;
  }

  FakeClock clock_;
  FakeEngine engine_;
  ModelPort model_ = FakeModel();
  std::unique_ptr<Server> server_;
  std::uint16_t port_ = 0;
};

}  // namespace kvrm
