//! Memory that only the start needed. Most of an idle sidecar's resident memory is program code that ran once:
//! parsing flags, making keys, the first connection. Once ready, the proxy gives those pages back; what is needed
//! again comes back from the page cache, where all sidecars of a machine share it.

#![allow(unsafe_code, reason = "madvise has no safe form")]

use std::{fs, time::Duration};

use tokio::time;

use super::Shared;

/// How often readiness is looked at while the proxy starts.
const POLL: Duration = Duration::from_millis(20);

/// Waits until the proxy is ready, and gives back what only that took.
pub(super) async fn shrink_when_ready(shared: Shared) {
    shared.credentials.ready().await;
    while !shared.policy.is_ready() {
        time::sleep(POLL).await;
    }
    let mappings = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    for (start, length) in clean_file_mappings(&mappings) {
        // SAFETY: the range is a mapping of a file that cannot be written through and holds no page of its own
        // (`Anonymous: 0 kB`). Dropping its pages loses nothing: the next access reads the same bytes from the file.
        let result = unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
        if result != 0 {
            // It was an offer; nothing depends on it.
            tracing::debug!("madvise: {}", std::io::Error::last_os_error());
        }
    }
}

/// Start and length of the mappings, out of `/proc/self/smaps`, that are read-only, of a file, and without a page
/// that differs from the file's.
fn clean_file_mappings(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        if let Some(mapping) = parse_header(line) {
            candidate = mapping;
        } else if let Some(anonymous) = line.strip_prefix("Anonymous:") {
            found.extend(candidate.take().filter(|_| anonymous.trim() == "0 kB"));
        }
    }
    found
}

/// "55d0-55d8 r-xp 00001000 fe:00 123   /usr/bin/leno-proxy": Some(its range) if it is a read-only file mapping,
/// Some(None) if it is another mapping, None if the line begins none.
fn parse_header(line: &str) -> Option<Option<(usize, usize)>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    let permissions = fields.next()?;
    let is_file = fields.nth(3).is_some_and(|path| path.starts_with('/'));
    let is_read_only = matches!(permissions, "r-xp" | "r--p");
    let range = (start, end.checked_sub(start)?);
    Some((is_file && is_read_only).then_some(range))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clean_read_only_mappings_of_files() {
        let smaps = "\
            1000-2000 r--p 00000000 fe:00 12                    /usr/bin/leno-proxy\nRss: 4 kB\nAnonymous:             0 kB\n\
            2000-5000 r-xp 00001000 fe:00 12                    /usr/bin/leno-proxy\nAnonymous:             0 kB\n\
            5000-6000 r--p 00004000 fe:00 12                    /usr/bin/leno-proxy\nAnonymous:             4 kB\n\
            6000-7000 rw-p 00005000 fe:00 12                    /usr/bin/leno-proxy\nAnonymous:             0 kB\n\
            7000-8000 rw-p 00000000 00:00 0                     [heap]\nAnonymous:             0 kB\n\
            8000-9000 r-xp 00000000 00:00 0                     [vdso]\nAnonymous:             0 kB\n";
        assert_eq!(clean_file_mappings(smaps), [(0x1000, 0x1000), (0x2000, 0x3000)]);
    }

    #[test]
    fn this_process_survives_it() {
        let mappings = fs::read_to_string("/proc/self/smaps").unwrap();
        assert!(!clean_file_mappings(&mappings).is_empty());
    }
}
