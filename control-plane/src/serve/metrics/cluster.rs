//! What a cluster adds to the metrics: how each kind is watched, who leads, what is written, until when webhooks can be served.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::sync::watch;

use crate::{
    kubernetes::{lease::Leader, status::writer::Counts},
    sources::kubernetes::Contacts,
};

/// See the module.
pub struct ClusterView {
    pub contacts: Arc<Contacts>,
    pub leader: watch::Receiver<Leader>,
    pub status: Arc<Counts>,
    /// End of the certificate that webhooks are served with, Unix time; 0: there is none. None: there are no webhooks.
    pub webhook_not_after: Option<Arc<AtomicU64>>,
}

impl ClusterView {
    pub(super) fn render(&self, text: &mut String) {
        let head = |text: &mut String, kind: &str, name: &str, help: &str| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        let name = "leno_control_plane_watch_last_contact_timestamp_seconds";
        head(text, "gauge", name, "When the API server last said something of objects of a kind, Unix time; 0: never.");
        for (kind, contact) in self.contacts.all() {
            let _ = writeln!(text, "{name}{{kind=\"{kind}\"}} {}", contact.last());
        }
        let name = "leno_control_plane_watch_failures_total";
        head(text, "counter", name, "Lists and watches of a kind that failed.");
        for (kind, contact) in self.contacts.all() {
            let _ = writeln!(text, "{name}{{kind=\"{kind}\"}} {}", contact.failures());
        }
        let (written, failed) = self.status.get();
        let mut put = |kind: &str, name: &str, help: &str, value: u64| {
            head(text, kind, name, help);
            let _ = writeln!(text, "{name} {value}");
        };
        let leads = u64::from(self.leader.borrow().is_me);
        put("gauge", "leno_control_plane_is_leader", "1: this replica leads, and writes status.", leads);
        put("counter", "leno_control_plane_status_writes_total", "Statuses of routes and policies written.", written);
        put(
            "counter",
            "leno_control_plane_status_write_failures_total",
            "Statuses of routes and policies that could not be written; they are tried again.",
            failed,
        );
        if let Some(not_after) = &self.webhook_not_after {
            put(
                "gauge",
                "leno_control_plane_webhook_not_after_seconds",
                "End of the certificate that webhooks are served with, Unix time; 0: there is none.",
                not_after.load(Relaxed),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Kind;

    #[test]
    fn each_kind_has_its_contact_and_its_failures() {
        let contacts = Arc::new(Contacts::default());
        contacts.of(Kind::HttpRoute).failed();
        let leader = watch::Sender::new(Leader { is_me: true, name: "leno-1".into(), term: 1 });
        let not_after = Arc::new(AtomicU64::new(77));
        let view = ClusterView {
            contacts: Arc::clone(&contacts),
            leader: leader.subscribe(),
            status: Arc::default(),
            webhook_not_after: Some(not_after),
        };
        let mut text = String::new();
        view.render(&mut text);
        for line in [
            "leno_control_plane_watch_last_contact_timestamp_seconds{kind=\"HTTPRoute\"} 0",
            "leno_control_plane_watch_failures_total{kind=\"HTTPRoute\"} 1",
            "leno_control_plane_watch_failures_total{kind=\"Pod\"} 0",
            "leno_control_plane_is_leader 1",
            "leno_control_plane_webhook_not_after_seconds 77",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is not in {text}");
        }
        contacts.of(Kind::HttpRoute).heard();
        assert!(contacts.of(Kind::HttpRoute).last() > 0);
    }
}
