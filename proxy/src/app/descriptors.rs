//! File descriptors: as many as the process may have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::descriptor_limits;

/// Raises the soft limit to the hard one, where that is allowed. What the limit is then; None: there is none.
pub(super) fn raise() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!("the limit of open files stays at {current:?}, although {maximum:?} is allowed: {error}");
    }
    descriptor_limits().map(|(soft, _)| soft)
}
