//! Gets and renews the workload's certificate: key and CSR here, `Identity.Certify` there, renewal at
//! 2/3 of life with jitter, backoff while the control plane is away. The key never leaves this process.
//!
//! The first certificate is had for the token; later ones for the certificate that is still valid, or for the token again
//! where the control plane says so (Kubernetes, where the kubelet puts a new one into the file in time) or the certificate
//! expired.

use std::{
    fs,
    hash::{BuildHasher, RandomState},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use hyper_util::rt::TokioIo;
use leno_proto::v1::{CertifyRequest, CertifyResponse, identity_client::IdentityClient};
use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tonic::{Code, Status, transport::Endpoint};

use super::{CredentialStore, Credentials, FirstContact, InvalidCredentials, TlsError, TlsStream, schedule};
use crate::{config::Config, net::connect::KnownHost};

/// One try: connecting, handshake and answer.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// While the control plane is away, one line this often says so (the first failure always does).
const REMINDER: Duration = Duration::from_secs(60);

/// Keeps `store` supplied with a valid certificate, for ever.
pub async fn run(config: Arc<Config>, store: Arc<CredentialStore>) {
    let mark = config.transparent.as_ref().and_then(|transparent| transparent.mark);
    let applicant = Applicant {
        control_plane: KnownHost::new(&config.control_plane, mark),
        trust_bundle: config.trust_bundle.clone(),
        token_file: config.token_file.clone(),
        renew_by_token: AtomicBool::new(false),
        store,
    };
    let metrics = Metrics::new();
    let mut failures = 0;
    let mut reminded: Option<Instant> = None;
    loop {
        match applicant.apply().await {
            Ok(credentials) => {
                metrics.issued(&credentials);
                let wait = schedule::renew_after(left(&credentials), chance());
                tracing::info!(
                    identity = %credentials.id, epoch = credentials.epoch, valid_for = ?left(&credentials),
                    renewal_in = ?wait, "certificate issued"
                );
                (failures, reminded) = (0, None);
                sleep_until_renewal(wait).await;
            }
            Err(error) => {
                failures += 1;
                metrics.failures.increment(1);
                let wait = schedule::backoff(failures, chance());
                if reminded.is_none_or(|last| last.elapsed() >= REMINDER) {
                    reminded = Some(Instant::now());
                    applicant.warn(&error, failures, wait);
                }
                sleep(wait).await;
            }
        }
    }
}

/// Sleeps for `wait`, or less if the wall clock gets there sooner (suspend, clock set forward): it is what certificates
/// expire by.
async fn sleep_until_renewal(wait: Duration) {
    let renewal = schedule::Renewal::after(wait, Instant::now().into_std(), SystemTime::now());
    while let Some(slice) = renewal.sleep(Instant::now().into_std(), SystemTime::now()) {
        sleep(slice).await;
    }
}

fn left(credentials: &Credentials) -> Duration {
    credentials.not_after.duration_since(SystemTime::now()).unwrap_or_default()
}

/// A number in 0.0..1.0 that differs between processes and calls; only spreads load.
fn chance() -> f64 {
    (RandomState::new().hash_one(0u8) >> 11) as f64 / (1u64 << 53) as f64
}

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot reach the control plane at {address}: {error}")]
    Unreachable { address: String, error: io::Error },
    #[error("TLS with the control plane: {0}")]
    Tls(#[from] TlsError),
    #[error("the trust bundle {path}: {reason}", path = path.display())]
    Bundle { path: PathBuf, reason: String },
    #[error("no valid certificate to renew with, and no token: give one with --token-file")]
    NoToken,
    #[error("the token {path}: {error}", path = path.display())]
    Token { path: PathBuf, error: io::Error },
    #[error("the control plane refused: {message} ({code:?})", message = .0.message(), code = .0.code())]
    Refused(Status),
    #[error("the connection to the control plane: {0}")]
    Broken(String),
    #[error("the control plane's answer: {0}")]
    Answer(#[from] InvalidCredentials),
    #[error("making a key and its request: {0}")]
    Key(#[from] rcgen::Error),
    #[error("no answer from the control plane within {ATTEMPT_TIMEOUT:?}")]
    Timeout,
}

impl Failure {
    /// A transport error hides what happened in its sources; a status without one is the control plane's word.
    fn from_status(status: Status) -> Self {
        match std::error::Error::source(&status) {
            Some(source) => Self::Broken(innermost(source).to_string()),
            None => Self::Refused(status),
        }
    }

    /// Whether a token may help where the certificate did not.
    fn is_about_proof(&self) -> bool {
        match self {
            Self::Refused(status) => matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied),
            // TLS 1.3 tells a client that it is refused only after the client's handshake has ended.
            Self::Tls(_) | Self::Broken(_) => true,
            _ => false,
        }
    }
}

/// Who asks for certificates, and what it has to show.
struct Applicant {
    control_plane: KnownHost,
    trust_bundle: PathBuf,
    token_file: Option<PathBuf>,
    /// As the control plane said with the last certificate.
    renew_by_token: AtomicBool,
    store: Arc<CredentialStore>,
}

impl Applicant {
    /// One try: over mTLS if there is a valid certificate, else, or if that does not do, by token alone.
    async fn apply(&self) -> Result<Arc<Credentials>, Failure> {
        let renewed = match self.store.current() {
            Some(current) if SystemTime::now() < current.not_after => Some(self.as_ourselves(&current).await),
            _ => None,
        };
        let answer = match renewed {
            Some(Err(failure)) if failure.is_about_proof() && self.token_file.is_some() => {
                tracing::debug!(reason = %failure, "renewing by token");
                self.by_token().await?
            }
            Some(outcome) => outcome?,
            None => self.by_token().await?,
        };
        self.renew_by_token.store(answer.renew_by_token, Relaxed);
        Ok(self.store.install(answer.credentials))
    }

    /// The connection is verified with the anchors in force, which are newer than those of the bundle file while a root
    /// changes.
    async fn as_ourselves(&self, current: &Credentials) -> Result<Answer, Failure> {
        let token = match self.token_file.as_deref().filter(|_| self.renew_by_token.load(Relaxed)) {
            Some(file) => read_token(file)?,
            None => String::new(),
        };
        within_attempt(async {
            let stream = current.connect_control_plane(self.connect().await?).await?;
            certify(stream, token).await
        })
        .await
    }

    async fn by_token(&self) -> Result<Answer, Failure> {
        // Both are read anew each time: tokens are rotated, and so are roots.
        let token = read_token(self.token_file.as_deref().ok_or(Failure::NoToken)?)?;
        let bundle = |reason: String| Failure::Bundle { path: self.trust_bundle.clone(), reason };
        let pem = fs::read(&self.trust_bundle).map_err(|error| bundle(error.to_string()))?;
        let contact = FirstContact::from_pem(&pem).map_err(|error| bundle(error.to_string()))?;
        within_attempt(async {
            let stream = contact.connect(self.connect().await?).await?;
            certify(stream, token).await
        })
        .await
    }

    async fn connect(&self) -> Result<TcpStream, Failure> {
        let unreachable = |error| Failure::Unreachable { address: self.control_plane.as_str().to_owned(), error };
        self.control_plane.connect().await.map_err(unreachable)
    }

    fn warn(&self, failure: &Failure, failures: u32, retry_in: Duration) {
        match self.store.current() {
            None => {
                tracing::warn!(%failure, failures, ?retry_in, "no certificate yet: the workload cannot speak to the mesh");
            }
            Some(current) if left(&current).is_zero() => {
                tracing::error!(%failure, failures, ?retry_in, "the certificate expired: peers refuse new connections");
            }
            Some(current) => {
                let valid_for = left(&current);
                tracing::warn!(%failure, failures, ?retry_in, ?valid_for, "cannot renew the certificate");
            }
        }
    }
}

fn innermost<'a>(mut error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

async fn within_attempt<T>(attempt: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    timeout(ATTEMPT_TIMEOUT, attempt).await.unwrap_or(Err(Failure::Timeout))
}

fn read_token(path: &Path) -> Result<String, Failure> {
    let unreadable = |error| Failure::Token { path: path.to_owned(), error };
    let token = fs::read_to_string(path).map_err(unreadable)?.trim().to_owned();
    match token.is_empty() {
        true => Err(unreadable(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is empty"))),
        false => Ok(token),
    }
}

/// What the control plane gave.
struct Answer {
    credentials: Credentials,
    renew_by_token: bool,
}

/// Asks for a certificate for a new key over `stream`.
async fn certify(stream: TlsStream<TcpStream>, token: String) -> Result<Answer, Failure> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    // Names are the control plane's to give.
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&key)?.der().to_vec();

    let mut stream = Some(TokioIo::new(stream));
    let hand_over = tower::service_fn(move |_| {
        let stream = stream.take().ok_or_else(|| io::Error::other("one request, one connection"));
        async move { stream }
    });
    // The name only fills `:authority`; who is there was proven by TLS.
    let channel = Endpoint::from_static("http://control-plane")
        .connect_with_connector(hand_over)
        .await
        .map_err(|error| Failure::Broken(innermost(&error).to_string()))?;
    let answer = IdentityClient::new(channel).certify(CertifyRequest { csr, token }).await;
    let CertifyResponse { chain, anchors, renew_by_token, .. } = answer.map_err(Failure::from_status)?.into_inner();

    let chain = chain.into_iter().map(Into::into).collect();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    Ok(Answer { credentials: Credentials::new(chain, key, &anchors)?, renew_by_token })
}

struct Metrics {
    not_after: Gauge,
    issued: Counter,
    failures: Counter,
}

impl Metrics {
    fn new() -> Self {
        const NOT_AFTER: &str = "leno_certificate_not_after_timestamp_seconds";
        const ISSUED: &str = "leno_certificates_issued_total";
        const FAILURES: &str = "leno_certificate_failures_total";
        describe_gauge!(NOT_AFTER, "Unix time at which the workload's certificate expires; 0: there is none.");
        describe_counter!(ISSUED, "Certificates issued to this workload: the first and its renewals.");
        describe_counter!(FAILURES, "Tries to get a certificate that failed.");
        Self { not_after: gauge!(NOT_AFTER), issued: counter!(ISSUED), failures: counter!(FAILURES) }
    }

    fn issued(&self, credentials: &Credentials) {
        self.issued.increment(1);
        let not_after = credentials.not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.not_after.set(not_after.as_secs_f64());
    }
}

#[cfg(test)]
mod tests;
