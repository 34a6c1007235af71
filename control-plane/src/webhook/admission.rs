//! `admission.k8s.io/v1` as far as it is used: a question in, an answer out. Pure.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    inject::{self, Context, Outcome},
    patch,
    settings::Settings,
    validate,
};

/// Pods of namespaces that have injection enabled.
pub(super) const INJECT_NAMESPACE: &str = "/inject/namespace";
/// Pods that themselves ask for it.
pub(super) const INJECT_POD: &str = "/inject/pod";
/// Objects of ours.
pub(super) const VALIDATE: &str = "/validate";

#[derive(Deserialize)]
struct Review {
    request: Request,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    object: Value,
    #[serde(default)]
    old_object: Value,
}

/// What was decided, for the log.
#[derive(Debug, PartialEq)]
pub(super) struct Answer {
    /// The AdmissionReview to send.
    pub(super) review: Value,
    /// "Pod shop/cart-"
    pub(super) object: String,
    pub(super) decision: String,
    pub(super) allowed: bool,
}

/// Answers the question that was posted to `path`.
///
/// # Errors
/// If the path or the body is not one of admission's.
pub(super) fn answer(path: &str, body: &[u8], settings: &Settings, nonce: &str) -> Result<Answer, String> {
    let review: Review = serde_json::from_slice(body)
        .map_err(|error| format!("expected an AdmissionReview of admission.k8s.io/v1 with a request: {error}"))?;
    let request = review.request;
    match path {
        INJECT_NAMESPACE => Ok(injection(request, settings, true, nonce)),
        INJECT_POD => Ok(injection(request, settings, false, nonce)),
        VALIDATE => Ok(validation(request)),
        _ => Err(format!("{path}: expected {INJECT_NAMESPACE}, {INJECT_POD} or {VALIDATE}")),
    }
}

fn injection(request: Request, settings: &Settings, by_default: bool, nonce: &str) -> Answer {
    let namespace = request.namespace.as_str();
    let context = Context { settings, namespace, by_default, nonce };
    let mut response = json!({ "uid": request.uid, "allowed": true });
    let (decision, warnings) = match inject::inject(&request.object, &context) {
        Outcome::Injected { pod, warnings } => {
            response["patchType"] = "JSONPatch".into();
            response["patch"] = base64(patch::between(&request.object, &pod).to_string().as_bytes()).into();
            ("injected".to_owned(), warnings)
        }
        Outcome::Left { reason, warnings } => (format!("left as it is: {reason}"), warnings),
        Outcome::Refused { reason } => {
            response["allowed"] = false.into();
            response["status"] = refusal(&format!("cannot be injected: {reason}"));
            (format!("refused: {reason}"), Vec::new())
        }
    };
    finish(&request, response, decision, warnings)
}

fn validation(request: Request) -> Answer {
    let mut response = json!({ "uid": request.uid, "allowed": true });
    let found = match request.operation.as_str() {
        "CREATE" | "UPDATE" => validate::validate(&request.object, &request.old_object),
        _ => validate::Found::default(),
    };
    let decision = match found.wrong.as_slice() {
        [] => "valid".to_owned(),
        wrong => {
            response["allowed"] = false.into();
            response["status"] = refusal(&wrong.join("; "));
            format!("refused: {}", wrong.join("; "))
        }
    };
    finish(&request, response, decision, found.warnings)
}

fn refusal(message: &str) -> Value {
    json!({ "status": "Failure", "reason": "Invalid", "code": 422, "message": format!("leno: {message}") })
}

fn finish(request: &Request, mut response: Value, decision: String, warnings: Vec<String>) -> Answer {
    if !warnings.is_empty() {
        let said: Vec<String> = warnings.into_iter().map(|warning| format!("leno: {warning}")).collect();
        response["warnings"] = said.into();
    }
    let metadata = &request.object["metadata"];
    let name = metadata["name"].as_str().or_else(|| metadata["generateName"].as_str()).unwrap_or_default();
    Answer {
        allowed: response["allowed"] == true,
        object: format!("{} {}/{name}", request.object["kind"].as_str().unwrap_or_default(), request.namespace),
        decision,
        review: json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response }),
    }
}

/// RFC 4648 4, as `[]byte` is written in JSON.
fn base64(bytes: &[u8]) -> String {
    // The Kubernetes types know how; there is no need for another way.
    match serde_json::to_value(k8s_openapi::ByteString(bytes.to_vec())) {
        Ok(Value::String(text)) => text,
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::patch::tests::apply;

    fn ask(path: &str, request: Value) -> Answer {
        let body = json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request });
        answer(path, body.to_string().as_bytes(), &Settings::default(), "n").unwrap()
    }

    #[test]
    fn a_pod_is_injected_by_a_patch() {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "generateName": "cart-" },
            "spec": { "containers": [{ "name": "cart", "image": "cart" }] },
        });
        let request = json!({ "uid": "u1", "operation": "CREATE", "namespace": "shop", "object": pod });
        let answer = ask(INJECT_NAMESPACE, request.clone());
        let response = &answer.review["response"];
        assert_eq!((&response["uid"], &response["allowed"]), (&json!("u1"), &json!(true)));
        assert_eq!(answer.object, "Pod shop/cart-");
        let bytes: k8s_openapi::ByteString = serde_json::from_value(response["patch"].clone()).unwrap();
        let patched = apply(&pod, &serde_json::from_slice(&bytes.0).unwrap());
        assert_eq!(patched["spec"]["initContainers"][1]["name"], inject::PROXY);
        assert_eq!(
            ask(INJECT_POD, request).decision,
            "left as it is: neither its namespace nor the Pod has leno.dev/inject: enabled"
        );
    }

    #[test]
    fn a_refusal_says_why() {
        let pod = json!({
            "kind": "Pod", "metadata": { "name": "a" },
            "spec": { "containers": [{ "name": "a", "securityContext": { "runAsUser": 2102 } }] },
        });
        let answer = ask(INJECT_NAMESPACE, json!({ "uid": "u", "namespace": "shop", "object": pod }));
        assert!(!answer.allowed);
        let message = answer.review["response"]["status"]["message"].as_str().unwrap();
        assert!(message.contains("runs as user 2102"), "{message}");
    }

    #[test]
    fn an_object_of_ours_is_read_as_the_control_plane_reads_it() {
        let policy = |value: &str| {
            json!({
                "apiVersion": "leno.dev/v1alpha1", "kind": "BackendPolicy", "metadata": { "name": "p", "namespace": "shop" },
                "spec": { "targetRefs": [{ "group": "", "kind": "Service", "name": "cart" }],
                          "timeouts": { "connect": value } },
            })
        };
        let ask = |operation: &str, object: Value, old: Value| {
            ask(
                VALIDATE,
                json!({ "uid": "u", "operation": operation, "namespace": "shop", "object": object, "oldObject": old }),
            )
        };
        let bad = ask("CREATE", policy("soon"), Value::Null);
        assert!(!bad.allowed && bad.decision.contains("spec."), "{}", bad.decision);
        assert!(ask("DELETE", Value::Null, policy("soon")).allowed);
        // What is stored already may still be labelled, or lose its finalizers.
        let mut labelled = policy("soon");
        labelled["metadata"]["labels"] = json!({ "a": "b" });
        assert!(ask("UPDATE", labelled, policy("soon")).allowed);
        assert!(!ask("UPDATE", policy("later"), policy("soon")).allowed);
    }

    #[test]
    fn what_is_no_question_is_told() {
        let settings = Settings::default();
        assert!(answer(VALIDATE, b"{}", &settings, "").unwrap_err().contains("AdmissionReview"));
        let body = json!({ "request": { "uid": "u" } }).to_string();
        assert!(answer("/mutate", body.as_bytes(), &settings, "").unwrap_err().contains(INJECT_POD));
    }
}
