//! Leno's control plane, and the operator's command line.
//!
//! The life of a policy: [`sources`] read documents → [`model`] parses them into a [`model::World`], typed
//! and validated, with a generation for each object → [`compile`] turns world and subscriber into resources (a pure
//! function) → [`serve`] streams what changed to the proxies that subscribed, and tracks their verdicts.
//!
//! Beside it: [`api`] holds our own kinds as authors write them, [`authority`] issues certificates, [`operator`] answers `leno get`, `leno wait` and friends
//! over a Unix socket or, in a Pod, its loopback, [`cli`] asks. [`kubernetes`] is what a cluster adds: identity by TokenReview, the root's Secret, leadership, status.

pub mod api;
pub mod authority;
pub mod cli;
pub mod compile;
pub mod kubernetes;
pub mod model;
pub mod operator;
pub mod serve;
pub mod sources;
pub mod webhook;
