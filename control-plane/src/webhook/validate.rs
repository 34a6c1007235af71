//! Objects of Leno's own kinds, read through the model's own door before they are stored: what is refused here is what the
//! control plane would not put in force.

use std::sync::Arc;

use serde_json::Value;

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

/// Looks at an object that is to be stored in place of `old` (null: of nothing).
pub(super) fn validate(object: &Value, old: &Value) -> Found {
    // An object that is going, or whose spec stays as it was, is nobody's to hold up: it may be older than a rule.
    let going = !object["metadata"]["deletionTimestamp"].is_null();
    if going || (!old.is_null() && old["spec"] == object["spec"]) {
        return Found::default();
    }
    let document = Document { file: "".into(), index: 0, content: Arc::new(object.clone()) };
    let mut found = Found::default();
    for item in parse::parse(&document, Keep::Nothing) {
        match item {
            Item::Object(parsed) => {
                found.warnings.extend(parsed.unknown.iter().map(|field| format!("{field} has no effect")));
            }
            Item::Ignored(kind) => found.warnings.push(format!("{kind} is not a kind that is read")),
            Item::Bad(error) if error.field.is_empty() => found.wrong.push(error.reason),
            Item::Bad(error) => found.wrong.push(format!("{}: {}", error.field, error.reason)),
        }
    }
    found
}
