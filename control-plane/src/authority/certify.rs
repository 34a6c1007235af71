//! `Identity.Certify`: a certificate for whoever proves, by token or by a certificate that is still valid, who they are.

use std::{sync::Arc, time::SystemTime};

use leno_proto::{
    spiffe::SpiffeId,
    v1::{CertifyRequest, CertifyResponse, identity_server::Identity},
};
use tonic::{Request, Response, Status};

use super::{Authority, bound_pod::BoundPod, issue, to_der};
use crate::{
    kubernetes::token_review::{TokenReviewer, Workload},
    serve::listener::Peer,
};

/// How workloads prove who they are.
pub enum Proof {
    /// By a join token first, later by the certificate that is still valid.
    JoinToken,
    /// By their Pod's service-account token, each time: once the Pod is gone there are no more certificates.
    TokenReview(Box<TokenReviewer>),
}

/// Answers `Identity.Certify`.
pub struct Certifier {
    authority: Arc<Authority>,
    proof: Proof,
    on_issued: Box<dyn Fn() + Send + Sync>,
}

impl Certifier {
    /// `on_issued` is called for each certificate (metrics).
    pub fn new(authority: Arc<Authority>, proof: Proof, on_issued: impl Fn() + Send + Sync + 'static) -> Self {
        Self { authority, proof, on_issued: Box::new(on_issued) }
    }

    /// Whom the certificate is for, and the Pod that it is bound to.
    async fn authenticate(
        &self,
        token: &str,
        peer: Option<&Peer>,
        now: SystemTime,
    ) -> Result<(SpiffeId, Option<BoundPod>), Status> {
        match &self.proof {
            Proof::JoinToken => self.by_join_token(token, peer, now),
            Proof::TokenReview(_) if token.is_empty() => Err(Status::unauthenticated(
                "no token was given: in Kubernetes certificates are had, and renewed, by the Pod's service-account token",
            )),
            Proof::TokenReview(reviewer) => {
                let Workload { identity, pod } = reviewer.review(token).await?;
                tracing::debug!(pod = pod.name, uid = pod.uid, %identity, "reviewed a token");
                Ok((identity, Some(pod)))
            }
        }
    }

    /// Who asks: by token, or else by the client certificate of the connection, whose Pod, if it has one, stays.
    fn by_join_token(
        &self,
        token: &str,
        peer: Option<&Peer>,
        now: SystemTime,
    ) -> Result<(SpiffeId, Option<BoundPod>), Status> {
        if let Some(tokens) = self.authority.tokens().filter(|_| !token.is_empty()) {
            let identity = tokens.verify(token, now).map_err(|e| Status::unauthenticated(e.to_string()))?;
            return Ok((identity, None));
        }
        let Some(peer) = peer.and_then(|p| p.certificate.as_ref()) else {
            return Err(Status::unauthenticated(
                "neither a token nor a client certificate was given: make a token with `leno token`",
            ));
        };
        // The handshake checked it once; the connection may have outlived it.
        if now >= peer.not_after {
            return Err(Status::unauthenticated(format!(
                "the client certificate expired at {}: a new token is needed (`leno token`)",
                issue::display(peer.not_after)
            )));
        }
        Ok((peer.identity.clone(), peer.pod.clone()))
    }
}

#[tonic::async_trait]
impl Identity for Certifier {
    async fn certify(&self, request: Request<CertifyRequest>) -> Result<Response<CertifyResponse>, Status> {
        let now = SystemTime::now();
        let peer = request.extensions().get::<Peer>().cloned();
        let from = peer.as_ref().map(|p| p.address);
        let request = request.into_inner();
        let (identity, pod) = self.authenticate(&request.token, peer.as_ref(), now).await.inspect_err(|status| {
            tracing::warn!(?from, reason = status.message(), "refused a certificate");
        })?;
        let issued = self.authority.issue(&request.csr, &identity, pod.as_ref(), now).map_err(|error| {
            tracing::warn!(?from, %identity, %error, "refused a certificate");
            match error {
                issue::IssueError::TooLarge | issue::IssueError::BadRequest(_) => {
                    Status::invalid_argument(error.to_string())
                }
                issue::IssueError::IssuerExpired(_) => Status::failed_precondition(error.to_string()),
                issue::IssueError::Sign(_) | issue::IssueError::Pod(_) | issue::IssueError::Random => {
                    Status::internal(error.to_string())
                }
            }
        })?;
        (self.on_issued)();
        tracing::debug!(?from, %identity, not_after = %issue::display(issued.not_after), "issued a certificate");
        Ok(Response::new(CertifyResponse {
            chain: to_der(&issued.chain),
            anchors: to_der(&self.authority.material().anchors),
            identity: identity.to_string(),
            not_before: issue::unix_i64(issued.not_before),
            not_after: issue::unix_i64(issued.not_after),
            renew_by_token: matches!(self.proof, Proof::TokenReview(_)),
        }))
    }
}
