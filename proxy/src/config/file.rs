//! The configuration file: YAML with the flags' names as keys. Its entries become arguments, so that they are
//! parsed and checked as flags are.

use std::{collections::BTreeMap, ffi::OsString};

use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Value {
    One(Scalar),
    Many(Vec<Scalar>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Scalar {
    Bool(bool),
    Integer(i64),
    Number(f64),
    Text(String),
}

impl Scalar {
    fn text(&self) -> String {
        match self {
            Self::Bool(value) => value.to_string(),
            Self::Integer(value) => value.to_string(),
            Self::Number(value) => value.to_string(),
            Self::Text(value) => value.clone(),
        }
    }
}

/// `--key=value` for every entry whose key is not `is_given`.
pub(super) fn arguments(text: &str, known: &[&str], is_given: impl Fn(&str) -> bool) -> Result<Vec<OsString>, String> {
    let entries: BTreeMap<String, serde_json::Value> = match serde_saphyr::from_str(text) {
        Ok(entries) => entries,
        Err(_) if text.trim().is_empty() => BTreeMap::new(),
        Err(error) => return Err(format!("expected a YAML mapping of `key: value`: {error}")),
    };
    let mut arguments = Vec::new();
    for (key, value) in entries {
        if !known.contains(&key.as_str()) {
            return Err(format!("unknown key {key:?}: expected one of {}", known.join(", ")));
        }
        let value: Value = serde_json::from_value(value)
            .map_err(|_| format!("{key}: expected a text, number, true or false, or a list of these"))?;
        if is_given(&key) {
            continue;
        }
        let values = match value {
            Value::One(value) => vec![value],
            Value::Many(values) => values,
        };
        arguments.extend(values.iter().map(|value| OsString::from(format!("--{key}={}", value.text()))));
    }
    Ok(arguments)
}
