//! Asks the application as a kubelet does: which redirects it follows, what it sends, no verification of certificates.
//! (k8s.io/kubernetes pkg/probe, pkg/kubelet/lifecycle; redirects to another host are answers.)

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header, uri::PathAndQuery};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use crate::{
    config::{
        limits,
        probes::{GrpcHealth, HttpGet, Question, Scheme},
    },
    net::connect::connect,
};

/// Who asks, and where the application is.
pub(super) struct Caller {
    /// The Pod's address that the kubelet called.
    pub(super) ip: IpAddr,
    pub(super) mark: Option<u32>,
    /// "kube-probe/1.34"
    pub(super) agent: Option<HeaderValue>,
}

/// Asks; whoever calls bounds the time. The status of the application's answer; without HTTP, 200 if it is well.
pub(super) async fn ask(question: &Question, caller: &Caller) -> Result<StatusCode, String> {
    match question {
        Question::HttpGet(get) => http_get(get, caller).await,
        Question::TcpSocket(socket) => caller.connect(socket.port).await.map(|_| StatusCode::OK),
        Question::Grpc(health) => grpc(health, caller).await.map(|()| StatusCode::OK),
    }
}

impl Caller {
    async fn connect(&self, port: u16) -> Result<tokio::net::TcpStream, String> {
        let address = SocketAddr::new(self.ip, port);
        let connected = connect(address, self.mark, Duration::MAX).await;
        connected.map_err(|error| format!("cannot connect to {address}: {error}"))
    }
}

/// Where the next request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    scheme: Scheme,
    port: u16,
    path: PathAndQuery,
}

async fn http_get(get: &HttpGet, caller: &Caller) -> Result<StatusCode, String> {
    let mut target = Target { scheme: get.scheme, port: get.port, path: path(&get.path)? };
    let mut elsewhere = false;
    for _ in 0..=limits::PROBE_REDIRECTS {
        let response = send(&target, get, caller, elsewhere).await?;
        let status = response.status();
        let next = next(&target, &response, caller.ip)?;
        // A kubelet reads some of it, and a server may mind who does not.
        let _ = Limited::new(response.into_body(), limits::PROBE_BYTES).collect().await;
        match next {
            Some(next) => {
                elsewhere |= (next.scheme, next.port) != (target.scheme, target.port);
                target = next;
            }
            None => return Ok(status),
        }
    }
    Err(format!("stopped after {} redirects", limits::PROBE_REDIRECTS))
}

/// One request; `elsewhere`: a redirect named another port, for which the fields of the probe's Host do not hold.
async fn send(target: &Target, get: &HttpGet, caller: &Caller, elsewhere: bool) -> Result<Response<Incoming>, String> {
    let request = request(target, get, caller, elsewhere)?;
    let stream = caller.connect(target.port).await?;
    match target.scheme {
        Scheme::Http => exchange(stream, request).await,
        Scheme::Https => {
            let name = ServerName::IpAddress(caller.ip.into());
            let stream = TlsConnector::from(tls()?).connect(name, stream).await;
            exchange(stream.map_err(|error| format!("TLS with the application: {error}"))?, request).await
        }
    }
}

fn request(target: &Target, get: &HttpGet, caller: &Caller, elsewhere: bool) -> Result<Request<Empty<Bytes>>, String> {
    let mut request = Request::new(Empty::new());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = Uri::from(target.path.clone());
    let host = SocketAddr::new(caller.ip, target.port).to_string();
    let headers = request.headers_mut();
    let agent = caller.agent.clone().unwrap_or(HeaderValue::from_static("kube-probe"));
    headers.insert(header::USER_AGENT, agent);
    headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(header::HOST, HeaderValue::try_from(host).map_err(|error| error.to_string())?);
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    let mut given = Vec::new();
    for field in &get.http_headers {
        let wrong = |_| format!("the probe's header field {:?} is none", field.name);
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| wrong(()))?;
        let value = HeaderValue::from_str(&field.value).map_err(|_| wrong(()))?;
        if name == header::HOST && elsewhere {
            continue;
        }
        // The first in place of ours, the others beside it.
        match given.contains(&name) {
            true => _ = headers.append(name, value),
            false => {
                given.push(name.clone());
                headers.insert(name, value);
            }
        }
    }
    if headers.get(header::ACCEPT).is_some_and(HeaderValue::is_empty) {
        headers.remove(header::ACCEPT);
    }
    Ok(request)
}

async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<Response<Incoming>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let failed = |error: hyper::Error| format!("the application's answer: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    tokio::task::spawn_local(async move {
        // What goes wrong shows in the answer.
        let _ = connection.await;
    });
    sender.send_request(request).await.map_err(failed)
}

/// Where a redirect leads; None if it is none, or leads to another host.
fn next<B>(from: &Target, response: &Response<B>, ip: IpAddr) -> Result<Option<Target>, String> {
    let followed = [
        StatusCode::MOVED_PERMANENTLY,
        StatusCode::FOUND,
        StatusCode::SEE_OTHER,
        StatusCode::TEMPORARY_REDIRECT,
        StatusCode::PERMANENT_REDIRECT,
    ];
    let location = response.headers().get(header::LOCATION).filter(|_| followed.contains(&response.status()));
    let Some(location) = location else { return Ok(None) };
    let wrong = || format!("the application redirects to {location:?}, which is no address");
    let location = location.to_str().map_err(|_| wrong())?;
    let location = location.split('#').next().unwrap_or(location);
    if let Some(rest) = location.strip_prefix("//") {
        let scheme = if from.scheme == Scheme::Https { "https" } else { "http" };
        return absolute(&format!("{scheme}://{rest}"), ip).ok_or_else(wrong);
    }
    if location.contains("://") {
        return absolute(location, ip).ok_or_else(wrong);
    }
    let whole = match location {
        "" => from.path.to_string(),
        query if query.starts_with('?') => format!("{}{query}", from.path.path()),
        path if path.starts_with('/') => path.to_owned(),
        path => {
            let folder = from.path.path().rsplit_once('/').map_or("", |(folder, _)| folder);
            format!("{folder}/{path}")
        }
    };
    Ok(Some(Target { path: whole.parse().map_err(|_| wrong())?, ..from.clone() }))
}

/// The outer None: it cannot be read; the inner: it is another host's.
fn absolute(location: &str, ip: IpAddr) -> Option<Option<Target>> {
    let uri: Uri = location.parse().ok()?;
    let (scheme, default) = match uri.scheme_str()? {
        "http" => (Scheme::Http, 80),
        "https" => (Scheme::Https, 443),
        _ => return Some(None),
    };
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
    if host.parse() != Ok(ip) {
        return Some(None);
    }
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    Some(Some(Target { scheme, port: uri.port_u16().unwrap_or(default), path }))
}

fn path(path: &str) -> Result<PathAndQuery, String> {
    let slash = if path.starts_with('/') { "" } else { "/" };
    let path = path.split('#').next().unwrap_or(path);
    format!("{slash}{path}").parse().map_err(|_| format!("the probe's path {path:?} is none"))
}

/// TLS that takes any certificate: a kubelet has nothing to verify it with.
fn tls() -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let any = Arc::new(AnyCertificate(Arc::clone(&provider)));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?
        .dangerous()
        .with_custom_certificate_verifier(any)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// `grpc.health.v1.HealthCheckRequest`
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `ServingStatus.SERVING`
const SERVING: i32 = 1;

async fn grpc(health: &GrpcHealth, caller: &Caller) -> Result<(), String> {
    let mut stream = Some(TokioIo::new(caller.connect(health.port).await?));
    let hand_over = tower::service_fn(move |_| {
        let stream = stream.take().ok_or_else(|| io::Error::other("one question, one connection"));
        async move { stream }
    });
    let host = SocketAddr::new(caller.ip, health.port);
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{host}"))
        .and_then(|endpoint| {
            endpoint.user_agent(caller.agent.clone().unwrap_or(HeaderValue::from_static("kube-probe")))
        })
        .map_err(|error| error.to_string())?;
    let channel = endpoint.connect_with_connector(hand_over).await;
    let mut client =
        tonic::client::Grpc::new(channel.map_err(|error| format!("HTTP/2 with the application: {error}"))?);
    client.ready().await.map_err(|error| format!("HTTP/2 with the application: {error}"))?;
    let request = HealthCheckRequest { service: health.service.clone().unwrap_or_default() };
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let answer = client.unary(tonic::Request::new(request), path, codec).await;
    match answer.map_err(|status| format!("the application's health service: {status}"))?.into_inner().status {
        SERVING => Ok(()),
        other => Err(format!("the application's health service says it does not serve (status {other})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(scheme: Scheme, port: u16, path: &str) -> Target {
        Target { scheme, port, path: path.parse().unwrap() }
    }

    #[test]
    fn redirects_within_the_pod_are_followed_and_others_are_well() {
        let ip = "10.0.0.7".parse().unwrap();
        let from = target(Scheme::Http, 8080, "/a/b?c");
        let follow = |status: u16, location: &str| {
            let response = Response::builder().status(status).header("location", location).body(()).unwrap();
            next(&from, &response, ip)
        };
        assert_eq!(follow(302, "/x?y"), Ok(Some(target(Scheme::Http, 8080, "/x?y"))));
        assert_eq!(follow(301, "x"), Ok(Some(target(Scheme::Http, 8080, "/a/x"))));
        assert_eq!(follow(307, "?d"), Ok(Some(target(Scheme::Http, 8080, "/a/b?d"))));
        assert_eq!(follow(308, "https://10.0.0.7:8443/"), Ok(Some(target(Scheme::Https, 8443, "/"))));
        assert_eq!(follow(303, "//10.0.0.7/z"), Ok(Some(target(Scheme::Http, 80, "/z"))));
        for elsewhere in ["https://login.example/", "http://10.0.0.8:8080/", "ftp://10.0.0.7/"] {
            assert_eq!(follow(302, elsewhere), Ok(None), "{elsewhere}");
        }
        assert_eq!(follow(304, "/x"), Ok(None));
        assert!(follow(302, "http://[/").is_err());
        assert_eq!(next(&from, &Response::new(()), ip), Ok(None));
    }

    #[test]
    fn fields_are_the_probes_own_or_a_kubelets() {
        let get: HttpGet = serde_json::from_str(
            r#"{"port":80,"httpHeaders":[{"name":"Host","value":"a.example"},{"name":"X-A","value":"1"},{"name":"x-a","value":"2"},
                {"name":"Accept","value":""}]}"#,
        )
        .unwrap();
        let agent = HeaderValue::from_static("kube-probe/1.34");
        let caller = Caller { ip: "::1".parse().unwrap(), mark: None, agent: Some(agent.clone()) };
        let built = request(&target(Scheme::Http, 80, "/"), &get, &caller, false).unwrap();
        assert_eq!(built.headers()["host"], "a.example");
        assert_eq!(built.headers()["user-agent"], agent);
        assert_eq!(built.headers().get_all("x-a").iter().count(), 2);
        assert!(!built.headers().contains_key("accept"));
        let redirected = request(&target(Scheme::Http, 81, "/"), &get, &caller, true).unwrap();
        assert_eq!(redirected.headers()["host"], "[::1]:81");
        assert_eq!(path("healthz?a#b"), Ok("/healthz?a".parse().unwrap()));
    }
}
