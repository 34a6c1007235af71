//! What `leno check` finds in a cluster: before the mesh is installed (`--pre`), and once it is.
//!
//! Everything is asked with the rights of whoever asks; what they may not see is said to be so and is not wrong.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use k8s_openapi::{
    api::{
        admissionregistration::v1::{
            MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
        },
        apps::v1::Deployment,
        authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
        core::v1::{ConfigMap, Namespace, Pod},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use leno_proto::CONTROL_PLANE_NAMESPACE as NAMESPACE;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::json;
use tokio::time::sleep;

use super::Findings;
use crate::{
    api,
    authority::issue,
    kubernetes::{Failure, call, code, find, mesh},
    sources::kubernetes::resources::{self, GATEWAY, GATEWAY_EXPERIMENTAL},
    webhook::inject::{INJECT, PROXY, REDIRECT, SYSTEM_NAMESPACES},
};

/// The oldest Kubernetes whose Pods have native sidecars unless told otherwise.
const OLDEST: (u32, u32) = (1, 29);
/// Name of the Deployment, and of the webhook configurations.
const NAME: &str = "leno";
/// From a replica's readiness until API servers reach it, and the leader has written what Pods need, at most.
const SETTLING: Duration = Duration::from_secs(10);
/// Between two looks whether it is so.
const AGAIN: Duration = Duration::from_millis(500);
/// Pods and namespaces that are named at most.
const NAMED: usize = 5;
/// Pods in one answer of the API server.
const PAGE: u32 = 500;

/// Defines the Gateway API's routes, in versions that are read.
const INSTALL_ROUTES: &str = "kubectl apply --server-side -f \
     https://github.com/kubernetes-sigs/gateway-api/releases/download/v1.6.1/standard-install.yaml";

/// What must be so before the mesh is installed.
pub(super) async fn before(client: &Client, findings: &mut Findings) -> anyhow::Result<()> {
    version(client, findings).await?;
    kinds(client, findings, false).await?;
    permissions(client, findings).await?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    if let Ok(Some(namespace)) = find("read the namespace", namespaces.get(NAMESPACE)).await {
        let level = namespace.metadata.labels.as_ref().and_then(|l| l.get("pod-security.kubernetes.io/enforce"));
        findings
            .well(&format!("the namespace {NAMESPACE} exists{}", level.map_or(String::new(), |l| format!(" ({l})"))));
    }
    Ok(())
}

/// What must be so once it is.
pub(super) async fn installed(client: &Client, findings: &mut Findings) -> anyhow::Result<()> {
    version(client, findings).await?;
    kinds(client, findings, true).await?;
    let image = control_plane(client, findings).await?;
    let patience = if image.is_some() { SETTLING } else { Duration::ZERO };
    webhooks(client, patience, findings).await?;
    trust(client, patience, findings).await?;
    pods(client, image.as_deref(), findings).await
}

async fn version(client: &Client, findings: &mut Findings) -> anyhow::Result<()> {
    findings.title("Kubernetes");
    let version = call("ask the API server for its version", client.apiserver_version()).await?;
    // Some providers write "34+".
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(0);
    let is = (number(&version.major), number(&version.minor));
    match is >= OLDEST {
        true => findings.well(&format!("it is {}", version.git_version)),
        false => findings.wrong(
            &format!("it is {}, which has no native sidecars", version.git_version),
            &format!("upgrade it to {}.{} or later", OLDEST.0, OLDEST.1),
        ),
    }
    Ok(())
}

async fn kinds(client: &Client, findings: &mut Findings, ours_needed: bool) -> anyhow::Result<()> {
    findings.title("Kinds");
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut readable: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    // Of the Gateway API: routes, what only its experimental channel has, and what is in versions that are not read.
    let (mut missing, mut experimental, mut unreadable) = (Vec::new(), Vec::new(), Vec::new());
    let mut ours = Vec::new();
    let all = resources::ALL.into_iter().map(|kind| (kind.group, kind.plural, kind.versions));
    let custom = all.filter(|(group, ..)| [GATEWAY, GATEWAY_EXPERIMENTAL, api::GROUP].contains(group));
    for (group, kind, versions) in custom.chain([(GATEWAY_EXPERIMENTAL, mesh::PLURAL, &[mesh::VERSION][..])]) {
        let definition = match find("read the definition", definitions.get(&format!("{kind}.{group}"))).await {
            Ok(definition) => definition,
            Err(error) => {
                findings.unknown("whether the kinds are defined", &error);
                return Ok(());
            }
        };
        match (defined(definition.as_ref(), versions), group) {
            (Defined::Readable { .. }, api::GROUP) => {}
            (_, api::GROUP) => ours.push(kind),
            (Defined::Readable { bundle }, _) => readable.entry(bundle).or_default().push(kind),
            (Defined::Not, GATEWAY) => missing.push(kind),
            (Defined::Not, _) => experimental.push(kind),
            // Nothing hangs on an XMesh.
            (Defined::Unreadable { .. }, _) if kind == mesh::PLURAL => experimental.push(kind),
            (Defined::Unreadable { served }, _) => {
                unreadable.push(format!("{kind} (served: {served}; read: {})", versions.join(", ")));
            }
        }
    }
    for (bundle, kinds) in &readable {
        findings.well(&format!("Gateway API {bundle}: {}", kinds.join(", ")));
    }
    if !unreadable.is_empty() {
        findings.wrong(
            &format!("only in versions that Leno does not read: {}; none of these is in force", unreadable.join(", ")),
            "if they are newer than Leno, upgrade it; else bring the Gateway API to v1.1 or newer, as its release notes say: \
             objects that are stored in versions which the newer one has no longer are written anew first",
        );
    }
    if !missing.is_empty() {
        findings.doubtful(
            &format!("not defined: {} of the Gateway API; there can be none of these routes", missing.join(", ")),
            INSTALL_ROUTES,
        );
    }
    if !experimental.is_empty() {
        let kinds = experimental.join(", ");
        findings.note(&format!("not defined as Leno knows them: {kinds} of the Gateway API's experimental channel"));
    }
    match (ours.is_empty(), ours_needed) {
        (true, _) => findings.well("Leno's kinds are defined"),
        (false, true) => findings.wrong(
            &format!("not defined as Leno reads them: {}; none of these policies is in force", ours.join(", ")),
            &format!("helm upgrade --install leno-crds charts/leno-crds --namespace {NAMESPACE}"),
        ),
        (false, false) => findings.well("Leno's kinds are not defined yet: the chart leno-crds does it"),
    }
    Ok(())
}

/// How a kind is defined in the cluster.
#[derive(Debug, PartialEq, Eq)]
enum Defined {
    Not,
    /// By this release of the Gateway API; empty if it does not say.
    Readable {
        bundle: String,
    },
    /// Its objects are stored, and nobody reads them.
    Unreadable {
        served: String,
    },
}

fn defined(definition: Option<&CustomResourceDefinition>, read: &[&str]) -> Defined {
    let Some(definition) = definition else { return Defined::Not };
    let served = definition.spec.versions.iter().filter(|version| version.served);
    let served: Vec<&str> = served.map(|version| version.name.as_str()).collect();
    if !served.iter().any(|version| read.contains(version)) {
        return Defined::Unreadable { served: served.join(", ") };
    }
    let annotations = definition.metadata.annotations.as_ref();
    let bundle = annotations.and_then(|all| all.get("gateway.networking.k8s.io/bundle-version"));
    Defined::Readable { bundle: bundle.cloned().unwrap_or_default() }
}

/// Whether whoever asks may install.
async fn permissions(client: &Client, findings: &mut Findings) -> anyhow::Result<()> {
    findings.title("Permissions");
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let mut refused = Vec::new();
    for (group, resource, namespace) in [
        ("apiextensions.k8s.io", "customresourcedefinitions", None),
        ("rbac.authorization.k8s.io", "clusterroles", None),
        ("rbac.authorization.k8s.io", "clusterrolebindings", None),
        ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", None),
        ("admissionregistration.k8s.io", "validatingwebhookconfigurations", None),
        ("apps", "deployments", Some(NAMESPACE)),
        ("", "services", Some(NAMESPACE)),
        ("", "secrets", Some(NAMESPACE)),
    ] {
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    group: Some(group.to_owned()),
                    resource: Some(resource.to_owned()),
                    verb: Some("create".to_owned()),
                    namespace: namespace.map(str::to_owned),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let answer = call("ask what you may do", reviews.create(&PostParams::default(), &review)).await?;
        if !answer.status.is_some_and(|status| status.allowed) {
            refused.push(resource);
        }
    }
    match refused.is_empty() {
        true => findings.well("you may install Leno"),
        false => findings.wrong(
            &format!("you may not create {}", refused.join(", ")),
            "install it as somebody who may, such as a cluster-admin",
        ),
    }
    Ok(())
}

/// What is found once it is as it should be, or patience is over.
async fn settled<T>(patience: Duration, mut look: impl AsyncFnMut() -> T, is_so: impl Fn(&T) -> bool) -> T {
    let until = Instant::now() + patience;
    loop {
        let found = look().await;
        if is_so(&found) || Instant::now() >= until {
            return found;
        }
        sleep(AGAIN).await;
    }
}

/// The Deployment; returns its image.
async fn control_plane(client: &Client, findings: &mut Findings) -> anyhow::Result<Option<String>> {
    findings.title("Control plane");
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    let deployment = match find("read the Deployment", deployments.get(NAME)).await {
        Ok(Some(deployment)) => deployment,
        Ok(None) => {
            findings.wrong(
                &format!("it is not installed: there is no Deployment {NAMESPACE}/{NAME}"),
                &format!("helm install leno charts/leno --namespace {NAMESPACE}"),
            );
            return Ok(None);
        }
        Err(error) => {
            findings.unknown("whether it is installed", &error);
            return Ok(None);
        }
    };
    let spec = deployment.spec;
    let (wanted, status) = (spec.replicas.unwrap_or(1), deployment.status.unwrap_or_default());
    let (ready, updated) = (status.ready_replicas.unwrap_or(0), status.updated_replicas.unwrap_or(0));
    let what = format!("{ready} of {wanted} replicas are ready");
    let logs = format!("kubectl logs --namespace {NAMESPACE} deployment/{NAME}");
    match (ready, updated) {
        (0, _) => findings.wrong(&what, &logs),
        _ if ready < wanted => findings.doubtful(&what, &logs),
        (_, updated) if updated < wanted => findings.doubtful(&format!("{what}, {updated} of this version"), &logs),
        _ => findings.well(&what),
    }
    let containers = spec.template.spec.map(|spec| spec.containers).unwrap_or_default();
    let image = containers.into_iter().find(|container| container.name == NAME).and_then(|container| container.image);
    if let Some(image) = &image {
        findings.well(&format!("it runs {image}; this command is {}", env!("CARGO_PKG_VERSION")));
    }
    Ok(image)
}

async fn webhooks(client: &Client, patience: Duration, findings: &mut Findings) -> anyhow::Result<()> {
    findings.title("Webhooks");
    // First, since it waits.
    let made = trial(client, patience).await;
    let now = SystemTime::now();
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let upgrade = format!("helm upgrade leno charts/leno --namespace {NAMESPACE}");
    match find("read the MutatingWebhookConfiguration", mutating.get(NAME)).await {
        Ok(Some(found)) => {
            for webhook in found.webhooks.unwrap_or_default() {
                bundle(&webhook.name, &webhook.client_config, now, findings);
            }
        }
        Ok(None) => findings.wrong("there is no MutatingWebhookConfiguration leno: no Pod is injected", &upgrade),
        Err(error) => findings.unknown("whether Pods are injected", &error),
    }
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    match find("read the ValidatingWebhookConfiguration", validating.get(NAME)).await {
        Ok(Some(found)) => {
            for webhook in found.webhooks.unwrap_or_default() {
                bundle(&webhook.name, &webhook.client_config, now, findings);
            }
        }
        Ok(None) => findings.doubtful("Leno's objects are not checked before they are stored", &upgrade),
        Err(error) => findings.unknown("whether objects are checked", &error),
    }
    tried(made, findings);
    Ok(())
}

/// Whether API servers can trust the webhook.
fn bundle(webhook: &str, config: &WebhookClientConfig, now: SystemTime, findings: &mut Findings) {
    let restart = format!("the control plane puts it in: kubectl logs --namespace {NAMESPACE} deployment/{NAME}");
    let Some(bundle) = &config.ca_bundle else {
        return findings.wrong(&format!("{webhook} has no caBundle: API servers cannot trust it"), &restart);
    };
    let latest = CertificateDer::pem_slice_iter(&bundle.0).flatten();
    let latest =
        latest.filter_map(|certificate| issue::validity(&certificate).ok()).map(|(_, not_after)| not_after).max();
    match latest {
        None => findings.wrong(&format!("the caBundle of {webhook} holds no certificate"), &restart),
        Some(not_after) if not_after <= now => {
            let what = format!("the caBundle of {webhook} expired at {}", issue::display(not_after));
            findings.wrong(&what, &restart);
        }
        Some(not_after) => findings.well(&format!("{webhook} is trusted until {}", issue::display(not_after))),
    }
}

/// Has the API server make a Pod, but for making it.
async fn trial(client: &Client, patience: Duration) -> anyhow::Result<Pod> {
    let pod: Pod = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "leno-check-dry-run", "labels": { INJECT: "enabled" } },
        "spec": {
            "securityContext": { "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{
                "name": "none", "image": "none",
                "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
            }],
        },
    }))?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let look = async || call("make a Pod in the namespace default, as a dry run", pods.create(&dry_run, &pod)).await;
    let is_decided = |made: &anyhow::Result<Pod>| match made {
        Ok(made) => has_sidecar(made),
        Err(error) => !format!("{error:#}").contains("failed calling webhook"),
    };
    settled(patience, look, is_decided).await
}

/// Whether it came back with a sidecar.
fn tried(made: anyhow::Result<Pod>, findings: &mut Findings) {
    match made {
        Ok(made) if has_sidecar(&made) => findings.well("a Pod that asks for it is injected (dry run)"),
        Ok(_) => findings.wrong(
            "a Pod that asks for it is not injected (dry run)",
            &format!("kubectl logs --namespace {NAMESPACE} deployment/{NAME}"),
        ),
        // Pod Security looks at what injection made of it, and wants no more than it already knows.
        Err(error) if violates_pod_security(&error) && format!("{error:#}").contains(REDIRECT) => findings.well(
            "a Pod that asks for it is injected (dry run; Pod Security lets none with the redirect's init container into the \
             namespace default)",
        ),
        Err(error) => findings.unknown("whether a Pod that asks for it is injected (dry run)", &error),
    }
}

async fn trust(client: &Client, patience: Duration, findings: &mut Findings) -> anyhow::Result<()> {
    findings.title("Trust bundle");
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let look = async || find("read the ConfigMap leno-trust-bundle", maps.get("leno-trust-bundle")).await;
    let found = match settled(patience, look, |found| !matches!(found, Ok(None))).await {
        Ok(found) => found,
        Err(error) => {
            findings.unknown("what proxies trust", &error);
            return Ok(());
        }
    };
    let text = found.and_then(|map| map.data?.remove("trust-bundle.pem"));
    let Some(text) = text else {
        findings.wrong(
            "there is no ConfigMap leno-trust-bundle: injected Pods cannot start",
            &format!("the control plane makes it: kubectl logs --namespace {NAMESPACE} deployment/{NAME}"),
        );
        return Ok(());
    };
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()).flatten() {
        let Ok((_, not_after)) = issue::validity(&certificate) else { continue };
        let what = format!("a root is valid until {}", issue::display(not_after));
        let next =
            "bring a new root in the Secret leno-root; both are trusted until the old one's certificates are gone";
        match issue::alarm(not_after, SystemTime::now()) {
            Some(0) => findings.wrong(&format!("a root expired at {}", issue::display(not_after)), next),
            Some(_) => findings.doubtful(&what, next),
            None => findings.well(&what),
        }
    }
    Ok(())
}

/// Pods that should be in the mesh and are not, and those whose sidecar is of another version.
async fn pods(client: &Client, image: Option<&str>, findings: &mut Findings) -> anyhow::Result<()> {
    findings.title("Pods");
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let enabled = ListParams::default().labels(&format!("{INJECT}=enabled"));
    let enabled: Vec<String> = match call("list the namespaces", namespaces.list(&enabled)).await {
        Ok(found) => found.items.into_iter().filter_map(|namespace| namespace.metadata.name).collect(),
        Err(error) => {
            findings.unknown("which namespaces are in the mesh", &error);
            return Ok(());
        }
    };
    let all: Api<Pod> = Api::all(client.clone());
    let (mut meshed, mut outside, mut old) = (0, Vec::new(), Vec::new());
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let found = match call("list the Pods", all.list(&page)).await {
            Ok(found) => found,
            Err(error) => {
                findings.unknown("which Pods are in the mesh", &error);
                return Ok(());
            }
        };
        for pod in &found.items {
            let namespace = pod.metadata.namespace.clone().unwrap_or_default();
            let title = format!("{namespace}/{}", pod.metadata.name.clone().unwrap_or_default());
            if has_sidecar(pod) {
                meshed += 1;
                if !image.is_none_or(|image| same_version(pod, image)) {
                    old.push(title);
                }
            } else if enabled.contains(&namespace) && should_be_meshed(pod) {
                outside.push(title);
            }
        }
        match found.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => break,
        }
    }
    findings.well(&format!("{meshed} in the mesh; injection is enabled in {} namespaces", enabled.len()));
    let restart = "restart them: kubectl rollout restart deployment --namespace NAMESPACE";
    if !outside.is_empty() {
        findings
            .doubtful(&format!("made before injection was enabled, without a sidecar: {}", some_of(&outside)), restart);
    }
    if !old.is_empty() {
        findings.doubtful(
            &format!("their sidecar is of another version than the control plane: {}", some_of(&old)),
            restart,
        );
    }
    Ok(())
}

fn some_of(names: &[String]) -> String {
    let named = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

fn sidecar_image(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    containers.find(|container| container.name == PROXY).map(|proxy| proxy.image.as_deref().unwrap_or_default())
}

fn has_sidecar(pod: &Pod) -> bool {
    sidecar_image(pod).is_some()
}

/// By the tag; of images by digest nothing can be said.
fn same_version(pod: &Pod, control_plane: &str) -> bool {
    let tag = |image: &str| {
        let name = image.rsplit('/').next().unwrap_or(image);
        (!name.contains('@')).then(|| name.split_once(':').map(|(_, tag)| tag.to_owned())).flatten()
    };
    match (sidecar_image(pod).and_then(tag), tag(control_plane)) {
        (Some(proxy), Some(control_plane)) => proxy == control_plane,
        _ => true,
    }
}

fn should_be_meshed(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    let says = |map: &Option<BTreeMap<String, String>>| map.as_ref().and_then(|map| map.get(INJECT)).cloned();
    let mark = says(&pod.metadata.annotations).or_else(|| says(&pod.metadata.labels));
    let ended = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let system = pod.metadata.namespace.as_deref().is_some_and(|n| n == NAMESPACE || SYSTEM_NAMESPACES.contains(&n));
    mark.as_deref() != Some("disabled")
        && !system
        && spec.is_none_or(|spec| spec.host_network != Some(true))
        && !matches!(ended, Some("Succeeded" | "Failed"))
        && pod.metadata.deletion_timestamp.is_none()
}

/// It is a 403, too, but has nothing to do with rights.
fn violates_pod_security(error: &anyhow::Error) -> bool {
    format!("{error:#}").contains("violates PodSecurity")
}

impl Findings {
    /// What cannot be told, for want of permission or because it failed.
    pub(super) fn unknown(&mut self, what: &str, error: &anyhow::Error) {
        let refused = error.downcast_ref().is_some_and(|Failure(error)| code(error) == Some(403));
        // A forwarded port's refusal comes wrapped in what cannot be looked into.
        let forbidden = refused || format!("{error:#}").contains("Forbidden");
        match forbidden && !violates_pod_security(error) {
            true if self.unknown_is_wrong => self.wrong(&format!("you may not see {what}"), ""),
            true => self.note(&format!("you may not see {what}")),
            false => self.wrong(&format!("it cannot be told {what}: {error:#}"), ""),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_kind_counts_by_the_versions_in_which_it_is_served() {
        let definition = |versions: &[(&str, bool)]| -> CustomResourceDefinition {
            let version = |(name, served): &(&str, bool)| json!({ "name": name, "served": served, "storage": false });
            let versions: Vec<_> = versions.iter().map(version).collect();
            serde_json::from_value(json!({
                "metadata": { "annotations": { "gateway.networking.k8s.io/bundle-version": "v1.0.0" } },
                "spec": {
                    "group": GATEWAY, "names": { "kind": "GRPCRoute", "plural": "grpcroutes" }, "scope": "Namespaced",
                    "versions": versions,
                },
            }))
            .unwrap()
        };
        let readable = Defined::Readable { bundle: "v1.0.0".to_owned() };
        let unreadable = |served: &str| Defined::Unreadable { served: served.to_owned() };
        let read = &["v1", "v1beta1"];
        assert_eq!(defined(None, read), Defined::Not);
        assert_eq!(defined(Some(&definition(&[("v1", true)])), read), readable);
        assert_eq!(defined(Some(&definition(&[("v1", false), ("v1beta1", true)])), read), readable);
        assert_eq!(defined(Some(&definition(&[("v1alpha2", true), ("v2", true)])), read), unreadable("v1alpha2, v2"));
        assert_eq!(defined(Some(&definition(&[("v1alpha2", true), ("v1", false)])), read), unreadable("v1alpha2"));
    }

    #[test]
    fn versions_are_compared_by_tag() {
        let with = |image: &str| {
            pod(json!({ "spec": { "containers": [], "initContainers": [{ "name": PROXY, "image": image }] } }))
        };
        assert!(same_version(&with("r:5000/leno-proxy:1.0"), "r:5000/leno:1.0"));
        assert!(!same_version(&with("r:5000/leno-proxy:1.0"), "r:5000/leno:1.1"));
        assert!(same_version(&with("r/leno-proxy@sha256:0"), "r/leno:1.1"), "nothing can be said");
        assert!(!has_sidecar(&pod(json!({ "spec": { "containers": [{ "name": "a" }] } }))));
    }

    #[test]
    fn only_pods_that_would_be_injected_are_missed() {
        let plain = json!({ "metadata": { "namespace": "shop" }, "spec": { "containers": [] } });
        assert!(should_be_meshed(&pod(plain.clone())));
        for (pointer, value) in [
            ("/metadata", json!({ "namespace": "shop", "labels": { INJECT: "disabled" } })),
            ("/metadata", json!({ "namespace": "kube-system" })),
            ("/spec", json!({ "containers": [], "hostNetwork": true })),
        ] {
            let mut other = plain.clone();
            *other.pointer_mut(pointer).unwrap() = value;
            assert!(!should_be_meshed(&pod(other.clone())), "{other}");
        }
        let mut ended = plain;
        ended["status"] = json!({ "phase": "Succeeded" });
        assert!(!should_be_meshed(&pod(ended)));
    }

    #[test]
    fn pod_security_is_not_taken_for_missing_rights() {
        let refusal = |message: &str| {
            let status = json!({ "status": "Failure", "message": message, "reason": "Forbidden", "code": 403 });
            let status = serde_json::from_value(status).unwrap();
            anyhow::Error::from(Failure(kube::Error::Api(status))).context("cannot make a Pod")
        };
        let wrong = |error: &anyhow::Error| {
            let style = crate::cli::print::Style::of_stdout();
            let mut findings = Findings { style, wrong: 0, doubtful: 0, unknown_is_wrong: false };
            findings.unknown("something", error);
            findings.wrong
        };
        let insecure = refusal(
            "pods \"a\" is forbidden: violates PodSecurity \"baseline:latest\": non-default capabilities (container \
             \"leno-redirect\" must not include \"NET_ADMIN\" in securityContext.capabilities.add)",
        );
        assert!(violates_pod_security(&insecure) && wrong(&insecure) == 1);
        let forbidden = refusal("pods is forbidden: User \"u\" cannot create resource \"pods\"");
        assert!(!violates_pod_security(&forbidden) && wrong(&forbidden) == 0);
    }

    #[test]
    fn few_are_named() {
        let names: Vec<String> = (0..7).map(|n| n.to_string()).collect();
        assert_eq!(some_of(&names[..2]), "0, 1");
        assert_eq!(some_of(&names), "0, 1, 2, 3, 4 and 2 more");
    }
}
