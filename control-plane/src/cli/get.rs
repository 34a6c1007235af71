//! `leno get`

use std::{
    collections::HashMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use leno_proto::v1::{Condition, DocumentError, ListObjectsRequest, ObjectStatus, ProxyStatus, ResourceKind};
use serde_json::{Value, json};

use super::{
    State, block_on, kinds,
    print::{Cell, Style, Table, clean},
    wait,
};
use crate::{
    authority::issue,
    model::{self, check},
};

/// Show objects of the configuration, or proxies, and how far each has come
///
/// PROGRAMMED says how many of the proxies that use an object run its newest generation. Documents that are not in force
/// are listed below, with file, document, field and reason. An object that was good before is held over: the generation
/// shown stays in force, through restarts too, until its document is mended or removed.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  leno get\n  leno get httproutes -n shop\n  leno get policies\n  leno get svc cart -n shop -o json\n  \
                        leno get proxies -o wide\n\nExit codes: 0 shown; 1 what was asked for does not exist, or cannot be \
                        shown; 2 the command line is wrong. Whether all is well: leno check."
)]
pub(super) struct Args {
    /// Kind (httproute, backendpolicy, service, pod, …), routes, policies, or proxies [default: all]
    #[arg(value_name = "KIND[/NAME]")]
    kind: Option<String>,
    /// Name of one object or proxy
    name: Option<String>,
    /// Only in this namespace
    #[arg(short, long, env = "LENO_NAMESPACE")]
    namespace: Option<String>,
    /// How to show it
    #[arg(short, long, value_name = "FORMAT", env = "LENO_OUTPUT", default_value = "table")]
    output: Output,
    #[command(flatten)]
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Table,
    Wide,
    Json,
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    let style = Style::of_stdout();
    if args.kind.as_deref().is_some_and(kinds::is_proxy) {
        return proxies(&args, style);
    }
    let (kind, namespace, name) = match asked_for(&args) {
        Ok(asked_for) => asked_for,
        Err(wrong) => return super::usage(&wrong),
    };
    let request = ListObjectsRequest {
        kind: kind.to_owned(),
        namespace: namespace.unwrap_or_default().to_owned(),
        name: name.unwrap_or_default().to_owned(),
    };
    let everything = ListObjectsRequest::default();
    let (mut answer, all) = block_on(async {
        let control_plane = args.state.connect().await?;
        let answer = control_plane.list_objects(request.clone()).await?;
        // What is bad is told of all, and what is held over instead may be any object.
        let all = match answer.errors.is_empty() || request == everything {
            true => answer.objects.clone(),
            false => control_plane.list_objects(everything).await?.objects,
        };
        anyhow::Ok((answer, all))
    })?;
    if let Some(kinds) = args.kind.as_deref().and_then(kinds::group) {
        let is_of = |object: &ObjectStatus| object.object.as_ref().is_some_and(|name| kinds.contains(&&*name.kind));
        answer.objects.retain(is_of);
    }
    let missing = !request.name.is_empty() && answer.objects.is_empty();
    match args.output {
        Output::Json => outln!("{:#}", objects_json(&answer.objects, &answer.errors, answer.generation)),
        Output::Table | Output::Wide => {
            if !missing {
                out!("{}", objects_table(&answer.objects, &answer.errors, args.output == Output::Wide).render(style));
            }
            out!("{}", errors_text(&answer.errors, &all, style));
        }
    }
    if missing {
        eprintln!("leno: there is no {}", absent(&request));
    }
    Ok(if missing { super::FAILURE } else { super::SUCCESS })
}

/// "HTTPRoute shop/cart", or as much of it as was said.
fn absent(ListObjectsRequest { kind, namespace, name }: &ListObjectsRequest) -> String {
    let kind = if kind.is_empty() { "object" } else { kind };
    match (kind, namespace.as_str()) {
        ("Namespace", _) => format!("{kind} {name}"),
        (_, "") => format!("{kind} {name} in any namespace"),
        (_, namespace) => format!("{kind} {namespace}/{name}"),
    }
}

/// Kind (empty: all), namespace and name, from "KIND", "KIND NAME", "KIND/NAME" or "KIND/NAMESPACE/NAME".
fn asked_for(args: &Args) -> Result<(&'static str, Option<&str>, Option<&str>), String> {
    let (namespace, name) = (args.namespace.as_deref(), args.name.as_deref());
    match args.kind.as_deref() {
        None | Some("all") => Ok(("", namespace, name)),
        Some(group) if kinds::group(group).is_some() => Ok(("", namespace, name)),
        Some(object) if object.contains('/') && name.is_none() => {
            let (kind, of, name) = kinds::parse_object(object)?;
            Ok((kind, kinds::namespace(of, namespace)?, Some(name)))
        }
        Some(kind) => Ok((kinds::parse(kind)?, namespace, name)),
    }
}

fn objects_table(objects: &[ObjectStatus], errors: &[DocumentError], wide: bool) -> Table {
    let mut heading = vec!["KIND", "NAMESPACE/NAME", "GENERATION", "STATUS", "PROGRAMMED", "SOURCE"];
    if wide {
        heading.extend(["LAGGARDS", "MESSAGE"]);
    }
    let mut table = Table::new(&heading);
    for object in objects {
        let name = object.object.clone().unwrap_or_default();
        let full =
            if name.namespace.is_empty() { name.name.clone() } else { format!("{}/{}", name.namespace, name.name) };
        let wrong = errors.iter().any(|e| e.object == format!("{} {full}", name.kind))
            || object.errors.iter().any(|e| !model::DocumentError::is_of_all(&e.file));
        let mut row = vec![
            name.kind.into(),
            full.into(),
            object.generation.to_string().into(),
            status_cell(object, wrong),
            programmed_cell(object),
            object.source.clone().into(),
        ];
        if wide {
            let laggards: Vec<String> = object.laggards.iter().map(|l| format!("{} ({})", l.proxy, l.reason)).collect();
            row.push(laggards.join(", ").into());
            let held_over = object.errors.iter().filter(|_| object.held_over);
            let held_over = held_over.map(|error| format!("held over: {}", error_line(error)));
            let conditions = object.conditions.iter().filter(|c| !is_good(c)).map(|c| c.message.clone());
            row.push(held_over.chain(conditions).collect::<Vec<_>>().join("; ").into());
        }
        table.row(row);
    }
    table
}

/// The first thing that is wrong, or nothing is.
fn status_cell(object: &ObjectStatus, bad_document: bool) -> Cell {
    if object.held_over {
        return Cell::painted("HeldOver", Style::red);
    }
    if bad_document {
        return Cell::painted("BadDocument", Style::red);
    }
    match object.conditions.iter().find(|c| !is_good(c)) {
        Some(condition) if is_wrong(condition) => Cell::painted(&condition.reason, Style::red),
        Some(condition) => Cell::painted(&condition.reason, Style::yellow),
        None if object.conditions.is_empty() => "-".into(),
        None => Cell::painted("Accepted", Style::green),
    }
}

/// Of these, true is the good one; all others say what is wrong.
pub(super) fn is_good(condition: &Condition) -> bool {
    condition.status == matches!(condition.r#type.as_str(), "Accepted" | "ResolvedRefs" | "Programmed")
}

/// Something of the object is not in force; see [`check::is_wrong`].
pub(super) fn is_wrong(condition: &Condition) -> bool {
    check::is_wrong(&condition.r#type, condition.status)
}

/// "ResolvedRefs by Service shop/cart: BackendNotFound: …", or "not Accepted …"
pub(super) fn condition_line(condition: &Condition) -> String {
    let not = if condition.status { "" } else { "not " };
    let parent = if condition.parent.is_empty() { String::new() } else { format!(" by {}", condition.parent) };
    let message = if condition.message.is_empty() { String::new() } else { format!(": {}", condition.message) };
    let reason = if condition.reason == condition.r#type { String::new() } else { format!(": {}", condition.reason) };
    format!("{not}{}{parent}{reason}{message}", condition.r#type)
}

fn programmed_cell(object: &ObjectStatus) -> Cell {
    let text = format!("{}/{}", object.programmed, object.subscribed);
    if object.subscribed == 0 {
        return "-".into();
    }
    let refused = object.laggards.iter().any(|l| l.reason == "rejected" || l.reason == "unsupported");
    match object.laggards.is_empty() {
        true => Cell::painted(&text, Style::green),
        false if refused => Cell::painted(&text, Style::red),
        false => Cell::painted(&text, Style::yellow),
    }
}

/// Below a table: what is wrong, and what stays in force instead; or nothing.
pub(super) fn errors_text(errors: &[DocumentError], objects: &[ObjectStatus], style: Style) -> String {
    if errors.is_empty() {
        return String::new();
    }
    let held_over = HeldOver::of(objects);
    let mut text = format!("\n{}\n", style.bold("Not in force:"));
    for document in by_document(errors) {
        for error in document {
            text += &format!("  {}\n", style.red(&error_line(error)));
        }
        if let Some(instead) = document.first().and_then(|error| held_over.instead_of(error)) {
            text += &format!("    → {}\n", style.yellow(&clean(&instead)));
        }
    }
    text
}

/// Errors of one document, or of one object in it, together.
pub(super) fn by_document(errors: &[DocumentError]) -> impl Iterator<Item = &[DocumentError]> {
    errors.chunk_by(|a, b| (&a.file, a.document, &a.object) == (&b.file, b.document, &b.object))
}

/// Objects that are named in one line.
const MAX_NAMED: usize = 5;

/// What stays in force instead of what is bad.
pub(super) struct HeldOver<'a>(HashMap<&'a DocumentError, Vec<&'a ObjectStatus>>);

impl<'a> HeldOver<'a> {
    pub(super) fn of(objects: &'a [ObjectStatus]) -> Self {
        let mut held_over: HashMap<_, Vec<_>> = HashMap::new();
        for object in objects.iter().filter(|object| object.held_over) {
            for error in &object.errors {
                held_over.entry(error).or_default().push(object);
            }
        }
        Self(held_over)
    }

    /// "held over until it is mended: Service shop/cart at generation 3"
    pub(super) fn instead_of(&self, error: &DocumentError) -> Option<String> {
        let objects = self.0.get(error)?;
        let title = |object: &&ObjectStatus| {
            format!("{} at generation {}", wait::title(&object.object.clone().unwrap_or_default()), object.generation)
        };
        let mut named: Vec<String> = objects.iter().take(MAX_NAMED).map(title).collect();
        if objects.len() > MAX_NAMED {
            named.push(format!("and {} more", objects.len() - MAX_NAMED));
        }
        Some(format!("held over until it is mended: {}", named.join(", ")))
    }
}

/// "shop.yaml, document 2, HTTPRoute shop/cart, spec.rules[0]: reason"
pub(super) fn error_line(error: &DocumentError) -> String {
    let mut place = vec![error.file.clone()];
    if error.document > 0 {
        place.push(format!("document {}", error.document));
    }
    place.extend([&error.object, &error.field].into_iter().filter(|t| !t.is_empty()).cloned());
    clean(&format!("{}: {}", place.join(", "), error.reason))
}

fn objects_json(objects: &[ObjectStatus], errors: &[DocumentError], generation: u64) -> Value {
    json!({
        "generation": generation,
        "objects": objects.iter().map(object_json).collect::<Vec<_>>(),
        "errors": errors.iter().map(error_json).collect::<Vec<_>>(),
    })
}

pub(super) fn object_json(status: &ObjectStatus) -> Value {
    let object = status.object.clone().unwrap_or_default();
    let conditions: Vec<Value> = status
        .conditions
        .iter()
        .map(|c| {
            json!({
                "type": c.r#type, "status": c.status, "reason": c.reason, "message": c.message, "parent": c.parent,
            })
        })
        .collect();
    let laggards: Vec<Value> = status
        .laggards
        .iter()
        .map(|l| json!({"proxy": l.proxy, "generation": l.generation, "reason": l.reason, "message": l.message}))
        .collect();
    json!({
        "kind": object.kind,
        "namespace": object.namespace,
        "name": object.name,
        "generation": status.generation,
        "source": status.source,
        "heldOver": status.held_over,
        "conditions": conditions,
        "subscribed": status.subscribed,
        "programmed": status.programmed,
        "laggards": laggards,
        "errors": status.errors.iter().map(error_json).collect::<Vec<_>>(),
    })
}

fn error_json(error: &DocumentError) -> Value {
    json!({
        "file": error.file,
        "document": error.document,
        "object": error.object,
        "field": error.field,
        "reason": error.reason,
    })
}

fn proxies(args: &Args, style: Style) -> anyhow::Result<u8> {
    let answer = block_on(async { args.state.connect().await?.list_proxies().await })?;
    let asked_for = |proxy: &ProxyStatus| {
        let (namespace, workload) = proxy.name.split_once('/').unwrap_or(("", &proxy.name));
        args.namespace.as_deref().is_none_or(|n| n == namespace)
            && args.name.as_deref().is_none_or(|n| n == workload || n == proxy.name)
    };
    let proxies: Vec<ProxyStatus> = answer.proxies.into_iter().filter(asked_for).collect();
    match args.output {
        Output::Json => outln!(
            "{:#}",
            json!({
                "generation": answer.generation,
                "proxies": proxies.iter().map(proxy_json).collect::<Vec<_>>(),
            })
        ),
        Output::Table | Output::Wide => {
            let wide = args.output == Output::Wide;
            if args.name.is_none() || !proxies.is_empty() {
                out!("{}", proxies_table(&proxies, answer.generation, wide, SystemTime::now()).render(style));
            }
            out!("{}", rejections_text(&proxies, style));
        }
    }
    if let (Some(name), true) = (&args.name, proxies.is_empty()) {
        let place = args.namespace.as_ref().map(|namespace| format!(" in namespace {namespace}")).unwrap_or_default();
        eprintln!("leno: there is no proxy {}{place}: leno get proxies shows those there are", clean(name));
        return Ok(super::FAILURE);
    }
    Ok(super::SUCCESS)
}

fn proxies_table(proxies: &[ProxyStatus], generation: u64, wide: bool, now: SystemTime) -> Table {
    let mut heading = vec!["NAME", "IDENTITY", "CONNECTED", "GENERATION", "SUBSCRIPTIONS", "CERTIFICATE", "REJECTED"];
    if wide {
        heading.extend(["VERSION", "RESOURCES SENT", "BYTES SENT"]);
    }
    let mut table = Table::new(&heading);
    for proxy in proxies {
        let behind = proxy.generation < generation;
        let mut row = vec![
            proxy.name.clone().into(),
            proxy.identity.clone().into(),
            if proxy.connected { Cell::painted("yes", Style::green) } else { Cell::painted("no", Style::red) },
            match behind {
                true => Cell::painted(&format!("{} of {generation}", proxy.generation), Style::yellow),
                false => proxy.generation.to_string().into(),
            },
            proxy.subscriptions.to_string().into(),
            life(proxy.certificate_not_after, now),
            match proxy.rejected.len() {
                0 => "0".into(),
                n => Cell::painted(&n.to_string(), Style::red),
            },
        ];
        if wide {
            row.extend([
                proxy.version.clone().into(),
                proxy.resources_sent.to_string().into(),
                proxy.bytes_sent.to_string().into(),
            ]);
        }
        table.row(row);
    }
    table
}

/// What is left of the certificate that the stream was opened with. The stream may well outlive it.
fn life(not_after: i64, now: SystemTime) -> Cell {
    match time(not_after).duration_since(now) {
        Ok(left) if left.as_secs() >= 7200 => format!("{}h", left.as_secs() / 3600).into(),
        Ok(left) if left.as_secs() >= 120 => format!("{}m", left.as_secs() / 60).into(),
        Ok(left) => format!("{}s", left.as_secs()).into(),
        Err(_) => "renewed".into(),
    }
}

fn rejections_text(proxies: &[ProxyStatus], style: Style) -> String {
    let mut text = String::new();
    for proxy in proxies {
        for rejection in &proxy.rejected {
            let name = rejection.name.clone().unwrap_or_default();
            let field = if rejection.field.is_empty() { String::new() } else { format!(" {}", rejection.field) };
            let line =
                format!("{} rejected {} {}{field}: {}", proxy.name, kind_name(name.kind()), name.key, rejection.reason);
            text += &format!("  {}\n", style.red(&clean(&line)));
        }
    }
    if text.is_empty() {
        text
    } else {
        format!("\n{}\n{text}", style.bold("Rejected (the last good version stays in force there):"))
    }
}

fn kind_name(kind: ResourceKind) -> &'static str {
    match kind {
        ResourceKind::Unspecified => "resource",
        ResourceKind::Settings => "settings",
        ResourceKind::TrustBundle => "trust bundle",
        ResourceKind::Inbound => "inbound policy",
        ResourceKind::Destination => "destination",
        ResourceKind::Endpoints => "endpoints",
    }
}

fn proxy_json(proxy: &ProxyStatus) -> Value {
    let rejected: Vec<Value> = proxy
        .rejected
        .iter()
        .map(|r| {
            let name = r.name.clone().unwrap_or_default();
            json!({
                "resource": kind_name(name.kind()), "key": name.key, "version": r.version, "field": r.field,
                "reason": r.reason,
            })
        })
        .collect();
    json!({
        "name": proxy.name,
        "identity": proxy.identity,
        "version": proxy.version,
        "connected": proxy.connected,
        "generation": proxy.generation,
        "subscriptions": proxy.subscriptions,
        "rejected": rejected,
        "certificateNotAfter": proxy.certificate_not_after,
        "resourcesSent": proxy.resources_sent,
        "bytesSent": proxy.bytes_sent,
    })
}

/// Unix seconds, as a message carries them.
pub(super) fn time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// "2026-03-01 12:00:00 UTC", of Unix seconds.
pub(super) fn date(seconds: i64) -> String {
    issue::display(time(seconds))
}

#[cfg(test)]
mod tests {
    use leno_proto::v1::ObjectRef;

    use super::*;

    fn held_over(name: &str, generation: u64, errors: &[&DocumentError]) -> ObjectStatus {
        ObjectStatus {
            object: Some(ObjectRef { kind: "Service".into(), namespace: "shop".into(), name: name.into() }),
            generation,
            held_over: true,
            errors: errors.iter().map(|&error| error.clone()).collect(),
            ..ObjectStatus::default()
        }
    }

    #[test]
    fn errors_say_what_stays_in_force_instead() {
        let error = |file: &str, object: &str, field: &str| DocumentError {
            file: file.into(),
            document: 2,
            object: object.into(),
            field: field.into(),
            reason: "wrong".into(),
        };
        let [first, second] = ["spec.a", "spec.b"].map(|field| error("a.yaml", "Service shop/cart", field));
        let unnamed = error("b.yaml", "", "");
        let never_good = error("c.yaml", "Service shop/new", "spec.a");
        let mut objects = vec![held_over("cart", 3, &[&first, &second])];
        objects.extend((1..=7).map(|n| held_over(&format!("b{n}"), n, &[&unnamed])));
        let text = errors_text(&[first, second, unnamed, never_good], &objects, Style::plain());
        assert_eq!(
            text,
            "
Not in force:
  a.yaml, document 2, Service shop/cart, spec.a: wrong
  a.yaml, document 2, Service shop/cart, spec.b: wrong
    → held over until it is mended: Service shop/cart at generation 3
  b.yaml, document 2: wrong
    → held over until it is mended: Service shop/b1 at generation 1, Service shop/b2 at generation 2, Service shop/b3 at \
             generation 3, Service shop/b4 at generation 4, Service shop/b5 at generation 5, and 2 more
  c.yaml, document 2, Service shop/new, spec.a: wrong
"
        );
    }
}
