//! The webhooks' certificate: in the Secret `leno-webhook`, which all replicas serve from.
//!
//! Leno makes it and renews it at two thirds of its life, or cert-manager does (then Leno only reads it). Whoever renews
//! puts the authority before it beside the new one into `ca.crt`; every replica sees to it that the webhook configurations
//! trust what the Secret says, and serves a new certificate one look later, when API servers have learned of it.
//! Replicas need not agree: the Secret's resourceVersion lets one of them through.

mod pems;

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};

use anyhow::bail;
use arc_swap::ArcSwapOption;
use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
        core::v1::Secret,
    },
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
};
use rustls::ServerConfig;
use serde_json::json;
use tokio::time::sleep;
use tokio_stream::StreamExt as _;

use self::pems::Pems;
use super::limits;
use crate::{
    authority::issue,
    kubernetes::{call, find},
};

/// The field manager of what Leno changes.
const MANAGER: &str = "leno";

/// Where certificates are kept and who trusts them.
#[derive(Debug, Clone)]
pub struct Options {
    /// The control plane's namespace.
    pub namespace: String,
    /// Secret of type kubernetes.io/tls, with ca.crt.
    pub secret: String,
    /// Service by which API servers come.
    pub service: String,
    /// Name of both webhook configurations.
    pub configuration: String,
    /// Whether Leno makes the certificate; else somebody else does, and tells the webhook configurations, too.
    pub managed: bool,
}

impl Options {
    /// As the chart names things.
    pub fn new(namespace: String, managed: bool) -> Self {
        Self {
            namespace,
            secret: "leno-webhook".to_owned(),
            service: "leno-webhook".to_owned(),
            configuration: "leno".to_owned(),
            managed,
        }
    }

    /// The names that API servers may call.
    fn names(&self) -> Vec<String> {
        let (service, namespace) = (&self.service, &self.namespace);
        vec![format!("{service}.{namespace}.svc"), format!("{service}.{namespace}.svc.cluster.local")]
    }
}

/// Keeps a certificate to serve.
pub(super) struct Certificates {
    client: Client,
    options: Options,
    serving: Arc<ArcSwapOption<ServerConfig>>,
    /// The certificate that is served.
    served: Option<Vec<u8>>,
    /// Its end, Unix time; 0: there is none.
    not_after: Arc<AtomicU64>,
    /// The Secret's version that was last read.
    version: Option<String>,
    /// Looks that failed one after another.
    failures: u32,
}

impl Certificates {
    pub(super) fn new(client: Client, options: Options) -> Self {
        let (serving, not_after) = (Arc::default(), Arc::default());
        Self { client, options, serving, served: None, not_after, version: None, failures: 0 }
    }

    /// What to serve with; none as long as there is no certificate.
    pub(super) fn serving(&self) -> Arc<ArcSwapOption<ServerConfig>> {
        Arc::clone(&self.serving)
    }

    /// End of the certificate that is served, Unix time; 0: there is none.
    pub(super) fn not_after(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.not_after)
    }

    /// Looks again and again, and at once when somebody else has changed the Secret.
    pub(super) async fn keep(mut self) {
        loop {
            let soon = self.served.is_none() || (!self.options.managed && self.version.is_none());
            tokio::select! {
                () = sleep(if soon { limits::CERTIFICATE_RETRY } else { limits::CERTIFICATE_CHECK }) => {}
                // However often it changes, it is not looked at more often than that.
                () = async { tokio::join!(sleep(limits::CERTIFICATE_RETRY), self.changed()); } => {}
            }
            self.look().await;
        }
    }

    /// Returns when the Secret has changed since it was last read; never, if that cannot be seen: it is looked at now and again.
    async fn changed(&self) {
        if let (Some(version), false) = (&self.version, self.options.managed) {
            let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.options.namespace);
            let only = WatchParams::default().fields(&format!("metadata.name={}", self.options.secret));
            if let Ok(events) = secrets.watch(&only, version).await {
                let mut events = pin!(events);
                while let Some(Ok(event)) = events.next().await {
                    if matches!(event, WatchEvent::Added(_) | WatchEvent::Modified(_) | WatchEvent::Deleted(_)) {
                        return;
                    }
                }
            }
        }
        std::future::pending().await
    }

    /// One look; what fails is logged, and what is served stays.
    pub(super) async fn look(&mut self) {
        match self.refresh(SystemTime::now()).await {
            Ok(()) => self.failures = 0,
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                // Once, and then now and again.
                if self.failures.is_power_of_two() {
                    tracing::warn!(failures = self.failures, "the webhooks' certificate: {error:#}");
                }
            }
        }
    }

    async fn refresh(&mut self, now: SystemTime) -> anyhow::Result<()> {
        let pems = self.current(now).await?;
        if self.options.managed && self.make_known(&pems.ca).await? && self.served.is_some() {
            // API servers learn of it within moments, not at once.
            return Ok(());
        }
        if self.served.as_deref() != Some(pems.certificate.as_slice()) {
            let (tls, not_after) = pems.server_config()?;
            tracing::info!(not_after = %issue::display(not_after), "webhooks serve a new certificate");
            self.serving.store(Some(tls));
            self.not_after.store(issue::unix(not_after), Relaxed);
            self.served = Some(pems.certificate);
        }
        Ok(())
    }

    /// What is in the Secret, made or renewed first if need be.
    async fn current(&mut self, now: SystemTime) -> anyhow::Result<Pems> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.options.namespace);
        let name = &self.options.secret;
        // Of what is not there, or cannot be read, no change is waited for: an API server would tell of its end again and again.
        self.version = None;
        let found = find(&format!("read the Secret {name}"), secrets.get(name)).await?;
        let Some(secret) = found else {
            if !self.options.managed {
                bail!("there is no Secret {name} yet: cert-manager is to make it (see its Certificate of that name)");
            }
            let made = Pems::make(&self.options.names(), None, now)?;
            let made = self.secret(&made, None);
            let created = call(&format!("make the Secret {name}"), secrets.create(&PostParams::default(), &made)).await;
            // Another replica may have been first; what is there counts.
            return created.and_then(|secret| Pems::of(&secret));
        };
        self.version.clone_from(&secret.metadata.resource_version);
        let held = Pems::of(&secret);
        if !self.options.managed {
            return held;
        }
        match held {
            Ok(held) if !held.renewal_due(&self.options.names(), now) => Ok(held),
            held => {
                if let Err(error) = &held {
                    tracing::warn!("the Secret {name} holds no certificate; it is made anew: {error:#}");
                }
                let made = Pems::make(&self.options.names(), held.ok().as_ref(), now)?;
                let version = secret.metadata.resource_version.clone();
                let made = self.secret(&made, version);
                let options = PostParams::default();
                let replaced =
                    call(&format!("renew the Secret {name}"), secrets.replace(name, &options, &made)).await?;
                Pems::of(&replaced)
            }
        }
    }

    fn secret(&self, pems: &Pems, version: Option<String>) -> Secret {
        let data = [("ca.crt", &pems.ca), ("tls.crt", &pems.certificate), ("tls.key", &pems.key)];
        let labels = [("app.kubernetes.io/name", "leno"), ("app.kubernetes.io/managed-by", "leno")];
        Secret {
            metadata: ObjectMeta {
                name: Some(self.options.secret.clone()),
                namespace: Some(self.options.namespace.clone()),
                resource_version: version,
                labels: Some(labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into()),
                ..ObjectMeta::default()
            },
            type_: Some("kubernetes.io/tls".to_owned()),
            data: Some(data.map(|(name, pem)| (name.to_owned(), ByteString(pem.clone()))).into()),
            ..Secret::default()
        }
    }

    /// Has API servers trust `ca`; whether that was news.
    async fn make_known(&self, ca: &[u8]) -> anyhow::Result<bool> {
        let name = &self.options.configuration;
        let ca = ByteString(ca.to_vec());
        let mutating: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let mut changed = false;
        if let Some(found) = find("read the MutatingWebhookConfiguration", mutating.get(name)).await? {
            let held = found.webhooks.iter().flatten().map(|webhook| &webhook.client_config.ca_bundle);
            if let Some(patch) = trust(held, &ca) {
                call("change the MutatingWebhookConfiguration", mutating.patch(name, &changing(), &patch)).await?;
                changed = true;
            }
        }
        let validating: Api<ValidatingWebhookConfiguration> = Api::all(self.client.clone());
        if let Some(found) = find("read the ValidatingWebhookConfiguration", validating.get(name)).await? {
            let held = found.webhooks.iter().flatten().map(|webhook| &webhook.client_config.ca_bundle);
            if let Some(patch) = trust(held, &ca) {
                call("change the ValidatingWebhookConfiguration", validating.patch(name, &changing(), &patch)).await?;
                changed = true;
            }
        }
        Ok(changed)
    }
}

fn changing() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() }
}

/// Changes that make every webhook trust `ca`; none if all do.
fn trust<'a>(held: impl Iterator<Item = &'a Option<ByteString>>, ca: &ByteString) -> Option<Patch<()>> {
    let stale = held.enumerate().filter(|(_, held)| held.as_ref() != Some(ca));
    let operations: Vec<_> = stale
        // "add" also replaces.
        .map(|(index, _)| json!({ "op": "add", "path": format!("/webhooks/{index}/clientConfig/caBundle"), "value": ca }))
        .collect();
    if operations.is_empty() {
        return None;
    }
    // Operations of our own making are well formed.
    serde_json::from_value(operations.into()).ok().map(Patch::Json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_webhooks_that_do_not_trust_it_are_changed() {
        let (ca, other) = (ByteString(b"ca".to_vec()), ByteString(b"other".to_vec()));
        let held = [Some(ca.clone()), None, Some(other)];
        let Some(Patch::Json(patch)) = trust(held.iter(), &ca) else { panic!("there is something to change") };
        let paths: Vec<_> = patch.0.iter().map(|operation| operation.path().to_string()).collect();
        assert_eq!(paths, ["/webhooks/1/clientConfig/caBundle", "/webhooks/2/clientConfig/caBundle"]);
        assert!(trust([Some(ca.clone())].iter(), &ca).is_none());
    }
}
