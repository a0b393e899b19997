// SPDX-License-Identifier: Apache-2.0
// TLS of a server's side: OpenSSL over sockets that never block.
//
// TlsContext is a certificate and its key; TlsSession is one connection. A verb does what it can
// at once and says what it waits for, so a connection is driven by readiness as without TLS: no
// operation in flight holds a buffer, and every deadline and limit of the owner stays as it is.
//
// TLS 1.2 and 1.3 with forward secrecy and AEAD ciphers only; no renegotiation, no compression, no
// tickets. Client certificates are not asked for.
//
// Threading: a context may serve several threads, a session one. Memory: OpenSSL's, about 8 KiB a
// session while it is idle and 16 KiB more for the record in work.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace kvrm {

class TlsContext {
 public:
  // Files in PEM: the chain, leaf first, and its key. Throws StartError. SIGPIPE is ignored by the
  // whole process from here on: OpenSSL writes to sockets whose peer may have gone.
  TlsContext(const std::string& certificate_file, const std::string& key_file);
  ~TlsContext();
  TlsContext(const TlsContext&) = delete;
  TlsContext& operator=(const TlsContext&) = delete;

 private:
  friend class TlsSession;
  struct State;
  std::unique_ptr<State> state_;
};

enum class IoState {
  kDone,       // num_bytes were moved, at least one
  kWantRead,   // call again when the socket is readable
  kWantWrite,  // call again when it is writable
  kEnd,        // The peer has said that it sends no more.
  kFailed,     // The connection is of no more use.
};

struct IoResult {
  IoState state = IoState::kFailed;
  std::size_t num_bytes = 0;
};

class TlsSession {
 public:
  // `socket` does not block and stays the caller's. Throws std::bad_alloc.
  TlsSession(const TlsContext& context, int socket);
  ~TlsSession();
  TlsSession(const TlsSession&) = delete;
  TlsSession& operator=(const TlsSession&) = delete;

  // kDone: Read and Write may be called.
  IoState Handshake();
  IoResult Read(std::span<char> buffer);
  // After kWant...: the same bytes again, or more; they may have moved.
  IoResult Write(std::string_view bytes);
  // Says that no more comes; does not wait for the peer to say so too.
  void EndSending();

 private:
  IoState StateOf(int result);
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kvrm
