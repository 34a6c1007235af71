//! What routes and policies are told in their status.

use anyhow::{Context as _, Result, ensure};
use kube::{
    Api,
    api::DynamicObject,
    core::{ApiResource, GroupVersionKind},
};
use serde_json::Value;

use super::{LIMIT, Namespace};
use crate::wait::eventually;

/// Who writes our conditions.
const CONTROLLER: &str = "leno.dev/control-plane";

impl Namespace {
    /// Routes of a kind of the Gateway API (`HTTPRoute`), in this namespace.
    pub fn routes(&self, kind: &str) -> Api<DynamicObject> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", kind));
        Api::namespaced_with(self.cluster().client().clone(), self.name(), &resource)
    }

    /// Waits until a route says that every proxy that uses it runs its newest generation; the condition.
    pub async fn programmed(&self, kind: &str, name: &str) -> Result<Value> {
        self.route_says(kind, name, "leno.dev/Programmed", "True", None).await
    }

    /// Waits until a condition of a route's newest generation has this status, and reason; the condition.
    pub async fn route_says(
        &self,
        kind: &str,
        name: &str,
        condition: &str,
        status: &str,
        reason: Option<&str>,
    ) -> Result<Value> {
        let what = format!("{condition} of {kind} {name} is {status} {}", reason.unwrap_or_default());
        eventually(&what, LIMIT, async || {
            let found = self.condition(kind, name, condition).await?;
            ensure!(found["status"] == status && reason.is_none_or(|reason| found["reason"] == reason), "{found}");
            Ok(found)
        })
        .await
    }

    /// A condition of a route's newest generation as it is now. Fails if there is none, or only of an earlier generation.
    pub async fn condition(&self, kind: &str, name: &str, condition: &str) -> Result<Value> {
        let route = self.routes(kind).get(name).await?;
        let found = conditions(&route, 0)?.into_iter().find(|one| one["type"] == condition);
        let found = found.with_context(|| format!("no {condition}: {}", route.data["status"]))?;
        ensure!(found["observedGeneration"].as_i64() == route.metadata.generation, "of an earlier one: {found}");
        Ok(found)
    }
}

/// Our conditions of a route, at the n-th of the parents that we speak of.
pub fn conditions(route: &DynamicObject, parent: usize) -> Result<Vec<Value>> {
    let parents = route.data["status"]["parents"].as_array().cloned().unwrap_or_default();
    let ours = parents.iter().filter(|entry| entry["controllerName"] == CONTROLLER).nth(parent);
    let ours = ours.with_context(|| format!("no status of ours: {parents:?}"))?;
    Ok(ours["conditions"].as_array().cloned().unwrap_or_default())
}
