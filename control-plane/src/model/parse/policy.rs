//! Policies of ours: what all kinds share. Each kind's own file reads its sections.

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{FieldError, Metadata, Wrong, refuse, typed, value};
use crate::{
    api::{self, DurationText, TargetRef},
    model::{
        Kind, ObjectKey,
        policy::{Policy, PolicySpec, Target, target_kinds},
    },
};

mod backend;
mod balancing;
mod fault;
mod inbound;
mod resilience;
mod route;
mod static_answer;

/// A policy, and its fields that have no effect.
pub(super) fn policy(key: &ObjectKey, metadata: &Metadata, content: &Value) -> Result<(Policy, Vec<String>), Wrong> {
    let mut wrong = Wrong::default();
    let (targets, spec, mut unknown) = match key.kind {
        Kind::RoutePolicy => {
            let (raw, unknown) = read::<api::RoutePolicySpec>(content)?;
            (raw.target_refs.clone(), PolicySpec::Route(wrong.note(route::route_policy(key, &raw))), unknown)
        }
        Kind::InboundPolicy => {
            let (raw, unknown) = read::<api::InboundPolicySpec>(content)?;
            (raw.target_refs.clone(), PolicySpec::Inbound(wrong.note(inbound::inbound_policy(&raw))), unknown)
        }
        Kind::BackendTrafficPolicy => {
            let (raw, unknown) = read::<api::BackendTrafficPolicySpec>(content)?;
            (raw.target_refs.clone(), PolicySpec::Traffic(wrong.note(resilience::traffic_policy(&raw))), unknown)
        }
        Kind::FaultPolicy => {
            let (raw, unknown) = read::<api::FaultPolicySpec>(content)?;
            (raw.target_refs.clone(), PolicySpec::Fault(wrong.note(fault::fault_policy(&raw))), unknown)
        }
        _ => {
            let (raw, unknown) = read::<api::BackendPolicySpec>(content)?;
            (raw.target_refs.clone(), PolicySpec::Backend(wrong.note(backend::backend_policy(&raw))), unknown)
        }
    };
    let targets = wrong.note(self::targets(key, &targets));
    let created = metadata.created(&mut unknown);
    wrong.or(Policy { created, targets, spec }).map(|policy| (policy, unknown))
}

#[derive(Deserialize)]
struct RawPolicy<S> {
    spec: S,
}

fn read<S: DeserializeOwned>(content: &Value) -> Result<(S, Vec<String>), FieldError> {
    let (raw, mut unknown) = typed::<RawPolicy<S>>(content)?;
    unknown.retain(|field| field.starts_with("spec."));
    Ok((raw.spec, unknown))
}

fn targets(policy: &ObjectKey, raw: &[TargetRef]) -> Result<Vec<Target>, Wrong> {
    if raw.is_empty() {
        return refuse("spec.targetRefs", "required: what the policy holds for");
    }
    value::at_most("spec.targetRefs", raw.len(), api::MAX_TARGETS)?;
    let targets = Wrong::each(raw.iter().enumerate().map(|(index, target)| {
        let at = |field: &str| format!("spec.targetRefs[{index}].{field}");
        let mut wrong = Wrong::default();
        let kind = wrong.note(target_kind(policy.kind, &at, target).map(Some)).unwrap_or(Kind::Service);
        wrong.note(value::object_name(&at("name"), &target.name));
        if let Some(section) = &target.section_name {
            wrong.note(value::object_name(&at("sectionName"), section));
        }
        let object = ObjectKey { kind, namespace: policy.namespace.clone(), name: target.name.as_str().into() };
        wrong.or(Target { object, section: target.section_name.as_deref().map(Into::into) })
    }))?;
    let mut wrong = Wrong::default();
    for (index, target) in targets.iter().enumerate() {
        if targets.iter().take(index).any(|earlier| earlier == target) {
            wrong.add(format!("spec.targetRefs[{index}]"), "the same target is there twice");
        }
    }
    wrong.or(targets)
}

fn target_kind(policy: Kind, at: &dyn Fn(&str) -> String, target: &TargetRef) -> Result<Kind, FieldError> {
    let allowed = target_kinds(policy);
    let Some(kind) = allowed.iter().find(|kind| kind.as_str() == target.kind) else {
        let names: Vec<&str> = allowed.iter().map(|kind| kind.as_str()).collect();
        return refuse(
            at("kind"),
            format!("a {} is attached to {}, not to {:?}", policy.as_str(), names.join(" or "), target.kind),
        );
    };
    let group = if *kind == Kind::Service { "" } else { "gateway.networking.k8s.io" };
    if target.group != group && !(group.is_empty() && target.group == "core") {
        return refuse(
            at("group"),
            format!("{:?} is not the group of {}, which is {group:?}", target.group, target.kind),
        );
    }
    Ok(*kind)
}

/// A duration within bounds, both included.
fn duration_within(
    field: &str,
    text: &DurationText,
    (least, most): (std::time::Duration, std::time::Duration),
) -> Result<std::time::Duration, FieldError> {
    let duration = value::duration(field, &text.0)?;
    if duration < least || duration > most {
        return refuse(field, format!("{:?} is not between {} and {}", text.0, as_written(least), as_written(most)));
    }
    Ok(duration)
}

/// In the units that people write: 86400s is 24h.
fn as_written(duration: std::time::Duration) -> String {
    let (seconds, rest) = (duration.as_secs(), duration.subsec_nanos());
    match (seconds, rest) {
        (1.., 0) if seconds.is_multiple_of(3600) => format!("{}h", seconds / 3600),
        (1.., 0) if seconds.is_multiple_of(60) => format!("{}m", seconds / 60),
        _ => format!("{duration:?}"),
    }
}

/// A number within bounds, both included.
fn number_within(field: &str, number: u32, (least, most): (u32, u32)) -> Result<u32, FieldError> {
    if number < least || number > most {
        return refuse(field, format!("{number} is not between {least} and {most}"));
    }
    Ok(number)
}
