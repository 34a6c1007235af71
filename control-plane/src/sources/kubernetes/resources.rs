//! The kinds that are read, as the API server has them: groups, versions, names in paths.

use kube::{Client, core::Request};
use serde::Deserialize;

use crate::model::{Kind, ObjectKey};

/// A kind as the API server serves it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Resource {
    pub(crate) kind: Kind,
    /// Empty: core.
    pub(crate) group: &'static str,
    /// The first that is served is read.
    pub(crate) versions: &'static [&'static str],
    /// As in paths: "httproutes".
    pub(crate) plural: &'static str,
}

pub(crate) const GATEWAY: &str = "gateway.networking.k8s.io";
pub(crate) const GATEWAY_EXPERIMENTAL: &str = "gateway.networking.x-k8s.io";
const LENO: &[&str] = &[crate::api::VERSION];

const fn resource(
    kind: Kind,
    group: &'static str,
    versions: &'static [&'static str],
    plural: &'static str,
) -> Resource {
    Resource { kind, group, versions, plural }
}

/// Everything that is read.
pub(crate) const ALL: [Resource; 13] = [
    resource(Kind::Namespace, "", &["v1"], "namespaces"),
    resource(Kind::Service, "", &["v1"], "services"),
    resource(Kind::EndpointSlice, "discovery.k8s.io", &["v1"], "endpointslices"),
    resource(Kind::Pod, "", &["v1"], "pods"),
    resource(Kind::HttpRoute, GATEWAY, &["v1", "v1beta1"], "httproutes"),
    resource(Kind::GrpcRoute, GATEWAY, &["v1"], "grpcroutes"),
    resource(Kind::TlsRoute, GATEWAY, &["v1", "v1alpha3", "v1alpha2"], "tlsroutes"),
    resource(Kind::TcpRoute, GATEWAY, &["v1", "v1alpha2"], "tcproutes"),
    resource(Kind::BackendPolicy, crate::api::GROUP, LENO, "backendpolicies"),
    resource(Kind::FaultPolicy, crate::api::GROUP, LENO, "faultpolicies"),
    resource(Kind::InboundPolicy, crate::api::GROUP, LENO, "inboundpolicies"),
    resource(Kind::RoutePolicy, crate::api::GROUP, LENO, "routepolicies"),
    resource(Kind::BackendTrafficPolicy, GATEWAY_EXPERIMENTAL, &["v1alpha1"], "xbackendtrafficpolicies"),
];

impl Resource {
    pub(crate) fn of(kind: Kind) -> Option<Self> {
        ALL.into_iter().find(|resource| resource.kind == kind)
    }

    /// "gateway.networking.k8s.io/v1"
    pub(crate) fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }

    /// Of all objects of the kind.
    pub(crate) fn path(&self, version: &str) -> String {
        format!("{}/{}", self.root(version), self.plural)
    }

    /// Of those of one namespace.
    pub(crate) fn path_in(&self, version: &str, namespace: &str) -> String {
        match namespace {
            "" => self.path(version),
            _ => format!("{}/namespaces/{namespace}/{}", self.root(version), self.plural),
        }
    }

    fn root(&self, version: &str) -> String {
        if self.group.is_empty() { format!("/api/{version}") } else { format!("/apis/{}/{version}", self.group) }
    }

    /// The best version that is served; None: none is.
    ///
    /// # Errors
    /// If the API server does not tell.
    pub(crate) async fn served(&self, client: &Client) -> Result<Option<&'static str>, kube::Error> {
        if self.group.is_empty() {
            return Ok(self.versions.first().copied());
        }
        let Some(group) = found(get::<Group>(client, format!("/apis/{}", self.group)).await)? else { return Ok(None) };
        for version in self.versions {
            if !group.versions.iter().any(|served| served.version == *version) {
                continue;
            }
            let Some(list) = found(get::<Resources>(client, self.root(version)).await)? else { continue };
            if list.resources.iter().any(|served| served.name == self.plural) {
                return Ok(Some(version));
            }
        }
        Ok(None)
    }
}

#[derive(Deserialize)]
struct Group {
    versions: Vec<GroupVersion>,
}

#[derive(Deserialize)]
struct GroupVersion {
    version: String,
}

#[derive(Deserialize)]
struct Resources {
    resources: Vec<Name>,
}

#[derive(Deserialize)]
struct Name {
    name: String,
}

#[derive(Deserialize)]
struct HasVersion {
    metadata: kube::core::ObjectMeta,
}

async fn get<T: serde::de::DeserializeOwned>(client: &Client, path: String) -> Result<T, kube::Error> {
    let request = Request::new(path).list(&kube::api::ListParams::default()).map_err(kube::Error::BuildRequest)?;
    client.request(request).await
}

/// The version of an object that the API server has at this moment; None: there is no such object.
///
/// # Errors
/// If it does not tell.
pub(super) async fn version_of(client: &Client, key: &ObjectKey) -> Result<Option<u64>, kube::Error> {
    let Some(resource) = Resource::of(key.kind) else { return Ok(None) };
    let Some(version) = resource.served(client).await? else { return Ok(None) };
    let request = Request::new(resource.path_in(version, &key.namespace))
        .get(&key.name, &kube::api::GetParams::default())
        .map_err(kube::Error::BuildRequest)?;
    let object = found(client.request::<HasVersion>(request).await)?;
    Ok(object.map(|object| number(object.metadata.resource_version.as_deref())))
}

/// Resource versions are numbers that grow (KEP-5504).
pub(super) fn number(version: Option<&str>) -> u64 {
    version.and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// That something is not there is no error.
fn found<T>(answer: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The API server says that there is no such thing.
pub(crate) fn is_missing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}
