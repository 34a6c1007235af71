//! Objects of Leno's own kinds, and Leno's labels of Namespaces, read through the model's own door before they are stored: what is refused here is what the
//! control plane would not put in force.

use std::sync::Arc;

use serde_json::Value;

use super::inject::INJECT;
use crate::model::{
    Document,
    parse::{self, Item, Keep},
};

/// What is to be said of an object.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Why it is refused: "spec.retry.limit: must be at most 10".
    pub(super) wrong: Vec<String>,
    pub(super) warnings: Vec<String>,
}

/// Whether all that is read of an object stays as it was.
fn same(object: &Value, old: &Value) -> bool {
    let marks = |object: &Value, map: &str| {
        let fields = object["metadata"][map].as_object().into_iter().flatten();
        let ours = fields.filter(|(name, _)| name.starts_with("leno.dev/"));
        ours.map(|(name, value)| (name.clone(), value.clone())).collect::<Vec<_>>()
    };
    object["spec"] == old["spec"] && ["labels", "annotations"].iter().all(|map| marks(object, map) == marks(old, map))
}

/// What is wrong with a Namespace's label for injection: a slip there would leave its Pods outside the mesh.
fn inject_label(object: &Value) -> Option<String> {
    let label = object["metadata"]["labels"][INJECT].as_str().filter(|_| object["kind"] == "Namespace")?;
    (!matches!(label, "enabled" | "disabled"))
        .then(|| format!("metadata.labels[{INJECT}]: {label:?} is neither \"enabled\" nor \"disabled\""))
}

/// Looks at an object that is to be stored in place of `old` (null: of nothing).
pub(super) fn validate(object: &Value, old: &Value) -> Found {
    // An object that is going, or whose spec stays as it was, is nobody's to hold up: it may be older than a rule.
    let going = !object["metadata"]["deletionTimestamp"].is_null();
    if going || (!old.is_null() && same(object, old)) {
        return Found::default();
    }
    let document = Document { file: "".into(), index: 0, content: Arc::new(object.clone()) };
    let mut found = Found::default();
    found.wrong.extend(inject_label(object));
    for item in parse::parse(&document, Keep::Nothing) {
        match item {
            Item::Object(parsed) => {
                found.warnings.extend(parsed.unknown.iter().map(|field| format!("{field} has no effect")));
            }
            Item::StandIn(_) => {}
            Item::Ignored(kind) => found.warnings.push(format!("{kind} is not a kind that is read")),
            Item::Bad(error) if error.field.is_empty() => found.wrong.push(error.reason),
            Item::Bad(error) => found.wrong.push(format!("{}: {}", error.field, error.reason)),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn slips_in_a_namespaces_labels_are_refused() {
        let namespace = |labels: Value| json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop", "labels": labels } });
        let wrong = |labels: Value| validate(&namespace(labels), &Value::Null).wrong;
        assert_eq!(wrong(json!({ "leno.dev/inject": "enabled", "leno.dev/inbound": "strict" })), Vec::<String>::new());
        assert!(
            wrong(json!({ "leno.dev/inject": "true" }))[0].starts_with("metadata.labels[leno.dev/inject]: \"true\"")
        );
        assert!(wrong(json!({ "leno.dev/inbound": "strickt" }))[0].starts_with("metadata.labels[leno.dev/inbound]"));
        // What was there already holds up nothing else.
        let old = namespace(json!({ "leno.dev/inbound": "strickt" }));
        let labelled = namespace(json!({ "leno.dev/inbound": "strickt", "team": "a" }));
        assert_eq!(validate(&labelled, &old), Found::default());
    }
}
