//! CustomResourceDefinitions, generated from the types of [`super`].

use schemars::{JsonSchema, generate::SchemaSettings, transform::RestrictFormats};
use serde_json::{Value, json};

use super::{BackendPolicySpec, FaultPolicySpec, GROUP, InboundPolicySpec, RoutePolicySpec, VERSION};

/// A kind of ours, by its CRD.
#[derive(Debug)]
pub struct Crd {
    /// "BackendPolicy"
    pub kind: &'static str,
    /// "backendpolicies.leno.dev"
    pub name: String,
    /// The CustomResourceDefinition.
    pub content: Value,
}

/// What a kind is attached to, as the example of each field of `targetRefs`.
type Target = [(&'static str, &'static str); 4];

const SERVICE: Target = [("group", ""), ("kind", "Service"), ("name", "shop"), ("sectionName", "http")];
const ROUTE: Target =
    [("group", "gateway.networking.k8s.io"), ("kind", "HTTPRoute"), ("name", "shop"), ("sectionName", "checkout")];

/// All of them, in the order of their names.
pub fn all() -> Vec<Crd> {
    vec![
        crd::<BackendPolicySpec>("BackendPolicy", "backendpolicies", &SERVICE),
        crd::<FaultPolicySpec>("FaultPolicy", "faultpolicies", &ROUTE),
        crd::<InboundPolicySpec>("InboundPolicy", "inboundpolicies", &SERVICE),
        crd::<RoutePolicySpec>("RoutePolicy", "routepolicies", &ROUTE),
    ]
}

fn crd<Spec: JsonSchema>(kind: &'static str, plural: &str, target: &Target) -> Crd {
    let name = format!("{plural}.{GROUP}");
    let mut spec = spec_schema::<Spec>();
    let description = spec.get("description").cloned().unwrap_or_default();
    target_list(&mut spec, target);
    let content = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": name,
            "labels": { "gateway.networking.k8s.io/policy": "Direct" },
            // Uninstalling the chart would delete every policy with its kind.
            "annotations": { "helm.sh/resource-policy": "keep" },
        },
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind,
                "listKind": format!("{kind}List"),
                "plural": plural,
                "singular": kind.to_ascii_lowercase(),
                "categories": ["gateway-api", "leno"],
            },
            "scope": "Namespaced",
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "subresources": { "status": {} },
                "additionalPrinterColumns": [
                    { "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" },
                ],
                "schema": { "openAPIV3Schema": {
                    "type": "object",
                    "description": description,
                    "required": ["spec"],
                    "properties": {
                        "apiVersion": { "type": "string" },
                        "kind": { "type": "string" },
                        "metadata": { "type": "object" },
                        "spec": spec,
                        "status": status_schema(),
                    },
                } },
            }],
        },
    });
    Crd { kind, name, content }
}

/// In the form that Kubernetes calls structural: nothing referred to, every type said.
fn spec_schema<Spec: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let settings = settings.with_transform(RestrictFormats::default()).with_transform(structural);
    let mut schema = settings.into_generator().into_root_schema_for::<Spec>().to_value();
    if let Some(fields) = schema.as_object_mut() {
        fields.remove("title");
    }
    schema
}

/// Formats that Kubernetes does not know say nothing to it, and `examples` is no field of OpenAPI 3.0: they go to the end of the
/// description, where `kubectl explain` shows them.
fn structural(schema: &mut schemars::Schema) {
    schemars::transform::transform_subschemas(&mut structural, schema);
    schema.remove("title");
    let known = |format: &str| matches!(format, "int32" | "int64" | "double" | "float");
    if schema.get("format").and_then(Value::as_str).is_some_and(|format| !known(format)) {
        schema.remove("format");
    }
    let example = schema.remove("example").or_else(|| match schema.remove("examples") {
        Some(Value::Array(examples)) => examples.into_iter().next(),
        other => other,
    });
    if let (Some(example), Some(description)) = (example, schema.get_mut("description")) {
        add_example(description, &example);
    }
}

/// Text as it is written, unless nothing would be seen of it.
fn add_example(description: &mut Value, example: &Value) {
    if let Value::String(description) = description {
        let text = example.as_str().filter(|text| !text.is_empty());
        let example = text.map_or_else(|| example.to_string(), str::to_owned);
        description.push_str(&format!(" Example: {example}"));
    }
}

/// Target references are replaced as a whole (server-side apply). What they may name is each kind's own, and so are the examples.
fn target_list(spec: &mut Value, target: &Target) {
    if let Some(Value::Object(list)) = spec.pointer_mut("/properties/targetRefs") {
        list.insert("x-kubernetes-list-type".to_owned(), "atomic".into());
    }
    for (field, example) in target {
        let description = format!("/properties/targetRefs/items/properties/{field}/description");
        if let Some(description) = spec.pointer_mut(&description) {
            add_example(description, &Value::from(*example));
        }
    }
    let whole: serde_json::Map<String, Value> = target
        .iter()
        .filter(|(field, _)| *field != "sectionName")
        .map(|(field, is)| ((*field).to_owned(), (*is).into()))
        .collect();
    if let Some(description) = spec.pointer_mut("/properties/targetRefs/description") {
        add_example(description, &json!([whole]));
    }
}

/// `PolicyStatus` of Gateway API.
fn status_schema() -> Value {
    json!({
        "type": "object",
        "description": "What became of the policy, by what it was attached to.",
        "required": ["ancestors"],
        "properties": { "ancestors": {
            "type": "array",
            "maxItems": super::MAX_TARGETS,
            "x-kubernetes-list-type": "atomic",
            "items": {
                "type": "object",
                "required": ["ancestorRef", "controllerName", "conditions"],
                "properties": {
                    "ancestorRef": {
                        "type": "object",
                        "required": ["name"],
                        "properties": {
                            "group": { "type": "string" },
                            "kind": { "type": "string" },
                            "namespace": { "type": "string" },
                            "name": { "type": "string" },
                            "sectionName": { "type": "string" },
                            "port": { "type": "integer", "format": "int32" },
                        },
                    },
                    "controllerName": { "type": "string" },
                    "conditions": {
                        "type": "array",
                        "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["type"],
                        "items": {
                            "type": "object",
                            "required": ["type", "status", "reason", "message", "lastTransitionTime"],
                            "properties": {
                                "type": { "type": "string" },
                                "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                                "reason": { "type": "string" },
                                "message": { "type": "string" },
                                "observedGeneration": { "type": "integer", "format": "int64" },
                                "lastTransitionTime": { "type": "string", "format": "date-time" },
                            },
                        },
                    },
                },
            },
        } },
    })
}

/// All of them as one YAML stream.
pub fn to_yaml() -> String {
    let mut text = String::from("# Generated by `leno crds`.\n");
    for crd in all() {
        text.push_str("---\n");
        // Maps with text for keys can always be written.
        text.push_str(&serde_saphyr::to_string(&crd.content).unwrap_or_default());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every part of a schema, with its path.
    fn walk(at: &str, schema: &Value, see: &mut dyn FnMut(&str, &Value)) {
        see(at, schema);
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            walk(&format!("{at}.{name}"), property, see);
        }
        if schema["items"].is_object() {
            walk(&format!("{at}[]"), &schema["items"], see);
        }
    }

    #[test]
    fn schemas_are_structural_and_every_field_is_described() {
        for crd in all() {
            let schema = crd.content.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec").unwrap();
            walk(crd.kind, schema, &mut |at, part| {
                assert!(part["type"].is_string(), "{at} has no type: {part}");
                for keyword in ["$ref", "anyOf", "oneOf", "allOf", "definitions", "examples"] {
                    assert!(part.get(keyword).is_none(), "{at} has {keyword}: {part}");
                }
                let described = part["description"].as_str().is_some_and(|text| !text.is_empty());
                assert!(described || at.ends_with("[]"), "{at} has no description");
            });
        }
    }

    /// Whoever reads `kubectl explain` needs no other page: bounds, default and an example are said.
    #[test]
    fn every_field_says_its_bounds_its_default_and_an_example() {
        let mut missing = Vec::new();
        for crd in all() {
            let schema = crd.content.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec").unwrap();
            walk(crd.kind, schema, &mut |at, part| {
                let required = part["required"].as_array().cloned().unwrap_or_default();
                for (name, field) in part["properties"].as_object().into_iter().flatten() {
                    let text = field["description"].as_str().unwrap();
                    let mut needed = ["minimum", "maximum", "minLength", "maxLength", "maxItems"]
                        .iter()
                        .filter_map(|bound| field[*bound].as_f64())
                        .map(|bound| bound.to_string())
                        .collect::<Vec<_>>();
                    needed.push("Example: ".to_owned());
                    if !required.contains(&name.as_str().into()) {
                        needed.push("Default: ".to_owned());
                    }
                    let absent = needed.iter().filter(|needed| !text.contains(*needed));
                    missing.extend(absent.map(|needed| format!("{at}.{name} does not say {needed}: {text}")));
                }
            });
        }
        assert!(missing.is_empty(), "{}", missing.join("\n"));
    }

    /// The chart's CRDs are these. After a change: `leno crds > charts/leno-crds/templates/crds.yaml`.
    #[test]
    fn the_chart_holds_what_is_generated() {
        let chart = include_str!("../../../charts/leno-crds/templates/crds.yaml");
        assert_eq!(chart, to_yaml(), "run: leno crds > charts/leno-crds/templates/crds.yaml");
    }
}
