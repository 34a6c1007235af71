//! Names of kinds, in any usual spelling.

/// The kinds there are, each with the other names it goes by.
const KINDS: [(&str, &[&str]); 13] = [
    ("HTTPRoute", &["httproute", "httproutes", "http"]),
    ("GRPCRoute", &["grpcroute", "grpcroutes", "grpc"]),
    ("TLSRoute", &["tlsroute", "tlsroutes", "tls"]),
    ("TCPRoute", &["tcproute", "tcproutes", "tcp"]),
    ("BackendPolicy", &["backendpolicy", "backendpolicies"]),
    ("RoutePolicy", &["routepolicy", "routepolicies"]),
    ("InboundPolicy", &["inboundpolicy", "inboundpolicies"]),
    ("FaultPolicy", &["faultpolicy", "faultpolicies"]),
    ("XBackendTrafficPolicy", &["xbackendtrafficpolicy", "xbackendtrafficpolicies"]),
    ("Service", &["service", "services", "svc"]),
    ("EndpointSlice", &["endpointslice", "endpointslices", "eps"]),
    ("Pod", &["pod", "pods", "po"]),
    ("Namespace", &["namespace", "namespaces", "ns"]),
];

/// Names that stand for several kinds.
const GROUPS: [(&str, &[&str]); 2] = [
    ("routes", &["HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute"]),
    ("policies", &["BackendPolicy", "RoutePolicy", "InboundPolicy", "FaultPolicy", "XBackendTrafficPolicy"]),
];

/// The kinds of a group: "policies".
pub(super) fn group(text: &str) -> Option<&'static [&'static str]> {
    let text = text.to_ascii_lowercase();
    GROUPS.iter().find(|(name, _)| *name == text).map(|(_, kinds)| *kinds)
}

/// The kind's own name: "svc" is "Service". An API group after a dot is ignored, as kubectl allows one.
///
/// # Errors
/// If there is no such kind; says which there are.
pub(super) fn parse(text: &str) -> Result<&'static str, String> {
    let (short, _) = text.split_once('.').unwrap_or((text, ""));
    let short = short.to_ascii_lowercase();
    if is_proxy(&short) {
        return Err("a proxy is no object of the configuration: see leno get proxies, or leno explain".to_owned());
    }
    let found = KINDS.iter().find(|(_, names)| names.contains(&short.as_str()));
    found.map(|(kind, _)| *kind).ok_or_else(|| {
        let kinds: Vec<&str> = KINDS.iter().filter_map(|(_, names)| names.first().copied()).collect();
        format!(
            "there is no kind {text:?}; there are {}; `leno get` also takes routes, policies and proxies",
            kinds.join(", ")
        )
    })
}

/// The namespace of an object, said with it or by --namespace.
///
/// # Errors
/// If they are two.
pub(super) fn namespace<'a>(of_object: Option<&'a str>, option: Option<&'a str>) -> Result<Option<&'a str>, String> {
    match (of_object, option) {
        // The environment says where to look if nothing else does.
        (Some(of_object), Some(option)) if of_object != option && !is_of_environment(option) => Err(format!(
            "the object is said to be in namespace {of_object}, and by --namespace in {option}: leave one out"
        )),
        _ => Ok(of_object.or(option)),
    }
}

fn is_of_environment(namespace: &str) -> bool {
    std::env::var_os("LENO_NAMESPACE").is_some_and(|of_environment| of_environment == namespace)
}

/// Whether proxies are meant.
pub(super) fn is_proxy(text: &str) -> bool {
    matches!(text.to_ascii_lowercase().as_str(), "proxy" | "proxies")
}

/// "KIND/NAME", "KIND/NAMESPACE/NAME" into kind, namespace if given, and name.
///
/// # Errors
/// If it is neither.
pub(super) fn parse_object(text: &str) -> Result<(&'static str, Option<&str>, &str), String> {
    let parts: Vec<&str> = text.split('/').collect();
    let parsed = match parts.as_slice() {
        [kind, name] => (parse(kind)?, None, *name),
        [kind, namespace, name] if !namespace.is_empty() => (parse(kind)?, Some(*namespace), *name),
        _ => return Err(format!("{text:?} is not an object (write httproute/cart, or httproute/shop/cart)")),
    };
    if parsed.2.is_empty() { Err(format!("{text:?} names no object")) } else { Ok(parsed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_hold_kinds_that_there_are() {
        for kind in GROUPS.iter().flat_map(|(_, kinds)| *kinds) {
            assert!(KINDS.iter().any(|(known, _)| known == kind), "{kind}");
        }
    }

    #[test]
    fn groups_hold_all_kinds_of_their_sort() {
        for (name, ending) in [("Policies", "Policy"), ("routes", "Route")] {
            let all: Vec<&str> = KINDS.iter().map(|(kind, _)| *kind).filter(|kind| kind.ends_with(ending)).collect();
            assert_eq!(group(name), Some(all.as_slice()), "{name}");
        }
    }

    #[test]
    fn kinds_go_by_many_names() {
        assert_eq!(parse("svc"), Ok("Service"));
        assert_eq!(parse("HTTPRoutes"), Ok("HTTPRoute"));
        assert_eq!(parse("httproutes.gateway.networking.k8s.io"), Ok("HTTPRoute"));
        assert!(parse("ingress").is_err_and(|e| e.contains("httproute")));
        assert!(parse_object("proxy/web-1").is_err_and(|e| e.contains("leno get proxies")));
    }

    #[test]
    fn a_namespace_is_said_once() {
        assert_eq!(namespace(Some("a"), Some("a")), Ok(Some("a")));
        assert_eq!((namespace(None, Some("a")), namespace(Some("a"), None)), (Ok(Some("a")), Ok(Some("a"))));
        assert!(namespace(Some("a"), Some("b")).is_err_and(|wrong| wrong.contains("leave one out")));
    }

    #[test]
    fn objects_have_a_kind_and_a_name() {
        assert_eq!(parse_object("httproute/cart"), Ok(("HTTPRoute", None, "cart")));
        assert_eq!(parse_object("svc/shop/cart"), Ok(("Service", Some("shop"), "cart")));
        for wrong in ["cart", "svc/", "svc//cart", "a/b/c/d", "nothing/x"] {
            assert!(parse_object(wrong).is_err(), "{wrong}");
        }
    }
}
