//! The XMesh resource (GEP-3949): says that there is this mesh, and which features of Gateway API it has. Made by the leader if
//! its kind is served and no mesh of ours is there; its spec is never changed afterwards.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
};
use serde_json::{Value, json};
use tokio::{sync::watch, time::sleep};

use super::{CONTROLLER_NAME, FIELD_MANAGER, NAME, NAMESPACE, call, find, is_conflict, lease::Leader};
use crate::sources::kubernetes::resources::GATEWAY_EXPERIMENTAL;

/// What is supported, by Gateway API's names, in their order: core of the mesh profiles, then extended.
const FEATURES: [&str; 17] = [
    "GRPCRoute",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteParentRefPort",
    "HTTPRouteResponseHeaderModification",
    "Mesh",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteNamedRouteRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
];
/// The one version of it that is written.
pub(crate) const VERSION: &str = "v1alpha1";
/// As in paths.
pub(crate) const PLURAL: &str = "xmeshes";
/// Between looks at what is there.
const LOOK: Duration = Duration::from_secs(60);

/// Keeps the mesh's resource while this replica leads, until `stopping`.
///
/// # Errors
/// None: the mesh works without it.
pub async fn keep(
    client: Client,
    mut leader: watch::Receiver<Leader>,
    mut stopping: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let kind = GroupVersionKind::gvk(GATEWAY_EXPERIMENTAL, VERSION, "XMesh");
    let resource = ApiResource::from_gvk_with_plural(&kind, PLURAL);
    let meshes: Api<DynamicObject> = Api::all_with(client, &resource);
    let mut warned = false;
    loop {
        let is_me = leader.borrow_and_update().is_me;
        if is_me && let Err(error) = look(&meshes, &resource, &mut warned).await {
            tracing::warn!(error = format!("{error:#}"), "the mesh's XMesh");
        }
        tokio::select! {
            _ = stopping.wait_for(|stop| *stop) => return Ok(()),
            Ok(()) = leader.changed() => {}
            () = sleep(LOOK), if is_me => {}
        }
    }
}

async fn look(meshes: &Api<DynamicObject>, resource: &ApiResource, warned: &mut bool) -> anyhow::Result<()> {
    // Not served: Gateway API is not there, or only its standard channel.
    let Some(list) = find("list XMeshes", meshes.list(&ListParams::default())).await? else { return Ok(()) };
    let all = list.items.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>()?;
    let mut ours: Vec<Value> = all.iter().filter(|mesh| is_ours(mesh)).cloned().collect();
    if ours.is_empty() {
        if all.iter().any(|mesh| mesh["metadata"]["name"] == NAME) {
            if !std::mem::replace(warned, true) {
                tracing::warn!("there is an XMesh {NAME} of another controller: it is left alone, and none is made");
            }
            return Ok(());
        }
        let mut mesh = DynamicObject::new(NAME, resource);
        mesh.data = json!({ "spec": { "controllerName": CONTROLLER_NAME } });
        match call("make the XMesh", meshes.create(&PostParams::default(), &mesh)).await {
            Ok(made) => ours.push(serde_json::to_value(made)?),
            Err(error) if is_conflict(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    for mesh in ours {
        let Some(patch) = status(&mesh, &Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()) else { continue };
        let name = mesh["metadata"]["name"].as_str().unwrap_or_default();
        let options = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        match call("write its status", meshes.patch_status(name, &options, &Patch::Merge(&patch))).await {
            Err(error) if !is_conflict(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn is_ours(mesh: &Value) -> bool {
    mesh["spec"]["controllerName"] == CONTROLLER_NAME
}

/// Status, reason and message of its condition Accepted.
fn acceptance(mesh: &Value) -> (&'static str, &'static str, String) {
    match mesh["spec"]["parametersRef"].is_null() {
        true => ("True", "Accepted", format!("served by the control plane {NAMESPACE}/{NAME}")),
        // To take it and do nothing of what it asks for would be a lie.
        false => ("False", "InvalidParameters", "Leno takes no parameters: leave spec.parametersRef out".to_owned()),
    }
}

/// What to change in its status; None: nothing.
fn status(mesh: &Value, now: &str) -> Option<Value> {
    let features: Vec<Value> = FEATURES.iter().map(|name| json!({ "name": name })).collect();
    let before = &mesh["status"];
    let listed = before["conditions"].as_array().into_iter().flatten();
    let old = listed.clone().find(|condition| condition["type"] == "Accepted");
    let (is_accepted, reason, message) = acceptance(mesh);
    let since = old.filter(|old| old["status"] == is_accepted).and_then(|old| old["lastTransitionTime"].as_str());
    let accepted = json!({
        "type": "Accepted",
        "status": is_accepted,
        "reason": reason,
        "message": message,
        "observedGeneration": mesh["metadata"]["generation"],
        "lastTransitionTime": since.unwrap_or(now),
    });
    let others = listed.filter(|condition| condition["type"] != "Accepted").cloned();
    let conditions: Vec<Value> = [accepted].into_iter().chain(others).collect();
    let after = json!({ "conditions": conditions, "supportedFeatures": features });
    let is_said =
        before["conditions"] == after["conditions"] && before["supportedFeatures"] == after["supportedFeatures"];
    (!is_said)
        .then(|| json!({ "metadata": { "resourceVersion": mesh["metadata"]["resourceVersion"] }, "status": after }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_in_order_and_each_once() {
        assert!(FEATURES.is_sorted_by(|a, b| a < b));
        assert!(FEATURES.len() <= 64);
    }

    #[test]
    fn it_is_told_once() {
        let mut mesh = json!({ "metadata": { "name": "leno", "generation": 1, "resourceVersion": "3" } });
        let first = status(&mesh, "2026-03-01T12:00:00Z").unwrap();
        assert_eq!(first["status"]["conditions"][0]["lastTransitionTime"], "2026-03-01T12:00:00Z");
        mesh["status"] = first["status"].clone();
        assert_eq!(status(&mesh, "2026-03-02T12:00:00Z"), None);
        // The CRD's default, before anybody accepted it.
        mesh["status"]["conditions"][0]["status"] = json!("Unknown");
        let again = status(&mesh, "2026-03-02T12:00:00Z").unwrap();
        assert_eq!(again["status"]["conditions"][0]["lastTransitionTime"], "2026-03-02T12:00:00Z");
    }

    #[test]
    fn parameters_are_refused_until_they_are_gone() {
        let mut mesh = json!({
            "metadata": { "name": "leno", "generation": 1 },
            "spec": { "controllerName": CONTROLLER_NAME },
        });
        let mut told = |parameters: Value, now: &str| {
            mesh["spec"]["parametersRef"] = parameters;
            mesh["status"] = status(&mesh, now).unwrap()["status"].clone();
            mesh["status"]["conditions"][0].clone()
        };
        let accepted = told(json!(null), "2026-03-01T12:00:00Z");
        assert_eq!((&accepted["status"], &accepted["reason"]), (&json!("True"), &json!("Accepted")));
        let refused = told(json!({ "group": "", "kind": "ConfigMap", "name": "mesh" }), "2026-03-02T12:00:00Z");
        assert_eq!((&refused["status"], &refused["reason"]), (&json!("False"), &json!("InvalidParameters")));
        assert_eq!(refused["lastTransitionTime"], "2026-03-02T12:00:00Z");
        let message = refused["message"].as_str().unwrap();
        assert!(message.ends_with("leave spec.parametersRef out"), "{message}");
        let again = told(json!(null), "2026-03-03T12:00:00Z");
        assert_eq!((&again["status"], &again["lastTransitionTime"]), (&json!("True"), &json!("2026-03-03T12:00:00Z")));
    }
}
