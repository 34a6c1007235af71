//! What all kinds of routes share, and the two that match nothing but names: TLSRoute and TCPRoute.

use std::sync::Arc;

use leno_proto::pattern::Patterns;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{FieldError, Metadata, Wrong, filter, filter::RawFilter, http, refuse, typed, value};
use crate::model::{
    Kind, ObjectKey,
    object::{Backend, BackendTarget, HttpFilter, ParentRef, Route, Rules},
};

/// As Gateway API limits them.
const MAX_PARENTS: usize = 32;
const MAX_BACKENDS: usize = 16;
const MAX_WEIGHT: i64 = 1_000_000;
const MAX_HOSTNAMES: usize = 1024;

const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

#[derive(Deserialize)]
struct RawRoute<S> {
    spec: S,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawParentRef {
    group: Option<String>,
    kind: Option<String>,
    namespace: Option<String>,
    name: String,
    port: Option<i64>,
    section_name: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct RawBackendRef {
    group: Option<String>,
    kind: Option<String>,
    namespace: Option<String>,
    name: String,
    port: Option<i64>,
    weight: Option<i64>,
    #[serde(default)]
    filters: Vec<RawFilter>,
}

/// What a mirror refers to.
#[derive(Deserialize)]
pub(super) struct RawBackendObjectRef {
    group: Option<String>,
    kind: Option<String>,
    namespace: Option<String>,
    name: String,
    port: Option<i64>,
}

/// A document's spec, with the fields that have no effect.
pub(super) struct Spec<S> {
    pub(super) spec: S,
    pub(super) unknown: Vec<String>,
}

fn read<S: DeserializeOwned>(content: &Value) -> Result<Spec<S>, FieldError> {
    let (raw, mut unknown) = typed::<RawRoute<S>>(content)?;
    unknown.retain(|field| field.starts_with("spec."));
    Ok(Spec { spec: raw.spec, unknown })
}

/// What a route's rules were read in.
pub(super) struct Context<'a> {
    /// That of the route: the default of its references.
    pub(super) namespace: &'a str,
    /// Parts that are answered with 500.
    pub(super) unsupported: Vec<String>,
    /// Known fields whose values have no effect, each with why.
    pub(super) without_effect: Vec<String>,
    /// Regular expressions of the whole route.
    pub(super) patterns: Patterns,
}

/// A route, and its fields that have no effect.
pub(super) fn route(key: &ObjectKey, metadata: &Metadata, content: &Value) -> Result<(Route, Vec<String>), Wrong> {
    let mut wrong = Wrong::default();
    let mut context = Context {
        namespace: &key.namespace,
        unsupported: Vec::new(),
        without_effect: Vec::new(),
        patterns: value::patterns(),
    };
    let (raw_parents, rules, mut unknown) = match key.kind {
        Kind::GrpcRoute => {
            let Spec { spec, unknown } = read::<http::RawGrpcSpec>(content)?;
            (spec.parent_refs, Rules::Http(wrong.note(http::grpc_rules(&mut context, spec.rules))), unknown)
        }
        Kind::TlsRoute => {
            let Spec { spec, unknown } = read::<RawTlsSpec>(content)?;
            let server_names = wrong.note(server_names(&spec.hostnames));
            let backends = wrong.note(only_rule(&mut context, &spec.rules));
            (spec.parent_refs, Rules::Tls { server_names, backends }, unknown)
        }
        Kind::TcpRoute => {
            let Spec { spec, unknown } = read::<RawTcpSpec>(content)?;
            (spec.parent_refs, Rules::Tcp { backends: wrong.note(only_rule(&mut context, &spec.rules)) }, unknown)
        }
        _ => {
            let Spec { spec, unknown } = read::<http::RawHttpSpec>(content)?;
            (spec.parent_refs, Rules::Http(wrong.note(http::http_rules(&mut context, spec.rules))), unknown)
        }
    };
    let unsupported = context.unsupported;
    unknown.append(&mut context.without_effect);
    let parents = wrong.note(parents(&key.namespace, &raw_parents));
    let created = metadata.created(&mut unknown);
    wrong.or((Route { created, parents, rules, unsupported, refused: None }, unknown))
}

/// What stands in for a route that is bad, `because` of that: for the same parents, what it matches, as far as that can be read, has no
/// backend. None: no Service is known to be its parent.
pub(super) fn stand_in(key: &ObjectKey, metadata: &Metadata, content: &Value, because: &str) -> Option<Route> {
    let spec = content.get("spec")?;
    let stated = spec.get("parentRefs")?.as_array()?;
    let mut parents: Vec<ParentRef> = Vec::new();
    for parent in stated.iter().take(MAX_PARENTS).filter_map(|raw| readable_parent(&key.namespace, raw)) {
        if !parents.contains(&parent) {
            parents.push(parent);
        }
    }
    if !parents.iter().any(|parent| parent.is_service) {
        return None;
    }
    let target = BackendTarget::OfRefused(because.into());
    let backends = vec![Backend { weight: 1, target, filters: Vec::new() }];
    let rules = match key.kind {
        Kind::GrpcRoute => Rules::Http(http::grpc_stand_ins(spec, &backends)),
        Kind::TlsRoute => Rules::Tls { server_names: readable_names(spec), backends },
        Kind::TcpRoute => Rules::Tcp { backends },
        _ => Rules::Http(http::http_stand_ins(spec, &backends)),
    };
    let created = metadata.created(&mut Vec::new());
    Some(Route { created, parents, rules, unsupported: Vec::new(), refused: Some(because.into()) })
}

/// A parent, if it can be told which. What would narrow it down, and cannot be read, does not.
fn readable_parent(namespace: &str, raw: &Value) -> Option<ParentRef> {
    let text = |name: &str| match raw.get(name) {
        None => Some(None),
        Some(value) => value.as_str().map(|text| Some(text.to_owned())),
    };
    let read = RawParentRef {
        group: text("group")?,
        kind: text("kind")?,
        namespace: text("namespace")?,
        name: text("name")??,
        port: raw.get("port").and_then(Value::as_i64).filter(|port| value::port("", *port).is_ok()),
        section_name: text("sectionName").flatten(),
    };
    parent_ref(namespace, 0, &read).ok()
}

/// Those of its names that can be read. None: any.
fn readable_names(spec: &Value) -> Vec<Arc<str>> {
    let stated = spec.get("hostnames").and_then(Value::as_array).filter(|stated| stated.len() <= MAX_HOSTNAMES);
    let names = stated.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
    let names: Vec<String> = names.filter(|name| value::hostname("", name, true).is_ok()).collect();
    server_names(&names).unwrap_or_default()
}

fn parents(namespace: &str, raw: &[RawParentRef]) -> Result<Vec<ParentRef>, Wrong> {
    value::at_most("spec.parentRefs", raw.len(), MAX_PARENTS)?;
    let parents = Wrong::each(raw.iter().enumerate().map(|(index, parent)| parent_ref(namespace, index, parent)))?;
    let twice = parents.iter().enumerate().filter(|(index, parent)| parents.iter().take(*index).any(|p| p == *parent));
    let mut wrong = Wrong::default();
    for (index, _) in twice {
        wrong.add(format!("spec.parentRefs[{index}]"), "the same parent is there twice");
    }
    wrong.or(parents)
}

fn parent_ref(namespace: &str, index: usize, raw: &RawParentRef) -> Result<ParentRef, Wrong> {
    let at = |field: &str| format!("spec.parentRefs[{index}].{field}");
    let kind = raw.kind.as_deref().unwrap_or("Gateway");
    let group = raw.group.as_deref().unwrap_or(GATEWAY_GROUP);
    let mut wrong = Wrong::default();
    wrong.note(value::object_name(&at("name"), &raw.name));
    if let Some(namespace) = &raw.namespace {
        wrong.note(value::label(&at("namespace"), namespace));
    }
    if kind != "Service" && kind.eq_ignore_ascii_case("Service") && matches!(group, "" | "core") {
        wrong.add(at("kind"), format!("{kind:?} is not a kind: did you mean Service?"));
    }
    let port = raw.port.map(|port| wrong.note(value::port(&at("port"), port)));
    wrong.or(ParentRef {
        is_service: kind == "Service" && matches!(group, "" | "core"),
        kind: kind_text(group, kind),
        namespace: raw.namespace.as_deref().unwrap_or(namespace).into(),
        name: raw.name.as_str().into(),
        port,
        section_name: raw.section_name.as_deref().map(Into::into),
    })
}

fn kind_text(group: &str, kind: &str) -> Arc<str> {
    if matches!(group, "" | "core") { kind.into() } else { format!("{group}/{kind}").into() }
}

/// The backends of one rule, at "spec.rules[0].backendRefs".
pub(super) fn backends(
    context: &mut Context<'_>,
    field: &str,
    raw: &[RawBackendRef],
    filters: impl Fn(&mut Context<'_>, &str, &[RawFilter]) -> Result<Vec<HttpFilter>, Wrong>,
) -> Result<Vec<Backend>, Wrong> {
    value::at_most(field, raw.len(), MAX_BACKENDS)?;
    Wrong::each(raw.iter().enumerate().map(|(index, backend)| {
        let at = |name: &str| format!("{field}[{index}].{name}");
        let mut wrong = Wrong::default();
        let weight = match backend.weight.unwrap_or(1) {
            weight @ 0..=MAX_WEIGHT => u32::try_from(weight).unwrap_or_default(),
            weight => {
                wrong.add(at("weight"), format!("{weight} is not between 0 and {MAX_WEIGHT}"));
                0
            }
        };
        let filters = wrong.note(filters(context, &at("filters"), &backend.filters));
        let RawBackendRef { group, kind, namespace, name, port, .. } = backend;
        let reference = Reference { group, kind, namespace, name, port: *port };
        match reference.target(context.namespace, &at) {
            Ok(target) => wrong.or(Backend { weight, target, filters }),
            Err(other) => {
                wrong.note::<()>(Err(other));
                Err(wrong)
            }
        }
    }))
}

/// The backend at "spec.rules[0].filters[0].requestMirror.backendRef".
pub(super) fn backend_object(
    context: &Context<'_>,
    field: &str,
    raw: &RawBackendObjectRef,
) -> Result<BackendTarget, Wrong> {
    let RawBackendObjectRef { group, kind, namespace, name, port } = raw;
    let reference = Reference { group, kind, namespace, name, port: *port };
    reference.target(context.namespace, &|name| format!("{field}.{name}"))
}

/// What all references to backends have in common.
struct Reference<'a> {
    group: &'a Option<String>,
    kind: &'a Option<String>,
    namespace: &'a Option<String>,
    name: &'a str,
    port: Option<i64>,
}

impl Reference<'_> {
    /// `namespace`: of who refers.
    fn target(&self, namespace: &str, at: &impl Fn(&str) -> String) -> Result<BackendTarget, Wrong> {
        let group = self.group.as_deref().unwrap_or_default();
        let kind = self.kind.as_deref().unwrap_or("Service");
        let mut wrong = Wrong::default();
        wrong.note(value::object_name(&at("name"), self.name));
        if let Some(namespace) = self.namespace {
            wrong.note(value::label(&at("namespace"), namespace));
        }
        if kind != "Service" || !matches!(group, "" | "core") {
            return wrong.or(BackendTarget::InvalidKind(kind_text(group, kind)));
        }
        let port = wrong.note(match self.port {
            Some(port) => value::port(&at("port"), port),
            None => refuse(at("port"), "required for a Service"),
        });
        wrong.or(BackendTarget::Service {
            namespace: self.namespace.as_deref().unwrap_or(namespace).into(),
            name: self.name.into(),
            port,
        })
    }
}

// ---- TLSRoute, TCPRoute -------------------------------------------------------------------------

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawTlsSpec {
    #[serde(default)]
    parent_refs: Vec<RawParentRef>,
    #[serde(default)]
    hostnames: Vec<String>,
    rules: Vec<RawPlainRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawTcpSpec {
    #[serde(default)]
    parent_refs: Vec<RawParentRef>,
    rules: Vec<RawPlainRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPlainRule {
    #[serde(default, rename = "name")]
    _name: Option<String>,
    #[serde(default)]
    backend_refs: Vec<RawBackendRef>,
}

fn only_rule(context: &mut Context<'_>, rules: &[RawPlainRule]) -> Result<Vec<Backend>, Wrong> {
    let [rule] = rules else {
        return refuse("spec.rules", format!("{} rules; exactly one is expected", rules.len()));
    };
    let field = "spec.rules[0].backendRefs";
    if rule.backend_refs.is_empty() {
        return refuse(field, "at least one is required");
    }
    backends(context, field, &rule.backend_refs, filter::none)
}

fn server_names(hostnames: &[String]) -> Result<Vec<Arc<str>>, Wrong> {
    value::at_most("spec.hostnames", hostnames.len(), MAX_HOSTNAMES)?;
    let mut wrong = Wrong::default();
    let mut names: Vec<Arc<str>> = Vec::with_capacity(hostnames.len());
    for (index, name) in hostnames.iter().enumerate() {
        wrong.note(value::hostname(&format!("spec.hostnames[{index}]"), name, true));
        if !names.iter().any(|known| **known == **name) {
            names.push(name.as_str().into());
        }
    }
    wrong.or(names)
}
