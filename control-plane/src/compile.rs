//! From world and subscriber to resources: pure, deterministic, and the only place where routing rules are ordered.
//!
//! A resource is a function of the facts that its topics name, and of who asks. Its origins are the objects that an
//! author wrote to shape it: Services and routes for a destination; Service and EndpointSlices for endpoints (not each Pod: their
//! number has no bound); Pod, Namespace and Services for inbound. A newer generation of an origin can leave the content,
//! and so the version, as it was: who holds that version then serves the newer generation too.

use std::{collections::BTreeSet, sync::Arc};

use leno_proto::{
    spiffe::SpiffeId,
    v1::{self, ObjectGeneration, ObjectRef, Resource, ResourceKind, ResourceName, Settings, resource::Body},
};
use prost::Message;

use crate::model::{self, Kind, ObjectKey, Topic, World, policy::PolicySpec};

mod address;
mod balancing;
mod destination;
mod endpoints;
mod http;
mod inbound;
mod policy;
mod resilience;

/// Who asks.
#[derive(Debug, Clone)]
pub struct Subscriber {
    pub identity: SpiffeId,
    /// Pod name, within the identity's namespace.
    pub workload: String,
}

/// The resource of that name for that subscriber, and the topics it was made from: recompile when one of them
/// changes. Its `version` is a hash of the body (not of origins), `origins` are filled in. None: it does not exist (a destination that
/// does not exist inside the mesh networks; outside them it is `Outside`).
/// TRUST_BUNDLE is not compiled here (see `authority`).
pub fn compile(world: &World, subscriber: &Subscriber, name: &ResourceName) -> (Option<Resource>, Vec<Topic>) {
    let mut sources = Sources { world, origins: BTreeSet::new(), topics: BTreeSet::new() };
    let body = match name.kind() {
        ResourceKind::Settings => {
            sources.topics.insert(Topic::Settings);
            Some(Body::Settings(settings(world)))
        }
        ResourceKind::Inbound => Some(Body::Inbound(inbound::inbound(&mut sources, subscriber))),
        ResourceKind::Destination => {
            destination::destination(&mut sources, subscriber.identity.namespace(), &name.key).map(Body::Destination)
        }
        ResourceKind::Endpoints => endpoints::endpoints(&mut sources, &name.key).map(Body::Endpoints),
        ResourceKind::TrustBundle | ResourceKind::Unspecified => None,
    };
    let resource = body.map(|body| {
        let mut resource =
            Resource { name: Some(name.clone()), version: String::new(), origins: Vec::new(), body: Some(body) };
        resource.version = model::content_hash(&resource.encode_to_vec());
        resource.origins = sources.object_generations();
        resource
    });
    (resource, sources.topics.into_iter().collect())
}

fn settings(world: &World) -> Settings {
    Settings {
        trust_domain: world.settings.trust_domain.to_string(),
        mesh_networks: world.mesh_networks().iter().map(ToString::to_string).collect(),
        session_key: world.settings.session_key.as_deref().unwrap_or_default().to_vec(),
        explain: explain(&world.settings.explain),
    }
}

/// None: the defaults.
fn explain(explain: &model::Explain) -> Option<v1::Explain> {
    let model::Explain { ignore_sampled, headers } = explain.clone();
    (*explain != model::Explain::default()).then_some(v1::Explain { ignore_sampled, headers })
}

/// What a resource is made from, written down while it is made.
struct Sources<'a> {
    world: &'a World,
    origins: BTreeSet<ObjectKey>,
    topics: BTreeSet<Topic>,
}

impl<'a> Sources<'a> {
    /// Depends on everything about a Service, which need not exist.
    fn service(&mut self, key: &ObjectKey) {
        self.topics.insert(Topic::Service(format!("{}/{}", key.namespace, key.name).into()));
        self.origin(key);
    }

    fn workload(&mut self, key: &ObjectKey) {
        self.topics.insert(Topic::Workload(format!("{}/{}", key.namespace, key.name).into()));
        self.origin(key);
    }

    fn namespace(&mut self, key: &ObjectKey) {
        self.topics.insert(Topic::Namespace(key.name.clone()));
        self.origin(key);
    }

    /// Whether anything is, or was, in the namespace.
    fn knows(&mut self, namespace: &Arc<str>) -> bool {
        self.topics.insert(Topic::Known(namespace.clone()));
        self.world.namespaces.contains(namespace)
    }

    fn address(&mut self, ip: std::net::IpAddr) {
        self.topics.insert(Topic::Address(ip.to_string().into()));
    }

    /// The policy of a kind for a section (a port's or rule's name) of an object that is depended on.
    fn policy(&mut self, kind: Kind, object: &ObjectKey, section: &str) -> Option<(&'a ObjectKey, &'a PolicySpec)> {
        let world = self.world;
        let key = world.policies.at(kind, object, section)?;
        self.origin(key);
        Some((key, &model::policy(&world.objects, key)?.spec))
    }

    fn origin(&mut self, key: &ObjectKey) {
        if self.world.objects.contains_key(key) {
            self.origins.insert(key.clone());
        }
    }

    fn object_generations(&self) -> Vec<ObjectGeneration> {
        let stored = |key: &ObjectKey| self.world.objects.get(key);
        self.origins
            .iter()
            .map(|key| ObjectGeneration {
                object: Some(object_ref(key)),
                generation: stored(key).map_or(0, |stored| stored.generation),
                uid: stored(key).map(|stored| stored.uid.to_string()).unwrap_or_default(),
            })
            .collect()
    }
}

fn object_ref(key: &ObjectKey) -> ObjectRef {
    ObjectRef { kind: key.kind.as_str().to_owned(), namespace: key.namespace.to_string(), name: key.name.to_string() }
}

fn service_key(namespace: &str, name: &str) -> ObjectKey {
    ObjectKey { kind: Kind::Service, namespace: Arc::from(namespace), name: Arc::from(name) }
}

#[cfg(test)]
mod attachment;
#[cfg(test)]
mod precedence;
#[cfg(test)]
mod properties;
#[cfg(test)]
pub(crate) mod tests;
