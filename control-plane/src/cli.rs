//! The commands of `leno`.
