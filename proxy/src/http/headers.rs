//! What HTTP says about headers on the way through a proxy (RFC 9110, 9112, 9113): framing that is ambiguous
//! is refused, hop-by-hop fields end here, and Host and `:authority` agree.
//!
//! Between [`receive`] and [`for_http1`] / [`for_http2`] the authority of a request is its Host field,
//! whichever version it came with.

use std::{borrow::Cow, fmt::Display, net::Ipv6Addr, time::Duration};

use bytes::Bytes;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Uri, Version,
    header::{
        AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
        TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};

use http_body::Frame;

use crate::error::Error;

/// Prefix of the proxy's own headers.
const OURS: &[u8] = b"leno";
/// Why the proxy answered itself; [`Error::reason`].
pub(crate) const LENO_REASON: HeaderName = HeaderName::from_static("leno-reason");
/// The number of the try, from the second on.
pub(crate) const LENO_ATTEMPT: HeaderName = HeaderName::from_static("leno-attempt");
/// What is left of the deadline.
pub(crate) const LENO_TIMEOUT_MS: HeaderName = HeaderName::from_static("leno-timeout-ms");
/// The verified identity of the client.
pub(crate) const LENO_CLIENT_ID: HeaderName = HeaderName::from_static("leno-client-id");
pub(crate) const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// Checks a request head as it came, settles its authority in the Host field and removes what was meant for
/// this hop alone. Gives back the protocol to upgrade to, if the client asks for an upgrade.
///
/// # Errors
/// [`Error::BadRequest`] for whatever two readers could understand differently.
pub(crate) fn receive(head: &mut Parts, ambiguous: bool) -> Result<Option<HeaderValue>, Error> {
    if ambiguous {
        return Err(Error::BadRequest("both Content-Length and Transfer-Encoding"));
    }
    check_framing(&head.headers)?;
    settle_authority(head)?;
    if head.version == Version::HTTP_2 {
        // RFC 9113 8.2.2: `h2` has refused connection-specific fields.
        return Ok(None);
    }
    let upgrade = requested_upgrade(head);
    remove_hop_by_hop(&mut head.headers);
    Ok(upgrade)
}

/// RFC 9112 6.1, 6.3: one length, or the chunked coding alone. hyper has refused lengths that are not numbers or differ.
fn check_framing(headers: &HeaderMap) -> Result<(), Error> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") || codings.next().is_some() {
            return Err(Error::BadRequest("a transfer coding other than chunked"));
        }
        if headers.contains_key(CONTENT_LENGTH) {
            return Err(Error::BadRequest("both Content-Length and Transfer-Encoding"));
        }
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next()
        && (length.is_empty()
            || !length.as_bytes().iter().all(u8::is_ascii_digit)
            || lengths.any(|other| other != length))
    {
        return Err(Error::BadRequest("an invalid Content-Length"));
    }
    Ok(())
}

/// RFC 9112 3.2, RFC 9113 8.3.1: exactly one authority, in the Host field from here on.
fn settle_authority(head: &mut Parts) -> Result<(), Error> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Error::BadRequest("several Host fields"));
    }
    if let Some(host) = host
        && !is_authority(host.as_bytes())
    {
        return Err(Error::BadRequest("an invalid Host"));
    }
    // RFC 9112 3.2, RFC 9113 8.3.1: the authority form is CONNECT's, the asterisk form is that of OPTIONS.
    let authority_form =
        head.version != Version::HTTP_2 && head.uri.scheme().is_none() && head.uri.authority().is_some();
    if (authority_form && head.method != Method::CONNECT) || (head.uri.path() == "*" && head.method != Method::OPTIONS)
    {
        return Err(Error::BadRequest("an invalid request target"));
    }
    let Some(authority) = head.uri.authority() else {
        if host.is_none() && head.version != Version::HTTP_10 {
            return Err(Error::BadRequest("no Host"));
        }
        return Ok(());
    };
    if !is_authority(authority.as_str().as_bytes()) {
        return Err(Error::BadRequest("an invalid authority"));
    }
    match host {
        Some(host) if host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()) => Ok(()),
        Some(_) if head.version == Version::HTTP_2 => Err(Error::BadRequest("Host and :authority differ")),
        // RFC 9112 3.2.2: the absolute form's authority replaces Host.
        _ => {
            let value = HeaderValue::from_str(authority.as_str());
            head.headers.insert(HOST, value.map_err(|_| Error::BadRequest("an invalid authority"))?);
            Ok(())
        }
    }
}

/// `uri-host [ ":" port ]` (RFC 9110 7.2), without escapes: each such is an [`Authority`] too, so that a request is good
/// for HTTP/1 and HTTP/2, or for neither.
fn is_authority(bytes: &[u8]) -> bool {
    let port = match bytes.strip_prefix(b"[") {
        Some(literal) => {
            let mut parts = literal.splitn(2, |byte| *byte == b']');
            let address = parts.next().and_then(|address| std::str::from_utf8(address).ok()?.parse::<Ipv6Addr>().ok());
            parts.next().filter(|_| address.is_some())
        }
        None => {
            let end = bytes.iter().position(|byte| !is_name(*byte)).unwrap_or(bytes.len());
            bytes.split_at_checked(end).and_then(|(name, rest)| (!name.is_empty()).then_some(rest))
        }
    };
    match port {
        Some([b':', digits @ ..]) => digits.iter().all(u8::is_ascii_digit),
        Some(rest) => rest.is_empty(),
        None => false,
    }
}

/// RFC 3986 3.2.2: `unreserved` and `sub-delims`.
fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte)
}

/// The protocol that an HTTP/1.1 client wants to change to. h2c is not offered on: it would carry requests past us
/// (RFC 9113 deprecates it).
fn requested_upgrade(head: &Parts) -> Option<HeaderValue> {
    let upgrade = head.headers.get(UPGRADE)?;
    if head.version != Version::HTTP_11 || !lists(&head.headers, &CONNECTION, b"upgrade") {
        return None;
    }
    let h2c = tokens(upgrade).any(|token| token.get(..3).is_some_and(|start| start.eq_ignore_ascii_case(b"h2c")));
    (!h2c).then(|| upgrade.clone())
}

/// Removes what was meant for one hop (RFC 9110 7.6.1), except `TE: trailers`, which we can honour.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let trailers = headers.contains_key(TE) && lists(headers, &TE, b"trailers");
    if headers.contains_key(CONNECTION) {
        for name in named_by_connection(headers) {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in [KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING, UPGRADE, HTTP2_SETTINGS] {
        headers.remove(name);
    }
    headers.remove(TE);
    if trailers {
        headers.insert(TE, TRAILERS);
    }
}

/// Fields that the Connection field names. Those that every recipient needs are not the client's to name.
fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let kept = [HOST, CONTENT_LENGTH, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION];
    let names = headers.get_all(CONNECTION).iter().flat_map(tokens);
    names
        .filter(|name| !name.eq_ignore_ascii_case(b"close") && !name.eq_ignore_ascii_case(b"keep-alive"))
        .filter_map(|name| HeaderName::from_bytes(name).ok())
        .filter(|name| !kept.contains(name) && headers.contains_key(name))
        .collect()
}

/// The members of a comma-separated field value.
fn tokens(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

fn lists(headers: &HeaderMap, name: &HeaderName, wanted: &[u8]) -> bool {
    headers.get_all(name).iter().flat_map(tokens).any(|token| token.eq_ignore_ascii_case(wanted))
}

/// The identity that a client claims by the header which only its proxy may set.
pub(crate) fn claimed_identity(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(&LENO_CLIENT_ID).cloned()
}

/// Removes the proxy's own headers, which mean something only when a proxy of the mesh has set them.
pub(crate) fn remove_ours(headers: &mut HeaderMap) {
    while let Some(name) = headers.keys().find(|name| is_ours(name)).cloned() {
        headers.remove(name);
    }
}

/// By hyphen or underscore: CGI and its heirs (WSGI, Rack, PHP) take the two for the same.
fn is_ours(name: &HeaderName) -> bool {
    name.as_str()
        .as_bytes()
        .split_at_checked(OURS.len())
        .is_some_and(|(prefix, rest)| prefix == OURS && matches!(rest.first(), Some(b'-' | b'_')))
}

/// Removes from trailers what may only stand in a head (RFC 9110 6.5.1): framing, routing, and what is ours.
pub(crate) fn clean_trailers(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            remove_ours(&mut trailers);
            for name in
                [HOST, CONTENT_LENGTH, TRANSFER_ENCODING, TE, TRAILER, CONNECTION, UPGRADE, AUTHORIZATION, COOKIE]
            {
                trailers.remove(name);
            }
            Frame::trailers(trailers)
        }
        Err(frame) => frame,
    }
}

/// Whether the request is gRPC, by its content type: `application/grpc`, with or without a `+` suffix or parameters. Not
/// gRPC-Web, which is another protocol.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    const TYPE: &[u8] = b"application/grpc";
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.as_bytes().split_at_checked(TYPE.len()));
    value.is_some_and(|(start, rest)| {
        start.eq_ignore_ascii_case(TYPE) && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
    })
}

/// Whether the client waits for `100 Continue`.
pub(crate) fn expects_continue(headers: &HeaderMap) -> bool {
    headers.get(http::header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Gives a settled head the form that HTTP/1.1 wants: origin-form target, Host, one Cookie field. `host`: for clients (HTTP/1.0) that named none.
pub(crate) fn for_http1(head: &mut Parts, host: &dyn Display) {
    if head.method != Method::CONNECT && head.uri.authority().is_some() {
        let path = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        head.uri = Uri::from(path);
    }
    head.version = Version::HTTP_11;
    if !head.headers.contains_key(HOST)
        && let Ok(host) = HeaderValue::try_from(host.to_string())
    {
        head.headers.insert(HOST, host);
    }
    // RFC 9113 8.2.3
    if head.headers.get_all(COOKIE).iter().nth(1).is_some() {
        let joined =
            head.headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b"; "[..]);
        if let Ok(cookie) = HeaderValue::from_bytes(&joined) {
            head.headers.insert(COOKIE, cookie);
        }
    }
    if head.headers.contains_key(TE) {
        head.headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
}

/// Gives a settled head the form that HTTP/2 wants: everything about the target in pseudo-fields.
///
/// # Errors
/// If Host is no authority.
pub(crate) fn for_http2(head: &mut Parts, host: &dyn Display) -> Result<(), Error> {
    head.version = Version::HTTP_2;
    let value = head.headers.remove(HOST);
    let wanted = match value.as_ref().and_then(|value| value.to_str().ok()) {
        Some(named) => Cow::Borrowed(named),
        None => Cow::Owned(host.to_string()),
    };
    let complete = head.uri.scheme().is_some() || head.method == Method::CONNECT;
    if complete && head.uri.authority().is_some_and(|authority| authority.as_str() == wanted) {
        return Ok(());
    }
    let mut parts = std::mem::take(&mut head.uri).into_parts();
    parts.authority = Some(Authority::try_from(&*wanted).map_err(|_| Error::BadRequest("an invalid Host"))?);
    if parts.path_and_query.is_some() {
        parts.scheme = parts.scheme.or(Some(Scheme::HTTP));
    }
    head.uri = Uri::from_parts(parts).map_err(|_| Error::BadRequest("an invalid target"))?;
    Ok(())
}

/// A response head from a peer: what was meant for one hop, or comes from outside and looks like ours, is removed.
///
/// # Errors
/// If its body is in a coding that would be lost.
pub(crate) fn receive_response(headers: &mut HeaderMap, meshed: bool) -> Result<(), &'static str> {
    if let Some(coding) = headers.get(TRANSFER_ENCODING)
        && !coding.as_bytes().eq_ignore_ascii_case(b"chunked")
    {
        return Err("the response has a transfer coding other than chunked");
    }
    remove_hop_by_hop(headers);
    headers.remove(TE);
    if !meshed {
        remove_ours(headers);
    }
    Ok(())
}

/// Asks for, or grants, a change of protocol.
pub(crate) fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// The longest that the client wants to wait, if it says so (gRPC over HTTP/2: at most 8 digits and a unit).
pub(crate) fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let amount: u32 = digits.parse().ok()?;
    let unit = match unit {
        "H" => Duration::from_secs(3600),
        "M" => Duration::from_secs(60),
        "S" => Duration::from_secs(1),
        "m" => Duration::from_millis(1),
        "u" => Duration::from_micros(1),
        "n" => Duration::from_nanos(1),
        _ => return None,
    };
    Some(unit.saturating_mul(amount))
}

/// What a proxy of the mesh says is left of the deadline.
pub(crate) fn leno_timeout(headers: &HeaderMap) -> Option<Duration> {
    Some(Duration::from_millis(headers.get(LENO_TIMEOUT_MS)?.to_str().ok()?.parse().ok()?))
}

/// Tells the next hop what is left of the deadline.
pub(crate) fn set_timeout(headers: &mut HeaderMap, left: Duration, grpc: bool) {
    let millis = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
    if !grpc {
        headers.insert(LENO_TIMEOUT_MS, millis.into());
    } else if let Ok(value) = HeaderValue::try_from(format!("{}m", millis.min(99_999_999))) {
        headers.insert(GRPC_TIMEOUT, value);
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::*;

    fn head(version: Version, target: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().version(version).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn one_authority_or_none() {
        let host = |version, target, headers: &[(&str, &str)]| {
            let mut head = head(version, target, headers);
            receive(&mut head, false).map(|_| head.headers.get(HOST).map(|host| host.to_str().unwrap().to_owned()))
        };
        let (v1, v2) = (Version::HTTP_11, Version::HTTP_2);
        assert_eq!(host(v1, "/", &[("host", "a:80")]).unwrap().as_deref(), Some("a:80"));
        assert_eq!(host(v1, "http://b/", &[("host", "a")]).unwrap().as_deref(), Some("b"));
        assert_eq!(host(v2, "http://b/", &[]).unwrap().as_deref(), Some("b"));
        assert_eq!(host(v2, "http://b/", &[("host", "B")]).unwrap().as_deref(), Some("B"));
        assert_eq!(host(Version::HTTP_10, "/", &[]).unwrap(), None);
        for (version, target, headers) in [
            (v1, "/", &[][..]),
            (v1, "/", &[("host", "a"), ("host", "b")]),
            (v1, "/", &[("host", "")]),
            (v1, "/", &[("host", "a b")]),
            (v2, "http://b/", &[("host", "a")]),
            (v2, "http://u@b/", &[]),
            (v1, "/", &[("host", "a:b:c")]),
            (v1, "/", &[("host", "a:http")]),
            (v1, "*", &[("host", "a")]),
        ] {
            assert!(host(version, target, headers).is_err(), "{version:?} {target} {headers:?}");
        }
    }

    #[test]
    fn the_asterisk_is_for_options_alone() {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let taken = |method: Method| {
                let mut head = head(version, "*", &[("host", "a")]);
                head.method = method;
                receive(&mut head, false).is_ok()
            };
            assert!(taken(Method::OPTIONS));
            for method in [Method::GET, Method::POST, Method::CONNECT] {
                assert!(!taken(method.clone()), "{method} * in {version:?}");
            }
        }
    }

    #[test]
    fn hosts_and_ports() {
        for good in ["a", "a.b-c_d~e:80", "a:", "10.0.0.1:8080", "[::1]", "[fd00::1]:80", "[::ffff:1.2.3.4]:", "*.a"] {
            assert!(is_authority(good.as_bytes()), "{good}");
        }
        for bad in [
            "", ":80", "a:b", "a:b:c", "a:80:80", "a%20b", "a@b", "a/", "::1", "[::1", "[]", "[a]", "[::1]a",
            "[::1%1]", "é",
        ] {
            assert!(!is_authority(bad.as_bytes()), "{bad}");
        }
    }

    proptest! {
        /// What is taken from an HTTP/1 client can be told to an HTTP/2 server.
        #[test]
        fn a_host_is_an_authority(host in "(\\[[0-9a-f:.]{0,45}\\]|[-a-z0-9._~!$&'()*+,;=%@\\[\\]]{0,8})(:[0-9a]{0,6}){0,2}") {
            if is_authority(host.as_bytes()) {
                prop_assert!(Authority::try_from(host.as_str()).is_ok(), "{}", host);
            }
        }
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for (content_type, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/gRPC; charset=x", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/json", false),
            ("app", false),
        ] {
            let head = head(Version::HTTP_2, "http://a/", &[("content-type", content_type)]);
            assert_eq!(is_grpc(&head.headers), expected, "{content_type}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn what_is_for_one_hop_ends_here() {
        let mut head = head(
            Version::HTTP_11,
            "/",
            &[
                ("host", "a"),
                ("connection", "keep-alive, X-One ,Host, content-length"),
                ("connection", "x-two"),
                ("x-one", "1"),
                ("x-two", "2"),
                ("x-three", "3"),
                ("content-length", "0"),
                ("keep-alive", "5"),
                ("proxy-connection", "close"),
                ("te", "trailers, deflate"),
            ],
        );
        assert_eq!(receive(&mut head, false).unwrap(), None);
        let mut left: Vec<_> = head.headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "host", "te", "x-three"]);
        assert_eq!(head.headers[TE], "trailers");
    }

    #[test]
    fn upgrades_are_asked_for_by_both_fields_and_never_to_h2c() {
        let upgrade = |version, headers: &[(&str, &str)]| {
            let mut all = vec![("host", "a")];
            all.extend(headers);
            let mut head = head(version, "/", &all);
            let upgrade = receive(&mut head, false).unwrap();
            assert!(!head.headers.contains_key(UPGRADE) && !head.headers.contains_key(CONNECTION));
            upgrade.map(|value| value.to_str().unwrap().to_owned())
        };
        let v1 = Version::HTTP_11;
        assert_eq!(upgrade(v1, &[("connection", "Upgrade"), ("upgrade", "websocket")]).as_deref(), Some("websocket"));
        assert_eq!(upgrade(v1, &[("upgrade", "websocket")]), None);
        assert_eq!(upgrade(v1, &[("connection", "upgrade, http2-settings"), ("upgrade", "h2c")]), None);
        assert_eq!(upgrade(Version::HTTP_10, &[("connection", "upgrade"), ("upgrade", "websocket")]), None);
    }

    #[test]
    fn heads_change_their_version() {
        let mut to_1 =
            head(Version::HTTP_2, "http://a:80/x?y", &[("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers")]);
        receive(&mut to_1, false).unwrap();
        for_http1(&mut to_1, &"unused");
        assert_eq!((to_1.uri.to_string().as_str(), to_1.version), ("/x?y", Version::HTTP_11));
        assert_eq!(
            (&to_1.headers[HOST], &to_1.headers[COOKIE]),
            (&"a:80".parse().unwrap(), &"a=1; b=2".parse().unwrap())
        );
        assert_eq!(to_1.headers[CONNECTION], "te");

        let mut to_2 = head(Version::HTTP_11, "/x?y", &[("host", "a:80")]);
        receive(&mut to_2, false).unwrap();
        for_http2(&mut to_2, &"unused").unwrap();
        assert_eq!((to_2.uri.to_string().as_str(), to_2.version), ("http://a:80/x?y", Version::HTTP_2));
        assert!(!to_2.headers.contains_key(HOST));

        let mut without = head(Version::HTTP_10, "/", &[]);
        receive(&mut without, false).unwrap();
        for_http1(&mut without, &"shop.shop:80");
        assert_eq!(without.headers[HOST], "shop.shop:80");

        let mut connect = head(Version::HTTP_11, "db:5432", &[("host", "db:5432")]);
        connect.method = Method::CONNECT;
        receive(&mut connect, false).unwrap();
        for_http2(&mut connect, &"unused").unwrap();
        assert_eq!(connect.uri.to_string(), "db:5432");
    }

    #[test]
    fn framing_is_unambiguous() {
        let framing = |headers: &[(&str, &str)]| {
            let mut all = vec![("host", "a")];
            all.extend(headers);
            receive(&mut head(Version::HTTP_11, "/", &all), false).is_ok()
        };
        assert!(framing(&[("transfer-encoding", "Chunked")]) && framing(&[("content-length", "5")]));
        assert!(!framing(&[("transfer-encoding", "chunked"), ("content-length", "5")]));
        assert!(!framing(&[("transfer-encoding", "gzip, chunked")]));
        assert!(!framing(&[("content-length", "5"), ("content-length", "6")]));
        assert!(!framing(&[("content-length", "5a")]));
        assert!(receive(&mut head(Version::HTTP_11, "/", &[("host", "a")]), true).is_err());
    }

    #[test]
    fn ours_are_removed() {
        let mut head =
            head(Version::HTTP_11, "/", &[("leno-client-id", "x"), ("leno-x", "1"), ("leno-x", "2"), ("len", "1")]);
        remove_ours(&mut head.headers);
        assert_eq!(head.headers.len(), 1);
    }

    #[test]
    fn timeouts_are_read_and_told() {
        let read = |value: &str| grpc_timeout(&head(Version::HTTP_2, "http://a/", &[("grpc-timeout", value)]).headers);
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        for wrong in ["", "m", "1", "1x", "-1m", "123456789m", "1µ"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        let mut headers = HeaderMap::new();
        set_timeout(&mut headers, Duration::from_millis(1500), false);
        assert_eq!(leno_timeout(&headers), Some(Duration::from_millis(1500)));
        set_timeout(&mut headers, Duration::from_micros(1), true);
        assert_eq!(grpc_timeout(&headers), Some(Duration::from_millis(1)));
    }
}
