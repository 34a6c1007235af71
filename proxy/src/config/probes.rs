//! What kubelets ask of the application (`--probes`): the fields of a Pod's probes that say whom to ask and how.
//! Whoever writes Pods put them into this list, and pointed the kubelet at us.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;

use super::limits;

/// The whole list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Probes(Arc<[Probe]>);

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// Where the kubelet asks us.
    pub path: String,
    /// 1 s unless said.
    #[serde(default = "one")]
    timeout_seconds: u64,
    #[serde(flatten)]
    pub question: Question,
}

/// What the application is asked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Question {
    HttpGet(HttpGet),
    TcpSocket(TcpSocket),
    Grpc(GrpcHealth),
}

/// A request. A probe's answer must have a status from 200 to 399; a hook's may have any.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpGet {
    /// With its query.
    #[serde(default)]
    pub path: String,
    pub port: u16,
    #[serde(default)]
    pub scheme: Scheme,
    #[serde(default)]
    pub http_headers: Vec<Header>,
}

/// How it is sent; a certificate is not verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Scheme {
    #[default]
    Http,
    Https,
}

/// A field of the request.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Header {
    pub name: String,
    #[serde(default)]
    pub value: String,
}

/// A connection that must come about.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct TcpSocket {
    pub port: u16,
}

/// `grpc.health.v1.Health/Check`, which must say SERVING.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct GrpcHealth {
    pub port: u16,
    #[serde(default)]
    pub service: Option<String>,
}

fn one() -> u64 {
    1
}

/// What the paths of lifecycle hooks begin with.
const HOOK: &str = "/hook/";

impl Probe {
    /// Whether it is a lifecycle hook, of whose answer a kubelet asks only that there is one.
    pub fn is_hook(&self) -> bool {
        self.path.starts_with(HOOK)
    }

    /// How long the kubelet waits.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds).clamp(Duration::from_secs(1), limits::PROBE_TIMEOUT)
    }
}

impl std::ops::Deref for Probes {
    type Target = [Probe];

    fn deref(&self) -> &[Probe] {
        &self.0
    }
}

/// From JSON.
pub(super) fn parse(text: &str) -> Result<Probes, String> {
    let probes: Vec<Probe> = serde_json::from_str(text).map_err(|error| {
        format!("expected a JSON list of objects with path and httpGet, tcpSocket or grpc: {error}")
    })?;
    if probes.len() > limits::PROBES {
        return Err(format!("{} probes are more than the {} that are taken", probes.len(), limits::PROBES));
    }
    match probes.iter().find(|probe| !probe.path.starts_with('/')) {
        Some(probe) => Err(format!("{:?} is no path: it must begin with a slash", probe.path)),
        None => Ok(Probes(probes.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_a_pod_says_it() {
        let probes = parse(
            r#"[{"path":"/probe/a/liveness","timeoutSeconds":3,"httpGet":{"path":"/healthz?full=1","port":8080,"scheme":"HTTPS",
                 "httpHeaders":[{"name":"Host","value":"a.example"}]}},
                {"path":"/probe/a/readiness","tcpSocket":{"port":5432}},
                {"path":"/probe/b/startup","timeoutSeconds":0,"grpc":{"port":9000,"service":"s","newer":true}}]"#,
        )
        .unwrap();
        assert_eq!(probes[0].timeout(), Duration::from_secs(3));
        let Question::HttpGet(get) = &probes[0].question else { panic!("{probes:?}") };
        assert_eq!((get.scheme, get.port, get.http_headers.len()), (Scheme::Https, 8080, 1));
        assert_eq!(probes[1].question, Question::TcpSocket(TcpSocket { port: 5432 }));
        assert_eq!(probes[2].timeout(), Duration::from_secs(1));
        assert_eq!(probes[2].question, Question::Grpc(GrpcHealth { port: 9000, service: Some("s".into()) }));
    }

    #[test]
    fn what_is_expected_is_said() {
        for (text, expected) in [
            ("{}", "JSON list"),
            (r#"[{"path":"/a"}]"#, "httpGet"),
            (r#"[{"path":"a","tcpSocket":{"port":1}}]"#, "slash"),
            (r#"[{"path":"/a","tcpSocket":{"port":70000}}]"#, "70000"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
