//! Whom a request's session is with, found out as the request's way does ([`crate::outbound`]).

use std::{
    net::SocketAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use super::{Explainer, changed, name_of};
use crate::{
    http::{head::RequestHead, persistence::Persistence},
    policy::{
        HttpAction,
        http_route::HttpBackend,
        says::{By, Caller, Said},
        share::percent,
    },
    upstream::outlier::Health,
};

/// Where a session stays.
pub(super) struct Stays<'a> {
    entry: &'a HttpBackend,
    address: SocketAddr,
}

impl Explainer<'_> {
    /// Where the session of a request stays, if it has one. What the rule says goes before what its backends say.
    pub(super) fn session<'a>(&mut self, action: &'a HttpAction, head: &RequestHead) -> Option<Stays<'a>> {
        if let Some(persistence) = &action.persistence {
            return self.kept(persistence, By::Rule(&action.origin), None, action, head);
        }
        action.backends.iter().find_map(|(_, entry)| {
            let persistence = entry.persistence.as_deref()?;
            self.kept(persistence, action.session_by(entry), Some(entry), action, head)
        })
    }

    /// By one way of keeping sessions; `only`: with that backend.
    fn kept<'a>(
        &mut self,
        persistence: &Persistence,
        by: By<'_>,
        only: Option<&HttpBackend>,
        action: &'a HttpAction,
        head: &RequestHead,
    ) -> Option<Stays<'a>> {
        if !persistence.is_carried(&head.fields) {
            return None;
        }
        let (carrier, snapshot, moment) = (&persistence.carrier, self.snapshot, self.now);
        let mut tell = |applies, text| self.said(vec![Said { subject: "session", applies, text, by }]);
        let Some(key) = snapshot.settings.as_ref().and_then(|settings| settings.session_key.as_ref()) else {
            tell(false, "the control plane gave no key to keep sessions with: balanced".to_owned());
            return None;
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let Some(session) = persistence.read(key, &head.fields, now) else {
            tell(false, format!("what its {carrier} says cannot be read, or has expired: balanced anew"));
            return None;
        };
        let of_session = |entry: &&HttpBackend| {
            entry.backend.as_ref().is_ok_and(|backend| session.is_with_backend(&backend.key))
                && only.is_none_or(|only| std::ptr::eq(only, *entry))
        };
        let entry = action.backends.iter().map(|(_, entry)| entry).find(of_session);
        let endpoint = entry.and_then(|entry| {
            let set = entry.backend.as_ref().ok()?.endpoints.load();
            // As `Upstreams::serves`: where new sessions may begin, one stays while endpoints are merely kept.
            let there = !set.is_stale(moment) && (set.kept_until.is_none() || action.backends.takes_new(entry));
            let endpoint = set.endpoints.iter().filter(|_| there).find(|one| one.address == session.address)?;
            let serves = endpoint.outlier.health(moment) == Health::InService;
            (serves && session.is_with_workload(&endpoint.name())).then(|| name_of(endpoint))
        });
        match (entry, endpoint) {
            (Some(entry), Some(endpoint)) => {
                tell(true, format!("by its {carrier} this one goes to {endpoint}"));
                Some(Stays { entry, address: session.address })
            }
            // It may be another backend's.
            (None, _) if only.is_some() => None,
            _ => {
                let address = session.address;
                tell(
                    false,
                    format!("by its {carrier} it is with {address}, which serves no backend here: balanced anew"),
                );
                None
            }
        }
    }

    /// All that is told of the backends of a request that stays with one of them, whatever their weights. `total`: these together.
    pub(super) fn of_session(&mut self, stays: &Stays<'_>, total: u64, action: &HttpAction, head: &RequestHead) {
        let Stays { entry, address } = stays;
        for (weight, other) in action.backends.iter().filter(|(_, other)| !std::ptr::eq(other, *entry)) {
            if let Ok(to) = &other.backend {
                let share = percent((*weight).into(), total);
                let text = format!("{} gets {share} of those without a session", to.key);
                self.by("backend", false, text, &action.origin);
            }
        }
        let Ok(to) = &entry.backend else { return };
        let by = action.session_by(entry);
        self.said(vec![Said { subject: "backend", applies: true, text: format!("{}, by its session", to.key), by }]);
        self.changes(&entry.filters, &action.origin);
        let head = changed(head, &[&action.filters, &entry.filters]);
        let caller = Caller::Request(Some(action));
        self.backend(to, (caller, Some(&head)), action.fallback.as_deref(), Some(*address));
    }
}
