// SPDX-License-Identifier: Apache-2.0
// The server over TLS: a self-signed certificate of the test's own, a blocking client of OpenSSL's.
#include "server/tls.h"

#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/result.h"
#include "server/api.h"
#include "server/fakes_for_test.h"

namespace kvrm {
namespace {

struct PemFiles {
  std::string certificate;
  std::string key;
};

PemFiles MakeCertificate(const std::string& name) {
  PemFiles files{testing::TempDir() + "/kvrm_tls_" + name + std::to_string(::getpid()) + ".crt",
                 testing::TempDir() + "/kvrm_tls_" + name + std::to_string(::getpid()) + ".key"};
  EVP_PKEY* key = ::EVP_EC_gen("P-256");
  X509* certificate = ::X509_new();
  ::X509_set_version(certificate, 2);
  ::ASN1_INTEGER_set(::X509_get_serialNumber(certificate), 1);
  ::X509_gmtime_adj(::X509_getm_notBefore(certificate), -3600);
  ::X509_gmtime_adj(::X509_getm_notAfter(certificate), 3600);
  ::X509_set_pubkey(certificate, key);
  X509_NAME* subject = ::X509_get_subject_name(certificate);
  ::X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC,
                               reinterpret_cast<const unsigned char*>("localhost"), -1, -1, 0);
  ::X509_set_issuer_name(certificate, subject);
  ::X509_sign(certificate, key, ::EVP_sha256());
  FILE* file = std::fopen(files.certificate.c_str(), "w");
  CHECK(file != nullptr && ::PEM_write_X509(file, certificate) == 1);
  std::fclose(file);
  file = std::fopen(files.key.c_str(), "w");
  CHECK(file != nullptr &&
        ::PEM_write_PrivateKey(file, key, nullptr, nullptr, 0, nullptr, nullptr) == 1);
  std::fclose(file);
  ::X509_free(certificate);
  ::EVP_PKEY_free(key);
  return files;
}

// Blocking, ten seconds at most.
class TlsClient {
 public:
  TlsClient(std::uint16_t port, int version) : context_(::SSL_CTX_new(::TLS_client_method())) {
    ::SSL_CTX_set_min_proto_version(context_, version);
    ::SSL_CTX_set_max_proto_version(context_, version);
    ::SSL_CTX_set_security_level(context_, 0);  // so that old versions are at least offered
    ssl_ = ::SSL_new(context_);
    fd_ = ConnectLoopback(port);
    ::SSL_set_fd(ssl_, fd_);
    connected_ = ::SSL_connect(ssl_) == 1;
  }
  ~TlsClient() {
    ::SSL_free(ssl_);
    ::SSL_CTX_free(context_);
    ::close(fd_);
  }
  TlsClient(const TlsClient&) = delete;
  TlsClient& operator=(const TlsClient&) = delete;

  bool connected() const { return connected_; }
  std::string version() const { return ::SSL_get_version(ssl_); }
  bool Send(std::string_view bytes) {
    return ::SSL_write(ssl_, bytes.data(), static_cast<int>(bytes.size())) ==
           static_cast<int>(bytes.size());
  }
  // Until `mark` has come or the server ends.
  std::string ReadUntil(std::string_view mark) {
    std::string all;
    char bytes[4096];
    while (all.find(mark) == std::string::npos) {
      const int count = ::SSL_read(ssl_, bytes, sizeof bytes);
      if (count <= 0) break;
      all.append(bytes, static_cast<std::size_t>(count));
    }
    return all;
  }

 private:
  static int ConnectLoopback(std::uint16_t port) {
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const timeval limit{.tv_sec = 10, .tv_usec = 0};
    ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    return fd;
  }

  SSL_CTX* context_;
  SSL* ssl_ = nullptr;
  int fd_ = -1;
  bool connected_ = false;
};

class TlsServerTest : public testing::Test {
 protected:
  void SetUp() override {
    SetLogLevel(LogLevel::kError);
    const PemFiles files = MakeCertificate("server");
    ServerOptions options;
    options.port = 0;
    options.http.tick_ms = 2;
    options.http.tls_certificate_file = files.certificate;
    options.http.tls_key_file = files.key;
    server_ = std::make_unique<Server>(engine_.Port(), FakeModel(), options, clock_);
    port_ = server_->Listen();
    server_->Start();
  }

  FakeClock clock_;
  FakeEngine engine_;
  std::unique_ptr<Server> server_;
  std::uint16_t port_ = 0;
};

TEST_F(TlsServerTest, SpeaksTwelveAndThirteenAndNothingOlder) {
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    TlsClient client(port_, version);
    ASSERT_TRUE(client.connected());
    EXPECT_EQ(client.version(), version == TLS1_2_VERSION ? "TLSv1.2" : "TLSv1.3");
    for (int i = 0; i < 3; ++i) {  // The connection is kept.
      ASSERT_TRUE(client.Send(GetText("/health")));
      EXPECT_TRUE(client.ReadUntil("\"ok\"}").starts_with("HTTP/1.1 200 OK\r\n"));
    }
  }
  TlsClient old(port_, TLS1_1_VERSION);
  EXPECT_FALSE(old.connected());
  TlsClient client(port_, TLS1_3_VERSION);
  EXPECT_TRUE(client.connected());
}

TEST_F(TlsServerTest, BodiesOfManyRecordsAndStreamsGoThrough) {
  TlsClient client(port_, TLS1_3_VERSION);
  const std::string body =
      R"({"prompt":")" + std::string(900, 'a') + R"(","stream":true})" + std::string(3u << 20, ' ');
  const std::string request = PostText("/v1/completions", body);
  for (std::size_t at = 0; at < request.size(); at += 16000)
    ASSERT_TRUE(client.Send(request.substr(at, 16000)));
  ASSERT_TRUE(WaitFor([&] { return engine_.num_submitted() == 1; }));
  EXPECT_EQ(engine_.request(0).prompt.size(), 900u);
  std::string sent;
  for (int i = 0; i < 500; ++i)
    sent += static_cast<char>('a' + i % 26);
  engine_.SendText(FakeEngine::IdOf(0), sent);
  engine_.Send(FakeEngine::IdOf(0), kFakeEos, FinishReason::kStop);
  const std::string answer = client.ReadUntil("[DONE]");
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 200 OK\r\n"));
  EXPECT_NE(answer.find("[DONE]"), std::string::npos);
}

TEST_F(TlsServerTest, PlainBytesAndHalfHandshakesHarmNobody) {
  TestClient plain(port_);
  plain.Send(GetText("/health"));
  EXPECT_EQ(plain.ReadAll().find("HTTP/1.1"), std::string::npos);
  TestClient half(port_);
  half.Send(std::string("\x16\x03\x01\x02\x00\x01", 6));
  TestClient silent(port_);
  TlsClient client(port_, TLS1_3_VERSION);
  ASSERT_TRUE(client.Send(GetText("/health")));
  EXPECT_NE(client.ReadUntil("ok").find("200 OK"), std::string::npos);
  clock_.AdvanceMs(10001);
  EXPECT_TRUE(half.closed_by_server());
  EXPECT_TRUE(silent.closed_by_server());
  server_->Stop();
  EXPECT_EQ(server_->stats().http.num_tls_failures, 1u);
}

TEST_F(TlsServerTest, AClientThatLeavesIsCancelled) {
  {
    TlsClient client(port_, TLS1_3_VERSION);
    ASSERT_TRUE(client.Send(PostText("/v1/completions", R"({"prompt":"a"})")));
    ASSERT_TRUE(WaitFor([&] { return engine_.num_submitted() == 1; }));
  }
  EXPECT_TRUE(WaitFor([&] { return engine_.cancelled(FakeEngine::IdOf(0)); }));
}

TEST(TlsContext, SaysWhatIsWrongWithTheFiles) {
  const PemFiles one = MakeCertificate("one");
  const PemFiles other = MakeCertificate("other");
  EXPECT_THROW(TlsContext(one.certificate + ".absent", one.key), StartError);
  EXPECT_THROW(TlsContext(one.certificate, one.certificate), StartError);
  EXPECT_THROW(TlsContext(one.certificate, other.key), StartError);
  EXPECT_NO_THROW(TlsContext(one.certificate, one.key));
}

}  // namespace
}  // namespace kvrm
