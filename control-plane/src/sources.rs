//! Where documents come from. Each source feeds one stream of worlds, newest wins.

pub mod folder;
pub(crate) mod yaml;
