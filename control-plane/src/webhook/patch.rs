//! The difference between two JSON documents as a JSON Patch (RFC 6902), the form in which admission takes changes.

use serde_json::{Map, Value, json};

/// Operations that make `after` of `before`. Objects are compared field by field; a list that differs is replaced whole.
pub(super) fn between(before: &Value, after: &Value) -> Value {
    let mut operations = Vec::new();
    compare("", before, after, &mut operations);
    operations.into()
}

fn compare(at: &str, before: &Value, after: &Value, operations: &mut Vec<Value>) {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => compare_fields(at, before, after, operations),
        _ if before == after => {}
        _ => operations.push(json!({ "op": "replace", "path": at, "value": after })),
    }
}

fn compare_fields(at: &str, before: &Map<String, Value>, after: &Map<String, Value>, operations: &mut Vec<Value>) {
    for (name, value) in after {
        let path = format!("{at}/{}", escaped(name));
        match before.get(name) {
            Some(was) => compare(&path, was, value, operations),
            None => operations.push(json!({ "op": "add", "path": path, "value": value })),
        }
    }
    for name in before.keys().filter(|name| !after.contains_key(*name)) {
        operations.push(json!({ "op": "remove", "path": format!("{at}/{}", escaped(name)) }));
    }
}

/// RFC 6901 3.
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Applies what [`between`] makes.
    pub(in crate::webhook) fn apply(document: &Value, patch: &Value) -> Value {
        let mut document = document.clone();
        for operation in patch.as_array().unwrap() {
            let path = operation["path"].as_str().unwrap();
            if path.is_empty() {
                document = operation["value"].clone();
                continue;
            }
            let (parent, name) = path.rsplit_once('/').unwrap();
            let fields = document.pointer_mut(parent).unwrap().as_object_mut().unwrap();
            let name = name.replace("~1", "/").replace("~0", "~");
            match operation["op"].as_str().unwrap() {
                "remove" => assert!(fields.remove(&name).is_some()),
                "add" => assert!(fields.insert(name, operation["value"].clone()).is_none()),
                _ => assert!(fields.insert(name, operation["value"].clone()).is_some()),
            }
        }
        document
    }

    fn documents() -> impl Strategy<Value = Value> {
        let leaf =
            prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), "[ab]{0,2}".prop_map(Value::from)];
        leaf.prop_recursive(3, 20, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a/~]{0,2}", inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_patch_makes_the_one_of_the_other(before in documents(), after in documents()) {
            prop_assert_eq!(&apply(&before, &between(&before, &after)), &after);
            prop_assert_eq!(between(&after, &after), json!([]));
        }
    }
}
