//! The status of routes and policies, as Gateway API words it: `status.parents[]` of routes, `status.ancestors[]` of policies,
//! with `Accepted`, `ResolvedRefs`, and `leno.dev/Programmed`, which says how many of the proxies that an object concerns run
//! this generation, and names those that do not.
//!
//! Here is what an object is to be told, pure: [`Verdict`] from what the model and the proxies say, and [`patch`] from that and
//! the object as the API server has it. Entries of other controllers are never touched, wherever they are in the list.
//! [`writer`] writes it.

use std::{fmt::Write as _, sync::Arc};

use leno_proto::v1::Laggard;
use serde_json::{Value, json};

use super::CONTROLLER_NAME;
use crate::model::{Condition, DocumentError, Kind, ObjectInfo, Route};

mod plan;
pub mod writer;

/// Laggards that are named.
pub(super) const NAMED: usize = 10;
/// Parents that Gateway API lets a route have, and ancestors that it lets a policy have.
const PARENTS: usize = 32;
const ANCESTORS: usize = 16;
/// Longest message, in characters; Gateway API takes 32,768.
const MESSAGE: usize = 2048;

/// What proxies say of one generation of an object.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Standing {
    pub subscribed: u32,
    pub programmed: u32,
    pub laggards: Vec<Laggard>,
    /// Of the laggards, those that have not come since a control plane started: they may run it.
    pub awaited: u32,
    /// Replicas of the control plane that do not say what their proxies run.
    pub silent: Vec<Arc<str>>,
    /// Every connected proxy has been compared with this generation.
    pub settled: bool,
}

/// What an object is to be told.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// The generation that it is about; None: of the document that was refused, whichever that is.
    pub generation: Option<u64>,
    /// Of the object that it is about; empty: of whichever has the name.
    pub uid: Arc<str>,
    pub conditions: Vec<Condition>,
    /// None: the object is ours no more, and what it was told is taken back.
    programmed: Option<Programmed>,
}

#[derive(Debug, Clone, PartialEq)]
struct Programmed {
    status: &'static str,
    reason: &'static str,
    message: String,
}

impl Verdict {
    /// Of an object that is in force.
    pub fn in_force(info: &ObjectInfo, standing: &Standing) -> Self {
        Self {
            generation: Some(info.generation),
            uid: Arc::clone(&info.uid),
            conditions: info.conditions.clone(),
            programmed: Some(programmed(info.generation, standing)),
        }
    }

    /// Of an object that is no longer for us to serve.
    pub fn withdrawn() -> Self {
        Self { generation: None, uid: Arc::default(), conditions: Vec::new(), programmed: None }
    }

    /// Of an object whose document is bad; `in_force`: what is served of it all the same.
    pub fn refused(errors: &[&DocumentError], in_force: Option<&ObjectInfo>) -> Self {
        let said = errors.iter().map(|error| match error.field.as_str() {
            "" => error.reason.clone(),
            field => format!("{field}: {}", error.reason),
        });
        let mut message = said.collect::<Vec<_>>().join("; ");
        let stays = match in_force {
            Some(held_over) if held_over.held_over => {
                format!("generation {} stays in force until the control plane starts anew", held_over.generation)
            }
            Some(_) => Route::REFUSED.to_owned(),
            None => "nothing of it is in force".to_owned(),
        };
        let _ = write!(message, " ({stays})");
        let accepted =
            Condition { kind: "Accepted", status: false, reason: "UnsupportedValue".to_owned(), message, parent: None };
        let programmed = Programmed { status: "False", reason: "NotAccepted", message: stays };
        let generation = errors.iter().filter_map(|error| error.generation).max();
        Self { generation, uid: Arc::default(), conditions: vec![accepted], programmed: Some(programmed) }
    }
}

fn programmed(generation: u64, standing: &Standing) -> Programmed {
    let Standing { subscribed, programmed, laggards, awaited, silent, settled } = standing;
    let count = format!("{programmed} of {subscribed} subscribed proxies run generation {generation}");
    if !silent.is_empty() {
        let message = format!("{count}; not heard of: what the proxies of {} run", silent.join(", "));
        return Programmed { status: "Unknown", reason: "ReplicaSilent", message };
    }
    if !settled {
        return Programmed { status: "Unknown", reason: "Pending", message: format!("{count}; more may be concerned") };
    }
    if *awaited > 0 && programmed.saturating_add(*awaited) >= *subscribed {
        let names: Vec<&str> = laggards.iter().take(NAMED).map(|laggard| laggard.proxy.as_str()).collect();
        let message = format!("{count}; not back since the control plane started: {}", named(&names, *awaited));
        return Programmed { status: "Unknown", reason: "ProxiesAwaited", message };
    }
    if laggards.is_empty() && programmed == subscribed {
        return match subscribed {
            0 => Programmed {
                status: "True",
                reason: "NotSubscribed",
                message: "no proxy has asked for anything that this shapes".to_owned(),
            },
            _ => Programmed { status: "True", reason: "Programmed", message: count },
        };
    }
    let mut message = format!("{count}; lagging: ");
    for (index, laggard) in laggards.iter().take(NAMED).enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        let Laggard { proxy, reason, message: why, .. } = laggard;
        let _ = match why.as_str() {
            "" => write!(message, "{separator}{proxy} ({reason})"),
            why => write!(message, "{separator}{proxy} ({reason}: {why})"),
        };
    }
    let lagging = usize::try_from(subscribed.saturating_sub(*programmed)).unwrap_or(usize::MAX);
    let unnamed = lagging.saturating_sub(laggards.len().min(NAMED));
    if unnamed > 0 {
        let _ = write!(message, ", and {unnamed} more");
    }
    let reason = if *programmed == 0 { "Pending" } else { "PartiallyProgrammed" };
    Programmed { status: "False", reason, message }
}

/// "a, b, and 3 more"
fn named(names: &[&str], of: u32) -> String {
    match usize::try_from(of).unwrap_or(usize::MAX).saturating_sub(names.len()) {
        0 => names.join(", "),
        more => format!("{}, and {more} more", names.join(", ")),
    }
}

/// What to change in `object`, as the API server has it, so that it is told `verdict`; None: nothing. A merge patch of the
/// status subresource that a change in between makes fail. `now`: RFC 3339.
pub fn patch(kind: Kind, object: &Value, verdict: &Verdict, now: &str) -> Option<Value> {
    let of_routes = kind.is_route();
    let (list, reference, most) =
        if of_routes { ("parents", "parentRef", PARENTS) } else { ("ancestors", "ancestorRef", ANCESTORS) };
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
    let mut ours: Vec<(Value, String)> = Vec::new();
    let stated = if of_routes { &object["spec"]["parentRefs"] } else { &object["spec"]["targetRefs"] };
    for stated in stated.as_array().into_iter().flatten().filter(|_| verdict.programmed.is_some()) {
        let (refer, text) = if of_routes { parent(stated, namespace) } else { ancestor(stated, namespace) };
        if text.starts_with("Service ") || !of_routes || verdict.concerns(&text) {
            ours.push((refer, text));
        }
    }
    let before = object["status"][list].as_array().cloned().unwrap_or_default();
    let mut after: Vec<Value> = Vec::new();
    let generation = verdict.generation.or_else(|| object["metadata"]["generation"].as_u64()).unwrap_or_default();
    let entry = |refer: &Value, text: &str, old: &Value| {
        json!({
            reference: refer,
            "controllerName": CONTROLLER_NAME,
            "conditions": conditions(verdict, text, generation, &old["conditions"], now),
        })
    };
    let mut told = vec![false; ours.len()];
    for old in &before {
        if old["controllerName"] != CONTROLLER_NAME {
            after.push(old.clone());
            continue;
        }
        let same = |(refer, _): &(Value, String)| identity(refer, namespace) == identity(&old[reference], namespace);
        let found = ours.iter().zip(&mut told).find(|(ours, told)| !**told && same(ours));
        if let Some(((refer, text), told)) = found {
            *told = true;
            after.push(entry(refer, text, old));
        }
    }
    for ((refer, text), _) in ours.iter().zip(told).filter(|(_, told)| !told) {
        if after.len() < most {
            after.push(entry(refer, text, &Value::Null));
        }
    }
    (after != before).then(|| {
        json!({
            "metadata": { "resourceVersion": object["metadata"]["resourceVersion"] },
            "status": { list: after },
        })
    })
}

impl Verdict {
    /// Whether something is said of that parent in particular.
    fn concerns(&self, parent: &str) -> bool {
        self.conditions.iter().any(|condition| condition.parent.as_deref() == Some(parent))
    }
}

/// The conditions of one entry. Times of those whose status did not change are kept.
fn conditions(verdict: &Verdict, parent: &str, generation: u64, before: &Value, now: &str) -> Vec<Value> {
    let mut all: Vec<(&str, &str, &str, String)> = Vec::new();
    let mut accepted = true;
    for condition in &verdict.conditions {
        let concerns = condition.parent.as_deref().is_none_or(|of| of == parent);
        if !concerns || all.iter().any(|(kind, ..)| *kind == condition.kind) {
            continue;
        }
        accepted &= condition.kind != "Accepted" || condition.status;
        let status = if condition.status { "True" } else { "False" };
        all.push((condition.kind, status, condition.reason.as_str(), condition.message.clone()));
    }
    match &verdict.programmed {
        Some(Programmed { status, reason, message }) if accepted => {
            all.push((PROGRAMMED, status, reason, message.clone()));
        }
        _ => all.push((PROGRAMMED, "False", "NotAccepted", "see Accepted".to_owned())),
    }
    let told = all.into_iter().map(|(kind, status, reason, message)| {
        let old = before.as_array().into_iter().flatten().find(|old| old["type"] == kind && old["status"] == status);
        let since = old.and_then(|old| old["lastTransitionTime"].as_str()).unwrap_or(now);
        json!({
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message.chars().take(MESSAGE).collect::<String>(),
            "observedGeneration": generation,
            "lastTransitionTime": since,
        })
    });
    told.collect()
}

/// How far an object has come.
pub const PROGRAMMED: &str = "leno.dev/Programmed";

/// As it is stated, and as the model's conditions name it.
fn parent(stated: &Value, namespace: &str) -> (Value, String) {
    let group = stated["group"].as_str().unwrap_or("gateway.networking.k8s.io");
    let kind = stated["kind"].as_str().unwrap_or("Gateway");
    let namespace = stated["namespace"].as_str().unwrap_or(namespace);
    let name = stated["name"].as_str().unwrap_or_default();
    let mut text = match (group, kind) {
        ("" | "core", kind) => format!("{kind} {namespace}/{name}"),
        _ => format!("{group}/{kind} {namespace}/{name}"),
    };
    match (stated["port"].as_u64(), stated["sectionName"].as_str()) {
        (Some(port), _) => drop(write!(text, ":{port}")),
        (None, Some(section)) => drop(write!(text, ":{section}")),
        (None, None) => {}
    }
    (stated.clone(), text)
}

/// A policy's target, as a parent reference.
fn ancestor(stated: &Value, namespace: &str) -> (Value, String) {
    let kind = stated["kind"].as_str().unwrap_or_default();
    let name = stated["name"].as_str().unwrap_or_default();
    let mut refer = json!({ "group": stated["group"], "kind": kind, "namespace": namespace, "name": name });
    let mut text = format!("{kind} {namespace}/{name}");
    if let Some(section) = stated["sectionName"].as_str() {
        refer["sectionName"] = json!(section);
        let _ = write!(text, ":{section}");
    }
    (refer, text)
}

/// What makes two references one, with what Gateway API defaults.
fn identity<'a>(refer: &'a Value, namespace: &'a str) -> ([Option<&'a str>; 5], Option<u64>) {
    let group = refer["group"].as_str().unwrap_or("gateway.networking.k8s.io");
    let names = [
        Some(if group == "core" { "" } else { group }),
        Some(refer["kind"].as_str().unwrap_or("Gateway")),
        Some(refer["namespace"].as_str().unwrap_or(namespace)),
        refer["name"].as_str(),
        refer["sectionName"].as_str(),
    ];
    (names, refer["port"].as_u64())
}

#[cfg(test)]
mod tests;
