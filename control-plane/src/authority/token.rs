//! Join tokens: how a workload outside Kubernetes says who it is, the first time. A JWT (RFC 7519), ES256, signed by a
//! key of the state folder, bound to one namespace and service account.

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::bail;
use aws_lc_rs::hmac;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use leno_proto::spiffe::SpiffeId;
use serde::{Deserialize, Serialize};

use super::{files, issue::unix};

/// For `leno token` without `--lifetime`.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(3600);
/// A token cannot be revoked, only waited out.
pub const MAX_LIFETIME: Duration = Duration::from_secs(366 * 24 * 3600);
/// How far the clocks of two control planes that share a key may differ.
const LEEWAY: u64 = 30;
/// Longest token looked at, in bytes.
const MAX_TOKEN: usize = 16 * 1024;
/// Only this service takes these tokens.
const AUDIENCE: &str = "leno-control-plane";

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    /// The identity.
    sub: String,
    iat: u64,
    exp: u64,
}

/// Why a token was refused.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("the token is longer than {MAX_TOKEN} bytes")]
    TooLong,
    #[error("the token was not signed by this control plane, or is damaged ({0}): make a new one with `leno token`")]
    Invalid(#[source] jsonwebtoken::errors::Error),
    #[error("the token expired {}: make a new one with `leno token`", super::issue::display(UNIX_EPOCH + Duration::from_secs(*.0)))]
    Expired(u64),
    #[error("the token is for {0}, which is not of the trust domain {1}")]
    WrongTrustDomain(String, String),
}

/// Signs and verifies join tokens.
pub struct TokenKey {
    trust_domain: String,
    signing: EncodingKey,
    verifying: DecodingKey,
    session_key: [u8; 32],
}

/// A secret that control planes share, and nobody else has, made into another (as HKDF does, RFC 5869).
fn session_key(secret: &[u8]) -> [u8; 32] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let tag = hmac::sign(&key, b"leno session persistence");
    tag.as_ref().first_chunk().copied().unwrap_or_default()
}

impl TokenKey {
    /// From the state folder; made on first use.
    ///
    /// # Errors
    /// If the key cannot be read or written.
    pub fn load_or_make(state: &Path, trust_domain: &str) -> anyhow::Result<Self> {
        let key = files::load_or_make_key(&state.join(files::TOKEN_KEY))?;
        Ok(Self {
            trust_domain: trust_domain.to_owned(),
            signing: EncodingKey::from_ec_der(key.serialized_der()),
            verifying: DecodingKey::from_ec_der(key.public_key_raw()),
            session_key: session_key(key.serialized_der()),
        })
    }

    /// What proxies seal session tokens with: the same for all control planes of a mesh, and after each start.
    pub fn session_key(&self) -> [u8; 32] {
        self.session_key
    }

    /// A token for one service account, and when it expires.
    ///
    /// # Errors
    /// If the names cannot be part of an identity, or the lifetime is none or too long.
    pub fn issue(
        &self,
        namespace: &str,
        service_account: &str,
        lifetime: Duration,
        now: SystemTime,
    ) -> anyhow::Result<(String, SystemTime)> {
        let identity = SpiffeId::new(&self.trust_domain, namespace, service_account)?;
        if super::is_control_plane(&identity) {
            bail!("{identity} is the control plane's own identity: no token is made for it");
        }
        if lifetime < Duration::from_secs(1) || lifetime > MAX_LIFETIME {
            bail!("a token lives between 1 second and 366 days");
        }
        let expires_at = now + lifetime;
        let claims = Claims {
            iss: self.trust_domain.clone(),
            aud: AUDIENCE.to_owned(),
            sub: identity.to_string(),
            iat: unix(now),
            exp: unix(expires_at),
        };
        let token = jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.signing)?;
        Ok((token, expires_at))
    }

    /// Who the token is for.
    ///
    /// # Errors
    /// If it is not a token of this key, for this service and trust domain, that is valid now.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<SpiffeId, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::TooLong);
        }
        let mut rules = Validation::new(Algorithm::ES256);
        rules.set_audience(&[AUDIENCE]);
        rules.set_issuer(&[&self.trust_domain]);
        rules.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        // Judged below, by the clock that is given.
        rules.validate_exp = false;
        let claims =
            jsonwebtoken::decode::<Claims>(token.trim(), &self.verifying, &rules).map_err(TokenError::Invalid)?.claims;
        if unix(now) >= claims.exp.saturating_add(LEEWAY) {
            return Err(TokenError::Expired(claims.exp));
        }
        match claims.sub.parse::<SpiffeId>() {
            Ok(identity) if identity.trust_domain() == self.trust_domain && !super::is_control_plane(&identity) => {
                Ok(identity)
            }
            _ => Err(TokenError::WrongTrustDomain(claims.sub, self.trust_domain.clone())),
        }
    }
}
