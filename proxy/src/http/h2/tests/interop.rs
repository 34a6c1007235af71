//! Against other implementations.
