// SPDX-License-Identifier: Apache-2.0
#include "server/tls.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>

#include <algorithm>
#include <climits>
#include <new>

#include "base/result.h"

namespace kvrm {
namespace {

// Forward secrecy and AEAD; TLS 1.3 has nothing else.
constexpr const char* kCiphers12 = "ECDHE+AESGCM:ECDHE+CHACHA20";

std::string LastError() {
  const unsigned long code = ::ERR_get_error();
  ::ERR_clear_error();
  if (code == 0) return "no reason given";
  const char* reason = ::ERR_reason_error_string(code);
  return reason != nullptr ? reason : "error " + std::to_string(code);
}

// A key with a passphrase would make OpenSSL ask on the terminal.
int RefusePassphrase(char*, int, int, void*) {
  return 0;
}

}  // namespace

struct TlsContext::State {
  ~State() { ::SSL_CTX_free(context); }
  SSL_CTX* context = nullptr;
};

struct TlsSession::State {
  ~State() { ::SSL_free(ssl); }
  SSL* ssl = nullptr;
};

TlsContext::TlsContext(const std::string& certificate_file, const std::string& key_file)
    : state_(std::make_unique<State>()) {
  ::signal(SIGPIPE, SIG_IGN);
  SSL_CTX* context = ::SSL_CTX_new(::TLS_server_method());
  if (context == nullptr) throw StartError("TLS: " + LastError());
  state_->context = context;
  ::SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  ::SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                     SSL_OP_NO_TICKET | SSL_OP_CIPHER_SERVER_PREFERENCE |
                                     SSL_OP_IGNORE_UNEXPECTED_EOF);
  ::SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                  SSL_MODE_RELEASE_BUFFERS);
  ::SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  ::SSL_CTX_set_num_tickets(context, 0);
  ::SSL_CTX_set_default_passwd_cb(context, RefusePassphrase);
  if (::SSL_CTX_set_cipher_list(context, kCiphers12) != 1) {
    throw StartError("TLS ciphers: " + LastError());
  }
  if (::SSL_CTX_use_certificate_chain_file(context, certificate_file.c_str()) != 1) {
    throw StartError("cannot read the certificate " + certificate_file + ": " + LastError());
  }
  if (::SSL_CTX_use_PrivateKey_file(context, key_file.c_str(), SSL_FILETYPE_PEM) != 1) {
    throw StartError("cannot read the key " + key_file + ": " + LastError());
  }
  if (::SSL_CTX_check_private_key(context) != 1) {
    throw StartError("the key " + key_file + " is not that of the certificate " + certificate_file);
  }
}

TlsContext::~TlsContext() = default;

TlsSession::TlsSession(const TlsContext& context, int socket) : state_(std::make_unique<State>()) {
  state_->ssl = ::SSL_new(context.state_->context);
  if (state_->ssl == nullptr || ::SSL_set_fd(state_->ssl, socket) != 1) throw std::bad_alloc();
  ::SSL_set_accept_state(state_->ssl);
}

TlsSession::~TlsSession() = default;

IoState TlsSession::StateOf(int result) {
  switch (::SSL_get_error(state_->ssl, result)) {
    case SSL_ERROR_WANT_READ:
      return IoState::kWantRead;
    case SSL_ERROR_WANT_WRITE:
      return IoState::kWantWrite;
    case SSL_ERROR_ZERO_RETURN:
      return IoState::kEnd;
    default:
      ::ERR_clear_error();
      return IoState::kFailed;
  }
}

IoState TlsSession::Handshake() {
  ::ERR_clear_error();
  const int result = ::SSL_do_handshake(state_->ssl);
  return result == 1 ? IoState::kDone : StateOf(result);
}

IoResult TlsSession::Read(std::span<char> buffer) {
  ::ERR_clear_error();
  const int size = static_cast<int>(std::min<std::size_t>(buffer.size(), INT_MAX));
  const int result = ::SSL_read(state_->ssl, buffer.data(), size);
  if (result > 0) return {IoState::kDone, static_cast<std::size_t>(result)};
  return {StateOf(result), 0};
}

IoResult TlsSession::Write(std::string_view bytes) {
  ::ERR_clear_error();
  const int size = static_cast<int>(std::min<std::size_t>(bytes.size(), INT_MAX));
  const int result = ::SSL_write(state_->ssl, bytes.data(), size);
  if (result > 0) return {IoState::kDone, static_cast<std::size_t>(result)};
  return {StateOf(result), 0};
}

void TlsSession::EndSending() {
  ::ERR_clear_error();
  ::SSL_shutdown(state_->ssl);
  ::ERR_clear_error();
}

}  // namespace kvrm
