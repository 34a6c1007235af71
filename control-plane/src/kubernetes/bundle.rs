//! The trust bundle as proxies find it at their start: the ConfigMap `leno-trust-bundle` in every namespace that has injection
//! on, or a Pod with a proxy, and in the control plane's own. The leader makes, corrects and removes them.
//!
//! A Pod may be there before its ConfigMap: the kubelet tries the mount again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{FIELD_MANAGER, NAME, NAMESPACE, call, find, lease::Leader, limits};
use crate::{
    authority::Authority,
    model::{Object, World},
};

/// In every namespace of the mesh.
pub const CONFIG_MAP: &str = "leno-trust-bundle";
/// Its one entry: trust anchors in PEM.
pub const KEY: &str = "trust-bundle.pem";
/// Whose it is; one without is somebody else's, and stays when it is not needed.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// Namespace → what the bundle in it says, and whether it is ours.
type Present = BTreeMap<String, (String, bool)>;

#[derive(Debug, PartialEq, Eq, Clone)]
enum Step {
    Write(String),
    Remove(String),
}

/// Namespaces whose Pods need the bundle.
fn wanted(world: &World) -> BTreeSet<String> {
    let of_mesh = world.objects.iter().filter_map(|(key, stored)| match stored.object.as_ref() {
        Object::Namespace(namespace) if namespace.injects => Some(key.name.to_string()),
        Object::Pod(pod) if pod.meshed => Some(key.namespace.to_string()),
        _ => None,
    });
    of_mesh.chain([NAMESPACE.to_owned()]).collect()
}

fn steps(wanted: &BTreeSet<String>, present: &Present, bundle: &str) -> Vec<Step> {
    let write = wanted.iter().filter(|namespace| present.get(*namespace).is_none_or(|(text, _)| text != bundle));
    let unneeded = present.iter().filter(|(namespace, (_, ours))| *ours && !wanted.contains(*namespace));
    write.cloned().map(Step::Write).chain(unneeded.map(|(namespace, _)| Step::Remove(namespace.clone()))).collect()
}

/// Publishes the bundle while this replica leads, until `stopping`.
pub struct Publisher {
    client: Client,
    authority: Arc<Authority>,
    /// As they were when last listed, and as they were written since.
    present: Present,
}

impl Publisher {
    pub fn new(client: Client, authority: Arc<Authority>) -> Self {
        Self { client, authority, present: Present::new() }
    }

    /// # Errors
    /// None: what fails is tried again.
    pub async fn run(
        mut self,
        mut world: watch::Receiver<Arc<World>>,
        mut leader: watch::Receiver<Leader>,
        mut stopping: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let mut bundle = self.authority.bundle();
        let mut next_list = Instant::now();
        loop {
            if leader.borrow_and_update().is_me {
                if Instant::now() >= next_list {
                    let wait = match self.list().await {
                        Ok(()) => limits::BUNDLE_RESYNC,
                        Err(error) => {
                            tracing::warn!(error = format!("{error:#}"), "trust bundles cannot be compared");
                            limits::RETRY
                        }
                    };
                    next_list = Instant::now() + wait.mul_f64(0.8 + 0.4 * fastrand::f64());
                }
                world.mark_unchanged();
                bundle.mark_unchanged();
                let wanted = wanted(&world.borrow());
                let published = tokio::select! {
                    published = self.publish(&wanted) => published,
                    // Who no longer leads leaves the rest to who does.
                    Ok(()) = leader.changed() => continue,
                    _ = stopping.wait_for(|stop| *stop) => return Ok(()),
                };
                if !published {
                    next_list = next_list.min(Instant::now() + limits::RETRY);
                }
            } else {
                // Whoever comes to lead looks at what is there.
                next_list = Instant::now();
            }
            let is_me = leader.borrow().is_me;
            tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => return Ok(()),
                Ok(()) = leader.changed() => {}
                Ok(()) = world.changed(), if is_me => {}
                Ok(()) = bundle.changed(), if is_me => {}
                () = sleep_until(next_list), if is_me => {}
            }
            tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => return Ok(()),
                () = sleep(PACE) => {}
            }
        }
    }

    async fn list(&mut self) -> anyhow::Result<()> {
        let all: Api<ConfigMap> = Api::all(self.client.clone());
        let parameters = ListParams::default().fields(&format!("metadata.name={CONFIG_MAP}"));
        let found = call("list the ConfigMaps leno-trust-bundle", all.list(&parameters)).await?;
        let describe = |map: ConfigMap| {
            let text = map.data.and_then(|mut data| data.remove(KEY)).unwrap_or_default();
            let ours = map.metadata.labels.is_some_and(|labels| labels.get(MANAGED_BY).is_some_and(|by| by == NAME));
            Some((map.metadata.namespace?, (text, ours)))
        };
        self.present = found.items.into_iter().filter_map(describe).collect();
        Ok(())
    }

    /// Returns whether all of it succeeded.
    async fn publish(&mut self, wanted: &BTreeSet<String>) -> bool {
        let bundle = self.authority.bundle_pem();
        let mut all = true;
        for step in steps(wanted, &self.present, &bundle) {
            let done = match &step {
                Step::Write(namespace) => self.write(namespace, &bundle).await,
                Step::Remove(namespace) => self.remove(namespace).await,
            };
            if let Err(error) = done {
                tracing::warn!(?step, error = format!("{error:#}"), "the trust bundle of a namespace");
                all = false;
            }
        }
        all
    }

    async fn write(&mut self, namespace: &str, bundle: &str) -> anyhow::Result<()> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let map = Patch::Apply(json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": CONFIG_MAP, "labels": { MANAGED_BY: NAME } },
            "data": { KEY: bundle },
        }));
        let apply = PatchParams::apply(FIELD_MANAGER).force();
        // A namespace that is just going takes nothing new, and needs nothing.
        let written = async {
            match api.patch(CONFIG_MAP, &apply, &map).await {
                Err(error) if is_going(&error) => Ok(None),
                written => written.map(Some),
            }
        };
        if find("write the ConfigMap leno-trust-bundle", written).await?.flatten().is_some() {
            self.present.insert(namespace.to_owned(), (bundle.to_owned(), true));
        }
        Ok(())
    }

    async fn remove(&mut self, namespace: &str) -> anyhow::Result<()> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        find("remove the ConfigMap leno-trust-bundle", api.delete(CONFIG_MAP, &DeleteParams::default())).await?;
        self.present.remove(namespace);
        Ok(())
    }
}

/// Whether it was refused because the namespace is being deleted.
fn is_going(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 403 && causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

/// Changes of the configuration come in crowds.
const PACE: Duration = Duration::from_millis(300);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Document, Generations, MeshSettings};

    #[test]
    fn a_namespace_that_is_going_takes_nothing_new() {
        let refused = |code: u16, reason: &str| {
            let status = json!({
                "status": "Failure", "message": "no", "reason": "Forbidden", "code": code,
                "details": { "causes": [{ "reason": reason, "message": "it is being terminated", "field": "metadata.namespace" }] },
            });
            kube::Error::Api(serde_json::from_value(status).unwrap())
        };
        assert!(is_going(&refused(403, "NamespaceTerminating")));
        assert!(!is_going(&refused(403, "FieldValueForbidden")) && !is_going(&refused(404, "NamespaceTerminating")));
    }

    #[test]
    fn namespaces_of_the_mesh_need_it() {
        let documents = [
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"leno.dev/inject": "enabled"}}}),
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "plain"}}),
        ];
        let documents = documents.into_iter().zip(1..).map(|(content, index)| Document {
            file: "all".into(),
            index,
            content: Arc::new(content),
        });
        let world = World::empty(MeshSettings::strict("cluster.local"), Generations::default());
        let world = world.apply(documents.collect(), Vec::new());
        assert_eq!(wanted(&world).into_iter().collect::<Vec<_>>(), ["leno-system", "shop"]);
    }

    #[test]
    fn what_is_missing_is_made_what_differs_corrected_what_is_ours_and_unneeded_removed() {
        let wanted: BTreeSet<String> = ["a", "b", "c"].map(str::to_owned).into();
        let entry = |namespace: &str, text: &str, ours| (namespace.to_owned(), (text.to_owned(), ours));
        let present = Present::from([
            entry("b", "old", true),
            entry("c", "new", true),
            entry("d", "new", true),
            entry("e", "something", false),
        ]);
        let expected = [Step::Write("a".to_owned()), Step::Write("b".to_owned()), Step::Remove("d".to_owned())];
        assert_eq!(steps(&wanted, &present, "new"), expected);
    }
}
