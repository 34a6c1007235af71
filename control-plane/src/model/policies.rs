//! Which policy is in force where (GEP-713, direct policies), and what every policy is told about it.
//!
//! For one place, an object or a section of it, the oldest policy of a kind is in force; one for a section goes before one
//! for the whole object.

mod inbound;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    Condition, Kind, ObjectKey,
    index::{self, Objects},
    object::Rules,
    policy::{Fallback, Policy, PolicySpec, RoutePolicy, Target},
    routes,
};

/// The policy of each section; None: of the whole.
type Sections = BTreeMap<Option<Arc<str>>, ObjectKey>;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct PolicyIndex {
    /// By kind of policy and target.
    in_force: HashMap<(Kind, ObjectKey), Sections>,
    pub(crate) conditions: BTreeMap<ObjectKey, Vec<Condition>>,
}

impl PolicyIndex {
    pub(crate) fn build(objects: &Objects) -> Self {
        let keys = objects.keys().filter(|key| key.kind.is_policy());
        let mut policies: Vec<(&ObjectKey, &Policy)> =
            keys.filter_map(|key| Some((key, index::policy(objects, key)?))).collect();
        // Without a time of creation: after those that have one.
        policies.sort_by_key(|(key, policy)| {
            (policy.created.is_none(), policy.created.clone(), key.namespace.clone(), key.name.clone())
        });
        let mut index = Self::default();
        for (key, policy) in &policies {
            for target in policy.targets.iter().filter(|target| missing(objects, target).is_none()) {
                let at = index.in_force.entry((key.kind, target.object.clone())).or_default();
                at.entry(target.section.clone()).or_insert_with(|| (*key).clone());
            }
        }
        for (key, policy) in policies {
            let accepted = policy.targets.iter().map(|target| index.accepted(objects, key, target));
            let conditions = accepted.chain(unresolved(objects, policy)).collect();
            index.conditions.insert(key.clone(), conditions);
        }
        index
    }

    /// The policy of a kind for a section of an object.
    pub(crate) fn at(&self, kind: Kind, object: &ObjectKey, section: &str) -> Option<&ObjectKey> {
        let sections = self.in_force.get(&(kind, object.clone()))?;
        sections.get(&Some(section.into())).or_else(|| sections.get(&None))
    }

    fn accepted(&self, objects: &Objects, key: &ObjectKey, target: &Target) -> Condition {
        let (status, reason, message) = match missing(objects, target) {
            Some(message) => (false, "TargetNotFound", message),
            None => self.precedence(objects, key, target),
        };
        let mut parent = target.object.to_string();
        if let Some(section) = &target.section {
            parent.push_str(&format!(":{section}"));
        }
        Condition { kind: "Accepted", status, reason: reason.to_owned(), message, parent: Some(parent) }
    }

    fn precedence(&self, objects: &Objects, key: &ObjectKey, target: &Target) -> (bool, &'static str, String) {
        let Some(sections) = self.in_force.get(&(key.kind, target.object.clone())) else {
            return (true, "Accepted", String::new());
        };
        if let Some(winner) = sections.get(&target.section).filter(|winner| *winner != key) {
            return (false, "Conflicted", format!("{winner} {}, and is in force", why_first(objects, winner, key)));
        }
        let others = sections.iter().filter(|(section, policy)| section.is_some() && *policy != key);
        let overridden: Vec<String> =
            others.filter_map(|(section, policy)| Some(format!("{}: {policy}", section.as_deref()?))).collect();
        let mut message = Vec::new();
        if target.section.is_none() && !overridden.is_empty() {
            message.push(format!("not in force where another is more specific: {}", overridden.join("; ")));
        }
        let said = said_by_route(objects, key, target);
        if !said.is_empty() {
            message.push(format!("the route says itself: {}", said.join("; ")));
        }
        (true, "Accepted", message.join(". "))
    }
}

/// Why one of two policies for the same place goes before the other.
fn why_first(objects: &Objects, first: &ObjectKey, other: &ObjectKey) -> &'static str {
    let created = |key| index::policy(objects, key).and_then(|policy| policy.created.clone());
    match (created(first), created(other)) {
        (Some(first), Some(other)) if first < other => "is older",
        (Some(_), None) => "alone has a creationTimestamp",
        _ => "goes first by its name",
    }
}

/// What of a RoutePolicy has no effect, because rules say it themselves: "rule cart: retry, timeouts.request".
fn said_by_route(objects: &Objects, key: &ObjectKey, target: &Target) -> Vec<String> {
    let policy = index::policy(objects, key).map(|policy| &policy.spec);
    let rules = index::route(objects, &target.object).map(|route| &route.rules);
    let (Some(PolicySpec::Route(policy)), Some(Rules::Http(rules))) = (policy, rules) else { return Vec::new() };
    let concerned = rules.iter().filter(|rule| target.section.as_ref().is_none_or(|section| *section == rule.name));
    let said = concerned.filter_map(|rule| {
        let fields = [
            ("retry", policy.retry.is_some() && rule.retry.is_some()),
            ("timeouts.request", policy.request_timeout.is_some() && rule.request_timeout.is_some()),
            (
                "timeouts.backendRequest",
                policy.backend_request_timeout.is_some() && rule.backend_request_timeout.is_some(),
            ),
        ];
        let said: Vec<&str> = fields.into_iter().filter(|(_, both)| *both).map(|(field, _)| field).collect();
        (!said.is_empty()).then(|| format!("rule {}: {}", rule.name, said.join(", ")))
    });
    said.collect()
}

/// What is said of a fallback that names nothing that could serve.
fn unresolved(objects: &Objects, policy: &Policy) -> Option<Condition> {
    let PolicySpec::Route(RoutePolicy { fallback: Some(Fallback::Backend(target)), .. }) = &policy.spec else {
        return None;
    };
    let (reason, message) = routes::resolve(objects, target).err()?;
    let (kind, reason) = ("ResolvedRefs", reason.to_owned());
    Some(Condition { kind, status: false, reason, message: format!("spec.fallback: {message}"), parent: None })
}

/// Why a target does not exist.
fn missing(objects: &Objects, target: &Target) -> Option<String> {
    let Target { object, section } = target;
    let sections: Option<Vec<Arc<str>>> = match object.kind {
        Kind::Service => {
            let service = index::service(objects, object);
            service.map(|service| service.ports.iter().map(|port| port.name.clone()).collect())
        }
        _ => index::route(objects, object).map(|route| match &route.rules {
            Rules::Http(rules) => rules.iter().map(|rule| rule.name.clone()).collect(),
            Rules::Tls { .. } | Rules::Tcp { .. } => Vec::new(),
        }),
    };
    let Some(sections) = sections else { return Some(format!("{object} does not exist")) };
    let section = section.as_ref().filter(|section| !sections.contains(section))?;
    // Of a bad route only what its traffic is was read.
    if let Some(because) = index::route(objects, object).and_then(|route| route.refused.as_ref()) {
        return Some(format!("{object} is refused: {because}"));
    }
    let what = if object.kind == Kind::Service { "port" } else { "rule" };
    Some(format!("{object} has no {what} named {section:?}"))
}

#[cfg(test)]
mod tests;
