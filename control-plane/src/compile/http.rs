//! HTTP rules in the order of precedence.

use leno_proto::v1::{
    self, Header, HttpAction, HttpMatch, HttpRoutes, HttpRule, NamedMatch, PathMatch, RuleOrigin, WeightedBackend,
    http_filter, named_match, path_match, path_modifier,
};

use super::{Sources, destination, policy};
use crate::model::{self, HttpFilter, ObjectKey, Rules, ValueMatch};

/// Rules of the routes attached to one port, `routes` oldest first, as Gateway API orders them: by how specific the match is,
/// then by age and name of the route, then by place in the route.
pub(super) fn routes(sources: &mut Sources<'_>, routes: &[ObjectKey]) -> HttpRoutes {
    let world = sources.world;
    let mut actions = Vec::new();
    let mut ordered = Vec::new();
    for (age, key) in routes.iter().enumerate() {
        let Some(Rules::Http(rules)) = model::route(&world.objects, key).map(|route| &route.rules) else { continue };
        for rule in rules {
            let action = actions.len();
            actions.push(action_of(sources, key, rule));
            for (place, one) in rule.matches.iter().enumerate() {
                // Actions are numbered in the order of routes and rules.
                ordered.push(((one.precedence, age, action, place), one));
            }
        }
    }
    ordered.sort_by_key(|(order, _)| *order);
    let rules = ordered
        .into_iter()
        .map(|((_, _, action, _), one)| HttpRule {
            r#match: Some(match_of(one)),
            action: u32::try_from(action).unwrap_or(u32::MAX),
        })
        .collect();
    HttpRoutes { rules, actions }
}

/// Everything to these backends.
pub(super) fn default_routes(backends: Vec<WeightedBackend>) -> HttpRoutes {
    let action = HttpAction { origin: Some(RuleOrigin::default()), backends, ..HttpAction::default() };
    HttpRoutes { rules: vec![HttpRule { r#match: Some(HttpMatch::default()), action: 0 }], actions: vec![action] }
}

fn action_of(sources: &mut Sources<'_>, key: &ObjectKey, rule: &model::HttpRule) -> HttpAction {
    let mut action = HttpAction {
        origin: Some(destination::origin(key, &rule.name)),
        filters: rule.filters.iter().map(|one| filter(sources, one)).collect(),
        backends: rule.backends.iter().map(|backend| weighted(sources, backend)).collect(),
        request_timeout: rule.request_timeout.map(duration),
        backend_request_timeout: rule.backend_request_timeout.map(duration),
        retry: rule.retry.as_ref().map(|retry| v1::Retry {
            statuses: retry.statuses.iter().map(|status| u32::from(*status)).collect(),
            attempts: retry.attempts,
            backoff: retry.backoff.map(duration),
        }),
        ..HttpAction::default()
    };
    let session = rule.session_persistence.as_ref();
    action.session_persistence = session.map(|session| session_of(&format!("{key} {}", rule.name), session));
    policy::of_rule(sources, key, &rule.name, &mut action);
    action
}

/// A backend with how it keeps sessions itself.
fn weighted(sources: &mut Sources<'_>, backend: &model::Backend) -> WeightedBackend {
    let mut sent = destination::weighted(sources, backend);
    if let Ok((service, port)) = model::resolve(&sources.world.objects, &backend.target) {
        sent.session_persistence = policy::session_of_backend(sources, &service, port);
    }
    sent
}

/// `of`: whose sessions they are, which a cookie or header without a name is named for.
pub(super) fn session_of(of: &str, session: &model::SessionPersistence) -> v1::SessionPersistence {
    let name = session.name.as_deref().map_or_else(
        || {
            let of = model::content_hash(of.as_bytes());
            format!("session-{}", of.get(..8).unwrap_or(&of))
        },
        str::to_owned,
    );
    v1::SessionPersistence {
        name,
        header: session.header,
        absolute_timeout: session.absolute_timeout.map(duration),
        idle_timeout: session.idle_timeout.map(duration),
        permanent: session.permanent,
        path: session.path.to_string(),
        origin: None,
    }
}

/// At the door a duration is at most some years: it fits.
pub(super) fn duration(duration: std::time::Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
    }
}

pub(super) fn match_of(one: &model::HttpMatch) -> HttpMatch {
    let path = one.path.as_ref().map(|path| PathMatch {
        kind: Some(match path {
            model::PathMatch::Exact(path) => path_match::Kind::Exact(path.to_string()),
            model::PathMatch::Prefix(prefix) => path_match::Kind::Prefix(prefix.to_string()),
            model::PathMatch::Regex(regex) => path_match::Kind::Regex(regex.to_string()),
        }),
    });
    let named = |(name, value): &(std::sync::Arc<str>, ValueMatch)| NamedMatch {
        name: name.to_string(),
        kind: Some(match value {
            ValueMatch::Exact(value) => named_match::Kind::Exact(value.to_string()),
            ValueMatch::Regex(regex) => named_match::Kind::Regex(regex.to_string()),
        }),
    };
    HttpMatch {
        path,
        headers: one.headers.iter().map(named).collect(),
        query: one.query.iter().map(named).collect(),
        method: one.method.as_deref().unwrap_or_default().to_owned(),
        grpc: one.grpc,
    }
}

pub(super) fn filter(sources: &mut Sources<'_>, filter: &HttpFilter) -> v1::HttpFilter {
    let kind = match filter {
        HttpFilter::RequestHeaders(modifier) => http_filter::Kind::RequestHeaders(headers(modifier)),
        HttpFilter::ResponseHeaders(modifier) => http_filter::Kind::ResponseHeaders(headers(modifier)),
        HttpFilter::Redirect(redirect) => {
            // A scheme brings its own port (HTTPRequestRedirectFilter).
            let port = redirect.port.or(match redirect.scheme.as_deref() {
                Some("https") => Some(443),
                Some("http") => Some(80),
                _ => None,
            });
            http_filter::Kind::Redirect(v1::Redirect {
                scheme: redirect.scheme.as_deref().unwrap_or_default().to_owned(),
                hostname: redirect.hostname.as_deref().unwrap_or_default().to_owned(),
                port: port.map_or(0, u32::from),
                status: u32::from(redirect.status),
                path: redirect.path.as_ref().map(path_modifier),
            })
        }
        HttpFilter::Rewrite { hostname, path } => http_filter::Kind::Rewrite(v1::Rewrite {
            hostname: hostname.as_deref().unwrap_or_default().to_owned(),
            path: path.as_ref().map(path_modifier),
        }),
        HttpFilter::Mirror(mirror) => http_filter::Kind::Mirror(v1::Mirror {
            kind: Some(match destination::backend(sources, &mirror.target) {
                Ok(backend) => v1::mirror::Kind::Backend(backend),
                Err(reason) => v1::mirror::Kind::Invalid(reason),
            }),
            numerator: mirror.fraction.0,
            denominator: mirror.fraction.1,
        }),
        HttpFilter::Cors(cors) => http_filter::Kind::Cors(cors_of(cors)),
        HttpFilter::Unsupported(name) => http_filter::Kind::Unsupported(name.to_string()),
    };
    v1::HttpFilter { kind: Some(kind) }
}

fn cors_of(cors: &model::Cors) -> v1::Cors {
    let list = |entries: &[std::sync::Arc<str>]| entries.iter().map(ToString::to_string).collect();
    v1::Cors {
        allow_origins: list(&cors.allow_origins),
        allow_credentials: cors.allow_credentials,
        allow_methods: list(&cors.allow_methods),
        allow_headers: list(&cors.allow_headers),
        expose_headers: list(&cors.expose_headers),
        max_age_s: cors.max_age,
    }
}

fn headers(modifier: &model::HeaderModifier) -> v1::HeaderModifier {
    let header = |(name, value): &(std::sync::Arc<str>, std::sync::Arc<str>)| Header {
        name: name.to_string(),
        value: value.to_string(),
    };
    v1::HeaderModifier {
        set: modifier.set.iter().map(header).collect(),
        add: modifier.add.iter().map(header).collect(),
        remove: modifier.remove.iter().map(ToString::to_string).collect(),
    }
}

fn path_modifier(modifier: &model::PathModifier) -> v1::PathModifier {
    let kind = match modifier {
        model::PathModifier::Full(path) => path_modifier::Kind::ReplaceFull(path.to_string()),
        model::PathModifier::Prefix(prefix) => path_modifier::Kind::ReplacePrefix(prefix.to_string()),
    };
    v1::PathModifier { kind: Some(kind) }
}
