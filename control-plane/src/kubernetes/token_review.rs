//! Who a workload is: the API server says it of a service-account token ([`TokenReviewer::review`]).
//!
//! Only tokens with Leno's audience count, so that a token that leaked elsewhere is worth nothing here; and only those that are
//! bound to a Pod, which the API server refuses once the Pod is gone. Nothing is cached: a proxy asks a few times a day.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::{Api, Client, api::PostParams};
use leno_proto::spiffe::SpiffeId;
use tokio::sync::Semaphore;
use tonic::Status;

use super::{limits, within};
use crate::authority::{bound_pod::BoundPod, is_control_plane};

/// What a token must be made for.
pub const AUDIENCE: &str = "leno.dev";
/// Longest token looked at, in bytes.
const MAX_TOKEN: usize = 16 * 1024;
/// What the API server says of the Pod that a token is bound to.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Who holds a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    pub identity: SpiffeId,
    pub pod: BoundPod,
}

/// Why a token does not prove anything.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error("the API server refused the token: {0}")]
    ByApiServer(String),
    #[error("the token is not made for the audience {AUDIENCE:?}: project one that is (volume serviceAccountToken)")]
    Audience,
    #[error("the token is of {0:?}, which is no service account")]
    NotServiceAccount(String),
    #[error("the token is not bound to a Pod: only one that the kubelet projected into a Pod is taken")]
    NotBound,
    #[error("{0} is the control plane's own identity: no proxy gets it")]
    ControlPlane(SpiffeId),
    #[error("the service account cannot be an identity: {0}")]
    Name(String),
}

/// Asks the API server.
pub struct TokenReviewer {
    api: Api<TokenReview>,
    trust_domain: Arc<str>,
    places: Semaphore,
}

impl TokenReviewer {
    pub fn new(client: Client, trust_domain: &str) -> Self {
        Self { api: Api::all(client), trust_domain: trust_domain.into(), places: Semaphore::new(limits::REVIEWS) }
    }

    /// Whose token it is.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` if it proves nothing; `UNAVAILABLE`, to be asked again, if the API server does not say.
    pub async fn review(&self, token: &str) -> Result<Workload, Status> {
        if token.len() > MAX_TOKEN {
            return Err(Status::unauthenticated(format!("the token is longer than {MAX_TOKEN} bytes")));
        }
        let Ok(_place) = self.places.try_acquire() else {
            return Err(Status::unavailable(format!(
                "{} tokens are being reviewed already: come back in a moment",
                limits::REVIEWS
            )));
        };
        let question = TokenReview {
            spec: TokenReviewSpec { audiences: Some(vec![AUDIENCE.to_owned()]), token: token.trim().to_owned() },
            ..TokenReview::default()
        };
        let answer = within(limits::REVIEW, self.api.create(&PostParams::default(), &question)).await;
        let answer = answer.map_err(|error| {
            tracing::warn!(error = format!("{error:#}"), "cannot have a token reviewed");
            Status::unavailable(format!("the API server cannot review the token now: {error:#}"))
        })?;
        judge(&answer.status.unwrap_or_default(), &self.trust_domain)
            .map_err(|refused| Status::unauthenticated(refused.to_string()))
    }
}

fn judge(status: &TokenReviewStatus, trust_domain: &str) -> Result<Workload, Refused> {
    let (Some(user), Some(true)) = (&status.user, status.authenticated) else {
        let reason = status.error.clone().unwrap_or_else(|| "it is not valid".to_owned());
        return Err(Refused::ByApiServer(reason));
    };
    // A server that does not know of audiences names none.
    if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
        return Err(Refused::Audience);
    }
    let name = user.username.as_deref().unwrap_or_default();
    let account = name.strip_prefix("system:serviceaccount:").and_then(|account| account.split_once(':'));
    let Some((namespace, service_account)) = account else { return Err(Refused::NotServiceAccount(name.to_owned())) };
    let identity = SpiffeId::new(trust_domain, namespace, service_account).map_err(|e| Refused::Name(e.to_string()))?;
    if is_control_plane(&identity) {
        return Err(Refused::ControlPlane(identity));
    }
    let extra = user.extra.as_ref();
    match (said(extra, POD_NAME), said(extra, POD_UID)) {
        (Some(name), Some(uid)) => Ok(Workload { identity, pod: BoundPod { name, uid } }),
        _ => Err(Refused::NotBound),
    }
}

fn said(extra: Option<&BTreeMap<String, Vec<String>>>, key: &str) -> Option<String> {
    extra?.get(key)?.first().filter(|said| !said.is_empty()).cloned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(change: impl FnOnce(&mut serde_json::Value)) -> TokenReviewStatus {
        let mut status = json!({
            "authenticated": true,
            "audiences": ["leno.dev"],
            "user": {
                "username": "system:serviceaccount:shop:cart",
                "extra": { POD_NAME: ["cart-7d9"], POD_UID: ["2f0c"], "authentication.kubernetes.io/node-name": ["n1"] },
            },
        });
        change(&mut status);
        serde_json::from_value(status).unwrap()
    }

    #[test]
    fn a_token_of_a_pod_is_its_service_account() {
        let workload = judge(&status(|_| {}), "cluster.local").unwrap();
        assert_eq!(workload.identity.as_str(), "spiffe://cluster.local/ns/shop/sa/cart");
        assert_eq!((workload.pod.name.as_str(), workload.pod.uid.as_str()), ("cart-7d9", "2f0c"));
    }

    #[test]
    fn what_proves_nothing_is_refused_with_the_reason() {
        let refused = |change: fn(&mut serde_json::Value)| judge(&status(change), "cluster.local").unwrap_err();
        let expired = refused(|s| {
            *s = json!({ "authenticated": false, "error": "[invalid bearer token, token has expired]" });
        });
        assert!(expired.to_string().ends_with("token has expired]"), "{expired}");
        assert_eq!(refused(|s| s["audiences"] = json!(["vault"])), Refused::Audience);
        assert_eq!(refused(|s| s["audiences"] = json!(null)), Refused::Audience);
        assert_eq!(refused(|s| s["user"]["extra"] = json!(null)), Refused::NotBound);
        assert_eq!(refused(|s| s["user"]["extra"][POD_UID] = json!([])), Refused::NotBound);
        let user = refused(|s| s["user"]["username"] = json!("kubernetes-admin"));
        assert_eq!(user, Refused::NotServiceAccount("kubernetes-admin".to_owned()));
        let own = refused(|s| s["user"]["username"] = json!("system:serviceaccount:leno-system:leno"));
        assert!(matches!(own, Refused::ControlPlane(_)));
        assert_eq!(
            judge(&TokenReviewStatus::default(), "cluster.local").unwrap_err().to_string(),
            "the API server refused the token: it is not valid"
        );
    }
}
