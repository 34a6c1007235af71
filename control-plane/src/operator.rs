//! Answers operators over a Unix socket.
