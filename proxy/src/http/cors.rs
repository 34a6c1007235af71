//! Cross-origin requests (the CORS protocol of the Fetch standard, <https://fetch.spec.whatwg.org/#http-cors-protocol>), as
//! the filter of Gateway API's HTTPRoute describes them (GEP-1767): preflights are answered, and answers to the requests
//! that follow are marked.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::head::{Fields, RequestHead, ResponseHead};

const ORIGIN: &[u8] = b"origin";
const REQUEST_METHOD: &[u8] = b"access-control-request-method";
const REQUEST_HEADERS: &[u8] = b"access-control-request-headers";
const ALLOW_ORIGIN: &[u8] = b"access-control-allow-origin";
const ALLOW_CREDENTIALS: &[u8] = b"access-control-allow-credentials";
const ALLOW_METHODS: &[u8] = b"access-control-allow-methods";
const ALLOW_HEADERS: &[u8] = b"access-control-allow-headers";
const EXPOSE_HEADERS: &[u8] = b"access-control-expose-headers";
const MAX_AGE: &[u8] = b"access-control-max-age";

/// What other origins' pages may do.
#[derive(Debug, Clone)]
pub struct Cors {
    pub(crate) origins: Origins,
    pub(crate) credentials: bool,
    pub(crate) methods: Listed,
    pub(crate) headers: Listed,
    pub(crate) exposed: Listed,
    /// How long a preflight's answer may be kept, in seconds.
    pub(crate) max_age: u32,
}

#[derive(Debug, Clone)]
pub(crate) enum Origins {
    Any,
    These(Box<[Origin]>),
}

/// Scheme, host and port. A wildcard stands for one label or more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    https: bool,
    host: Host,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Any,
    Exact(Box<str>),
    /// "*.example.com" as ".example.com".
    Below(Box<str>),
}

/// Methods or header names.
#[derive(Debug, Clone)]
pub(crate) enum Listed {
    Nothing,
    Any,
    /// As the answer's field says them.
    These(HeaderValue),
}

/// What is to be said of a request once its answer is known; taken before the request goes on.
pub(crate) struct Asked {
    cors: Arc<Cors>,
    /// If there is one, and it is allowed.
    origin: Option<Box<[u8]>>,
    crossing: bool,
}

impl Cors {
    /// What the page asks for; None: the request is no preflight. Err: it may not.
    pub(crate) fn preflight(&self, request: &RequestHead) -> Option<Result<ResponseHead, ()>> {
        if request.method != Method::OPTIONS {
            return None;
        }
        let origin = first(&request.fields, ORIGIN)?;
        let method = first(&request.fields, REQUEST_METHOD)?;
        if !self.allows(origin) {
            return Some(Err(()));
        }
        let mut head = ResponseHead::new(StatusCode::NO_CONTENT);
        self.mark(origin, &mut head.fields);
        match &self.methods {
            Listed::Nothing => {}
            Listed::Any => head.fields.push(ALLOW_METHODS, method),
            Listed::These(methods) => head.fields.push(ALLOW_METHODS, methods.as_bytes()),
        }
        match (&self.headers, first(&request.fields, REQUEST_HEADERS)) {
            (Listed::These(headers), _) => head.fields.push(ALLOW_HEADERS, headers.as_bytes()),
            // Said by name, since the wildcard neither goes with credentials nor stands for Authorization.
            (Listed::Any, Some(asked)) => head.fields.push(ALLOW_HEADERS, asked),
            (Listed::Any, None) | (Listed::Nothing, _) => {}
        }
        head.fields.push(MAX_AGE, self.max_age.to_string().as_bytes());
        Some(Ok(head))
    }

    /// Whether the origin ("https://a.example:8443", "null") is one of those allowed.
    pub(crate) fn allows(&self, origin: &[u8]) -> bool {
        match &self.origins {
            Origins::Any => true,
            Origins::These(origins) => {
                parsed(origin).is_some_and(|(https, host, port)| origins.iter().any(|one| one.is(https, host, port)))
            }
        }
    }

    /// What every answer to an allowed origin says.
    fn mark(&self, origin: &[u8], fields: &mut Fields) {
        if self.is_the_same_for_all() {
            fields.push(ALLOW_ORIGIN, b"*");
        } else {
            fields.push(ALLOW_ORIGIN, origin);
            fields.push(b"vary", b"origin");
        }
        if self.credentials {
            fields.push(ALLOW_CREDENTIALS, b"true");
        }
        match &self.exposed {
            // With credentials the wildcard would be a header's name.
            Listed::Any if !self.credentials => fields.push(EXPOSE_HEADERS, b"*"),
            Listed::These(headers) => fields.push(EXPOSE_HEADERS, headers.as_bytes()),
            Listed::Any | Listed::Nothing => {}
        }
    }

    fn is_the_same_for_all(&self) -> bool {
        matches!(self.origins, Origins::Any) && !self.credentials
    }

    /// What the request asked, for its answer.
    pub(crate) fn asked(self: &Arc<Self>, request: &RequestHead) -> Asked {
        let origin = first(&request.fields, ORIGIN);
        Asked {
            cors: Arc::clone(self),
            origin: origin.filter(|origin| self.allows(origin)).map(Box::from),
            crossing: origin.is_some(),
        }
    }
}

impl Asked {
    /// Marks the answer. The filter decides: what the application itself says to cross-origin requests is replaced.
    pub(crate) fn answer(&self, fields: &mut Fields) {
        if self.crossing {
            for name in [ALLOW_ORIGIN, ALLOW_CREDENTIALS, EXPOSE_HEADERS] {
                fields.remove_named(name);
            }
        }
        match &self.origin {
            Some(origin) => self.cors.mark(origin, fields),
            // The same URL answers other origins otherwise.
            None if !self.cors.is_the_same_for_all() => fields.push(b"vary", b"origin"),
            None => {}
        }
    }
}

impl Origin {
    /// `http(s)://host(:port)`, in which the host is a name, `*`, or `*.` and a name. None: it is not.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (https, host, port) = parsed(text.as_bytes())?;
        let name = host.strip_prefix("*.").unwrap_or(host);
        let host = match (host, name.contains('*')) {
            ("*", _) => Host::Any,
            (_, true) => return None,
            (host, false) if host.len() == name.len() => Host::Exact(name.to_ascii_lowercase().into()),
            _ => Host::Below(format!(".{}", name.to_ascii_lowercase()).into()),
        };
        Some(Self { https, host, port })
    }

    fn is(&self, https: bool, host: &str, port: u16) -> bool {
        let host = host.as_bytes();
        let same = match &self.host {
            Host::Any => true,
            Host::Exact(exact) => host.eq_ignore_ascii_case(exact.as_bytes()),
            Host::Below(suffix) => host
                .len()
                .checked_sub(suffix.len())
                .map(|at| host.split_at(at))
                .is_some_and(|(front, back)| !front.is_empty() && back.eq_ignore_ascii_case(suffix.as_bytes())),
        };
        same && self.https == https && self.port == port
    }
}

impl Listed {
    /// From policy's list. None: an entry is no header's name (which methods are, too).
    pub(crate) fn parse(entries: &[String]) -> Option<Self> {
        match entries {
            [] => Some(Self::Nothing),
            [only] if only == "*" => Some(Self::Any),
            _ if entries.iter().any(|entry| HeaderName::from_bytes(entry.as_bytes()).is_err() || entry == "*") => None,
            _ => HeaderValue::try_from(entries.join(", ")).ok().map(Self::These),
        }
    }
}

/// Scheme (whether it is https), host and port of an origin, of which the scheme's own port is left out.
fn parsed(origin: &[u8]) -> Option<(bool, &str, u16)> {
    let text = std::str::from_utf8(origin).ok()?;
    let (scheme, rest) = text.split_once("://")?;
    let https = scheme.eq_ignore_ascii_case("https");
    if !https && !scheme.eq_ignore_ascii_case("http") {
        return None;
    }
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
        _ => (rest, if https { 443 } else { 80 }),
    };
    (!host.is_empty() && !host.contains('/')).then_some((https, host, port))
}

fn first<'a>(fields: &'a Fields, name: &'a [u8]) -> Option<&'a [u8]> {
    fields.values(name).next()
}

#[cfg(test)]
mod tests {
    use http::Version;

    use super::*;

    fn list(entries: &[&str]) -> Listed {
        let entries: Vec<String> = entries.iter().map(|&entry| entry.to_owned()).collect();
        Listed::parse(&entries).unwrap()
    }

    fn cors(origins: &[&str], credentials: bool, methods: &[&str], headers: &[&str], exposed: &[&str]) -> Cors {
        let origins = match origins {
            ["*"] => Origins::Any,
            origins => Origins::These(origins.iter().map(|text| Origin::parse(text).unwrap()).collect()),
        };
        let (methods, headers, exposed) = (list(methods), list(headers), list(exposed));
        Cors { origins, credentials, methods, headers, exposed, max_age: 3600 }
    }

    fn request(method: Method, fields: &[(&str, &str)]) -> RequestHead {
        let mut head = RequestHead::new(Version::HTTP_11, method, "/");
        head.fields = fields.iter().copied().collect();
        head
    }

    fn said(fields: &Fields) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        fields.iter().map(|(name, value)| (text(name), text(value))).collect()
    }

    fn value(fields: &Fields, name: &str) -> Option<String> {
        fields.values(name.as_bytes()).next().map(|value| String::from_utf8_lossy(value).into_owned())
    }

    #[test]
    fn origins_are_scheme_host_and_port() {
        let these = cors(&["https://www.foo.com", "https://*.bar.com", "http://*:8080"], false, &[], &[], &[]);
        for origin in [
            "https://www.foo.com",
            "https://www.foo.com:443",
            "https://WWW.FOO.com",
            "https://www.bar.com",
            "https://xpto.www.bar.com",
            "http://anything:8080",
            "http://[::1]:8080",
        ] {
            assert!(these.allows(origin.as_bytes()), "{origin}");
        }
        for origin in [
            "http://www.foo.com",
            "https://www.foo.com:8443",
            "https://foo.com",
            "https://bar.com",
            "https://.bar.com",
            "https://evilbar.com",
            "https://www.foo.com.evil.com",
            "https://www.foo.com/",
            "http://anything",
            "null",
            "",
            "https://",
            "https://www.foo.com:x",
        ] {
            assert!(!these.allows(origin.as_bytes()), "{origin}");
        }
        assert!(cors(&["*"], false, &[], &[], &[]).allows(b"null"));
        for text in ["foo.com", "https://*foo.com", "https://*.*.com", "ftp://a", ""] {
            assert_eq!(Origin::parse(text), None, "{text}");
        }
    }

    #[test]
    fn preflights_are_answered_with_what_is_allowed() {
        let these = cors(
            &["https://www.foo.com", "https://*.bar.com"],
            true,
            &["GET", "OPTIONS"],
            &["x-header-1", "x-header-2"],
            &["x-header-3"],
        );
        let asks = |origin| {
            request(
                Method::OPTIONS,
                &[
                    ("origin", origin),
                    ("access-control-request-method", "GET"),
                    ("access-control-request-headers", "x-header-1"),
                ],
            )
        };
        let answer = these.preflight(&asks("https://www.bar.com")).unwrap().unwrap();
        assert_eq!(answer.status, StatusCode::NO_CONTENT);
        let expected = [
            ("access-control-allow-origin", "https://www.bar.com"),
            ("vary", "origin"),
            ("access-control-allow-credentials", "true"),
            ("access-control-expose-headers", "x-header-3"),
            ("access-control-allow-methods", "GET, OPTIONS"),
            ("access-control-allow-headers", "x-header-1, x-header-2"),
            ("access-control-max-age", "3600"),
        ];
        assert_eq!(said(&answer.fields), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert!(these.preflight(&asks("https://foobar.com")).unwrap().is_err());
        // Not a preflight: the application's to answer.
        assert!(these.preflight(&request(Method::OPTIONS, &[("origin", "https://www.foo.com")])).is_none());
        assert!(these.preflight(&request(Method::OPTIONS, &[("access-control-request-method", "GET")])).is_none());
        assert!(
            these
                .preflight(&request(Method::GET, &[("origin", "a"), ("access-control-request-method", "GET")]))
                .is_none()
        );
    }

    #[test]
    fn wildcards_are_never_said_with_credentials() {
        let asks = request(
            Method::OPTIONS,
            &[
                ("origin", "https://a"),
                ("access-control-request-method", "PUT"),
                ("access-control-request-headers", "x-a, x-b"),
            ],
        );
        for credentials in [true, false] {
            let any = cors(&["*"], credentials, &["*"], &["*"], &["*"]);
            let fields = any.preflight(&asks).unwrap().unwrap().fields;
            assert_eq!(value(&fields, "access-control-allow-methods").as_deref(), Some("PUT"));
            assert_eq!(value(&fields, "access-control-allow-headers").as_deref(), Some("x-a, x-b"));
            let origin = if credentials { "https://a" } else { "*" };
            assert_eq!(value(&fields, "access-control-allow-origin").as_deref(), Some(origin));
            let exposed = (!credentials).then_some("*");
            assert_eq!(value(&fields, "access-control-expose-headers").as_deref(), exposed);
            assert_eq!(value(&fields, "access-control-allow-credentials").is_some(), credentials);
            assert_eq!(value(&fields, "vary").is_some(), credentials);
        }
    }

    #[test]
    fn answers_say_what_the_filter_says_and_nothing_else() {
        let these = cors(&["https://a"], false, &[], &[], &["x-b"]);
        let answered = |origin: Option<&str>| {
            let asked = origin.map(|origin| ("origin", origin));
            let mut fields = Fields::from_iter([("access-control-allow-origin", "*"), ("x-a", "1")]);
            Arc::new(these.clone()).asked(&request(Method::GET, asked.as_slice())).answer(&mut fields);
            fields
        };
        let fields = answered(Some("https://a"));
        assert_eq!(fields.values(ALLOW_ORIGIN).collect::<Vec<_>>(), [b"https://a"]);
        assert_eq!(value(&fields, "access-control-expose-headers").as_deref(), Some("x-b"));
        let fields = answered(Some("https://b"));
        assert_eq!(
            (value(&fields, "access-control-allow-origin"), value(&fields, "vary").as_deref()),
            (None, Some("origin"))
        );
        assert_eq!(
            value(&answered(None), "access-control-allow-origin").as_deref(),
            Some("*"),
            "not a cross-origin request"
        );
    }
}
