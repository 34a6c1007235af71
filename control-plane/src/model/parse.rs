//! The one door: JSON documents in, validated objects out.
//!
//! A field or filter newer than we know never makes a document bad: it is noted, and reported as a condition. A
//! value that Gateway API does not allow does; errors name the fields, all of them at once ([`Wrong`]), unless a field is of the
//! wrong type: then nothing can be said of the others.
//!
//! Of a route that is bad enough is read to know whose traffic it is about ([`Item::StandIn`]).

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use self::reader::Reader;
use super::{Document, DocumentError, Kind, Object, ObjectKey, Route, hash::ContentHash};
use crate::{api, webhook::inject};

mod core;
mod filter;
mod http;
mod persistence;
mod policy;
mod reader;
mod route;
mod value;

/// What one document (or one item of a List) holds.
#[derive(Debug, Clone)]
pub(crate) enum Item {
    Object(Arc<Parsed>),
    /// A kind that is not read: "apps/v1 Deployment".
    Ignored(String),
    Bad(DocumentError),
    /// What stands in for a route whose document is bad ([`Item::Bad`] says why), where no earlier version is in force: its traffic is
    /// answered with 500, and does not go past it.
    StandIn(Arc<Parsed>),
}

/// What is kept of documents once they are parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Keep {
    #[default]
    Documents,
    /// Whoever has them can be asked again.
    Nothing,
}

impl Keep {
    /// What is kept of a document.
    pub(crate) fn of(self, document: Document) -> Document {
        Document { content: self.content(&document.content), ..document }
    }

    fn content(self, content: &Arc<Value>) -> Arc<Value> {
        static NOTHING: std::sync::LazyLock<Arc<Value>> = std::sync::LazyLock::new(Arc::default);
        match self {
            Self::Documents => Arc::clone(content),
            Self::Nothing => Arc::clone(&NOTHING),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) key: ObjectKey,
    pub(crate) object: Arc<Object>,
    pub(crate) hash: Arc<str>,
    pub(crate) unknown: Arc<[String]>,
    /// The generation that an API server gives it: `metadata.generation` where it stands for all that is read of the object, else
    /// `metadata.resourceVersion`; 0: it has none.
    pub(crate) number: u64,
    /// `metadata.uid`: another for an object that was deleted and made again, whose numbers begin anew; empty: not said.
    pub(crate) uid: Arc<str>,
    /// The document, or the item of a List.
    pub(crate) content: Arc<Value>,
}

/// A value that is not allowed, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FieldError {
    field: String,
    reason: String,
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.field.as_str() {
            "" => f.write_str(&self.reason),
            field => write!(f, "{field}: {}", self.reason),
        }
    }
}

fn refuse<T, E: From<FieldError>>(field: impl Into<String>, reason: impl Into<String>) -> Result<T, E> {
    Err(FieldError { field: field.into(), reason: reason.into() }.into())
}

/// Most errors that are told of one object.
const MAX_ERRORS: usize = 20;

/// Everything that is wrong, found in one pass.
#[derive(Debug, Default)]
struct Wrong(Vec<FieldError>);

impl From<FieldError> for Wrong {
    fn from(error: FieldError) -> Self {
        Self(vec![error])
    }
}

impl Wrong {
    /// Goes on with a default in place of what is wrong; [`Wrong::or`] sees to it that nobody gets it.
    fn note<T: Default>(&mut self, result: Result<T, impl Into<Self>>) -> T {
        result.unwrap_or_else(|wrong| {
            self.0.extend(wrong.into().0);
            self.0.truncate(MAX_ERRORS);
            T::default()
        })
    }

    fn add(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.note::<()>(refuse::<_, FieldError>(field, reason));
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value, if nothing is wrong.
    fn or<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }

    /// All values, or everything that is wrong with any of them.
    fn each<T>(results: impl Iterator<Item = Result<T, Self>>) -> Result<Vec<T>, Self> {
        let mut wrong = Self::default();
        let values: Vec<Option<T>> = results.map(|result| wrong.note(result.map(Some))).collect();
        wrong.or(values.into_iter().flatten().collect())
    }
}

/// Deepest List in a List.
const MAX_LIST_DEPTH: usize = 4;

/// Everything in a document; an empty document holds nothing.
pub(crate) fn parse(document: &Document, keep: Keep) -> Vec<Item> {
    let mut items = Vec::new();
    let content = without_nulls(&document.content);
    walk(&(document, keep), &content, "", MAX_LIST_DEPTH, &mut items);
    items
}

fn walk(of @ (document, keep): &(&Document, Keep), content: &Value, at: &str, depth: usize, items: &mut Vec<Item>) {
    if content.is_null() {
        return;
    }
    let bad = |object, error: FieldError| {
        Item::Bad(DocumentError {
            file: document.file.clone(),
            document: document.index,
            object,
            field: match (at, error.field.as_str()) {
                ("", field) => field.to_owned(),
                (at, "") => at.to_owned(),
                (at, field) => format!("{at}.{field}"),
            },
            reason: error.reason,
            generation: None,
            uid: Arc::default(),
        })
    };
    if !content.is_object() {
        return items.push(bad(
            None,
            FieldError { field: String::new(), reason: "not an object (apiVersion, kind, metadata)".into() },
        ));
    }
    let identity: Identity = match typed(content) {
        Ok((identity, _)) => identity,
        Err(error) => return items.push(bad(None, error)),
    };
    if let (true, Some(Value::Array(list))) = (identity.kind.ends_with("List"), content.get("items")) {
        if depth == 0 {
            return items
                .push(bad(None, FieldError { field: "items".into(), reason: "lists are nested too deeply".into() }));
        }
        for (index, item) in list.iter().enumerate() {
            let at = if at.is_empty() { format!("items[{index}]") } else { format!("{at}.items[{index}]") };
            walk(of, item, &at, depth - 1, items);
        }
        return;
    }
    let kind = match kind_of(&identity) {
        Ok(Some(kind)) => kind,
        Ok(None) => return items.push(Item::Ignored(format!("{} {}", identity.api_version, identity.kind))),
        Err(error) => return items.push(bad(None, error)),
    };
    let key = match key_of(kind, &identity) {
        Ok(key) => key,
        Err(error) => return items.push(bad(None, error)),
    };
    let number = number(kind, &identity.metadata);
    let parsed = |object: Object, unknown: Arc<[String]>| {
        Arc::new(Parsed {
            object: Arc::new(object),
            hash: significant(kind, &identity.metadata, content).to_string().into(),
            unknown,
            number,
            uid: identity.metadata.uid.as_deref().unwrap_or_default().into(),
            // An item of its own, so that it does not keep the whole List in memory.
            content: if at.is_empty() {
                keep.content(&document.content)
            } else {
                keep.content(&Arc::new(content.clone()))
            },
            key: key.clone(),
        })
    };
    match object(&key, &identity, content) {
        Ok((object, unknown)) => items.push(Item::Object(parsed(object, unknown))),
        Err(wrong) => {
            let because = wrong.0.first().map(ToString::to_string).unwrap_or_default();
            let stand_in = stand_in(&key, &identity.metadata, content, &because);
            items.extend(wrong.0.into_iter().map(|error| match bad(Some(key.clone()), error) {
                Item::Bad(error) => {
                    let uid = identity.metadata.uid.as_deref().unwrap_or_default().into();
                    Item::Bad(DocumentError { generation: (number > 0).then_some(number), uid, ..error })
                }
                other => other,
            }));
            items.extend(stand_in.map(|route| Item::StandIn(parsed(Object::Route(route), Arc::default()))));
        }
    }
}

/// See [`Item::StandIn`]. Only a route leads traffic elsewhere than where it would go without it.
fn stand_in(key: &ObjectKey, metadata: &Metadata, content: &Value, because: &str) -> Option<Route> {
    if key.kind.is_route() { route::stand_in(key, metadata, content, because) } else { None }
}

/// What every object has.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Identity {
    api_version: String,
    kind: String,
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: String,
    namespace: String,
    labels: std::collections::BTreeMap<String, String>,
    annotations: std::collections::BTreeMap<String, String>,
    creation_timestamp: Option<String>,
    deletion_timestamp: Option<String>,
    uid: Option<String>,
    /// As text, since a document may say anything.
    resource_version: Option<Value>,
    generation: Option<Value>,
}

/// See [`Parsed::number`].
fn number(kind: Kind, metadata: &Metadata) -> u64 {
    // A Pod's generation says nothing of its addresses, and not every Service has one.
    let generation =
        metadata.generation.as_ref().filter(|_| kind.is_route() || kind.is_policy() || kind == Kind::EndpointSlice);
    let version = || metadata.resource_version.as_ref().and_then(Value::as_str).and_then(|text| text.parse().ok());
    generation.and_then(Value::as_u64).or_else(version).unwrap_or_default()
}

impl Metadata {
    /// What decides between objects for one place. What is no time counts as absent, and is among what has no effect.
    fn created(&self, without_effect: &mut Vec<String>) -> Option<Arc<str>> {
        let text = self.creation_timestamp.as_deref()?;
        if text.parse::<Timestamp>().is_ok() {
            return Some(text.into());
        }
        without_effect.push(format!("metadata.creationTimestamp ({text:?} is no time)"));
        None
    }

    /// An annotation, or else the label of that name.
    fn mark(&self, name: &str) -> Option<&str> {
        self.annotations.get(name).or_else(|| self.labels.get(name)).map(String::as_str)
    }

    /// Where a mark was found, for errors.
    fn mark_field(&self, name: &str) -> String {
        let map = if self.annotations.contains_key(name) { "annotations" } else { "labels" };
        format!("metadata.{map}[{name}]")
    }
}

/// Versions of Gateway API's routes that are read; they agree in the fields that are used.
const ROUTE_VERSIONS: [&str; 4] = ["v1", "v1beta1", "v1alpha3", "v1alpha2"];

fn kind_of(identity: &Identity) -> Result<Option<Kind>, FieldError> {
    let (group, version) = identity.api_version.split_once('/').unwrap_or(("", &identity.api_version));
    let named = |kind: &Kind| kind.as_str().eq_ignore_ascii_case(&identity.kind);
    let Some(kind) = Kind::ALL.into_iter().find(named) else {
        return if group == api::GROUP { not_ours(identity) } else { Ok(None) };
    };
    let (its_group, versions): (&str, &[&str]) = match kind {
        Kind::Namespace | Kind::Service | Kind::Pod => ("", &["v1"]),
        Kind::EndpointSlice => ("discovery.k8s.io", &["v1", "v1beta1"]),
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => {
            ("gateway.networking.k8s.io", &ROUTE_VERSIONS)
        }
        Kind::BackendPolicy | Kind::FaultPolicy | Kind::InboundPolicy | Kind::RoutePolicy => {
            (api::GROUP, &[api::VERSION])
        }
        Kind::BackendTrafficPolicy => ("gateway.networking.x-k8s.io", &["v1alpha1"]),
    };
    if group == api::GROUP && group != its_group {
        return not_ours(identity);
    }
    if group != its_group {
        // Somebody else's kind of the same name (Knative has a Service).
        return Ok(None);
    }
    if kind.as_str() != identity.kind {
        // Passed over like a kind that is not read, it would be missing without a word.
        return refuse("kind", format!("{:?} is not a kind: did you mean {}?", identity.kind, kind.as_str()));
    }
    if !versions.contains(&version) {
        let known = versions.join(", ");
        return refuse(
            "apiVersion",
            format!("{version:?} is not a version of {} that is read ({known})", identity.kind),
        );
    }
    Ok(Some(kind))
}

/// Nobody else has kinds in our group: it is a slip, and passed over it would be missing without a word.
fn not_ours(identity: &Identity) -> Result<Option<Kind>, FieldError> {
    let ours = Kind::ALL.into_iter().filter(|kind| kind.is_policy() && *kind != Kind::BackendTrafficPolicy);
    let ours: Vec<&str> = ours.map(Kind::as_str).collect();
    refuse("kind", format!("{:?} is no kind of {}: there are {}", identity.kind, api::GROUP, ours.join(", ")))
}

fn key_of(kind: Kind, identity: &Identity) -> Result<ObjectKey, FieldError> {
    let metadata = &identity.metadata;
    value::object_name("metadata.name", &metadata.name)?;
    let namespace = match (kind, metadata.namespace.as_str()) {
        (Kind::Namespace, _) => "",
        (_, "") => "default",
        (_, namespace) => {
            value::label("metadata.namespace", namespace)?;
            namespace
        }
    };
    Ok(ObjectKey { kind, namespace: namespace.into(), name: metadata.name.as_str().into() })
}

/// An object, and its fields that have no effect.
fn object(key: &ObjectKey, identity: &Identity, content: &Value) -> Result<(Object, Arc<[String]>), Wrong> {
    let (object, unknown) = match key.kind {
        Kind::Namespace => (Object::Namespace(core::namespace(&identity.metadata)?), Vec::new()),
        Kind::Service => core::service(&identity.metadata, content)?,
        Kind::EndpointSlice => core::endpoint_slice(&identity.metadata, content)?,
        Kind::Pod => (Object::Pod(core::pod(&identity.metadata, content)?), Vec::new()),
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => {
            let (route, unknown) = route::route(key, &identity.metadata, content)?;
            (Object::Route(route), unknown)
        }
        Kind::BackendPolicy
        | Kind::FaultPolicy
        | Kind::InboundPolicy
        | Kind::RoutePolicy
        | Kind::BackendTrafficPolicy => {
            let (policy, unknown) = policy::policy(key, &identity.metadata, content)?;
            (Object::Policy(Box::new(policy)), unknown)
        }
    };
    Ok((object, unknown.into_iter().chain(unknown_marks(key.kind, &identity.metadata)).collect()))
}

/// Annotations and labels of ours that are spelled wrong, or have no effect there.
fn unknown_marks(kind: Kind, metadata: &Metadata) -> Vec<String> {
    let known: &[&str] = match kind {
        Kind::Namespace => &[core::INBOUND, core::INJECT],
        Kind::Pod => &[core::INBOUND, core::INJECT, core::WEIGHT],
        _ => &[],
    };
    let injection: &[&str] = if kind == Kind::Pod { &inject::ANNOTATIONS } else { &[] };
    let unknown = |map: &'static str, names: Vec<&String>| {
        names
            .into_iter()
            .filter(|name| name.starts_with("leno.dev/"))
            .filter(|name| !known.contains(&name.as_str()) && !injection.contains(&name.as_str()))
            .map(move |name| format!("metadata.{map}[{name}]"))
            .collect::<Vec<_>>()
    };
    let mut found = unknown("annotations", metadata.annotations.keys().collect());
    found.extend(unknown("labels", metadata.labels.keys().collect()));
    found
}

/// Hash of what counts as an object's spec: what a generation stands for.
fn significant(kind: Kind, metadata: &Metadata, content: &Value) -> ContentHash {
    let mut hash = ContentHash::new();
    for (name, value) in metadata.annotations.iter().chain(&metadata.labels) {
        if name.starts_with("leno.dev/") || name == core::SERVICE_NAME || name == core::ZONE {
            hash.text(name);
            hash.text(value);
        }
    }
    let pointers: &[&str] = match kind {
        Kind::Namespace => &[],
        Kind::Service => &["/spec"],
        Kind::EndpointSlice => &["/addressType", "/ports", "/endpoints"],
        // A Pod's status changes with every probe; only its addresses matter.
        Kind::Pod => &["/spec/serviceAccountName", "/status/podIP", "/status/podIPs"],
        Kind::HttpRoute
        | Kind::GrpcRoute
        | Kind::TlsRoute
        | Kind::TcpRoute
        | Kind::BackendPolicy
        | Kind::FaultPolicy
        | Kind::InboundPolicy
        | Kind::RoutePolicy
        | Kind::BackendTrafficPolicy => &["/spec", "/metadata/creationTimestamp"],
    };
    for pointer in pointers {
        hash.text(pointer);
        hash.json(content.pointer(pointer).unwrap_or(&Value::Null));
    }
    hash
}

/// Reads the fields of `T`; the second part names those that it does not have.
fn typed<T: DeserializeOwned>(content: &Value) -> Result<(T, Vec<String>), FieldError> {
    let mut unknown = Vec::new();
    let mut note = |path: serde_ignored::Path<'_>| unknown.push(path_text(&path));
    let reader = serde_ignored::Deserializer::new(Reader(content), &mut note);
    match serde_path_to_error::deserialize(reader) {
        Ok(parsed) => Ok((parsed, unknown)),
        Err(error) => {
            let field = error.path().to_string();
            let reason = with_remedy(&field, error.inner().to_string());
            refuse(if field == "." { String::new() } else { field }, reason)
        }
    }
}

/// What serde says, in words for who writes YAML, and what to write instead of what YAML takes for something else than text: a plain
/// `Off`, `yes` or `1.0`, a time without its unit, the number of a gRPC code.
fn with_remedy(field: &str, reason: String) -> String {
    let mut reason = reason;
    for (rust, plain) in [
        ("expected i64", "expected a whole number"),
        ("expected u64", "expected a whole number"),
        ("expected i32", "expected a whole number"),
        ("expected u32", "expected a whole number"),
        ("expected u16", "expected a whole number"),
        ("expected f64", "expected a number"),
        ("expected a sequence", "expected a list"),
        ("invalid type: sequence", "invalid type: list"),
        ("invalid type: map", "invalid type: mapping"),
        ("expected a map", "expected a mapping"),
        ("unknown variant", "unknown value"),
    ] {
        reason = reason.replacen(rust, plain, 1);
    }
    if let Some((what, _)) = reason.split_once("expected struct ") {
        reason = format!("{what}expected a mapping");
    }
    let is_scalar = ["boolean", "integer", "floating point"]
        .iter()
        .any(|kind| reason.strip_prefix("invalid type: ").is_some_and(|found| found.starts_with(kind)));
    if !is_scalar || !reason.ends_with("expected a string") {
        return reason;
    }
    let remedy = if is_time(field) {
        "write a time with its unit, like 5s"
    } else if field.contains("grpcCodes[") {
        "write the code's name, like UNAVAILABLE"
    } else {
        "put it in quotes"
    };
    format!("{reason}: {remedy}")
}

/// Whether the field says how long something is, by its name.
fn is_time(field: &str) -> bool {
    let last = field.rsplit('.').next().unwrap_or(field);
    let ends = ["Timeout", "Time", "Ejection", "Idle", "Interval"];
    let whole = ["backoff", "base", "max", "delay", "duration", "interval", "per", "window", "slowStart"];
    field.contains(".timeouts.") || whole.contains(&last) || ends.iter().any(|end| last.ends_with(end))
}

/// `spec.rules[0].name`, as `serde_path_to_error` writes it.
fn path_text(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", path_text(parent)),
        Path::Map { parent, key } => match path_text(parent) {
            parent if parent.is_empty() => key.clone(),
            parent => format!("{parent}.{key}"),
        },
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => path_text(parent),
    }
}

/// Kubernetes takes `null` for absent; serde does not.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(name, value)| (name.clone(), without_nulls(value)))
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests;
