//! What HTTP says about heads on the way through a proxy (RFC 9110, 9112, 9113): what is ambiguous is refused,
//! hop-by-hop fields end here, and a head takes the form that the next hop's version wants.

use std::{fmt::Display, net::Ipv6Addr, time::Duration};

use http::{Method, Version};

use super::head::{Fields, Name, RequestHead, names};
use crate::error::Error;

/// The proxy's own headers.
const OURS: u32 = names([
    Name::LenoAttempt,
    Name::LenoClientId,
    Name::LenoOther,
    Name::LenoReason,
    Name::LenoRetried,
    Name::LenoTimeoutMs,
]);
/// What is meant for one hop (RFC 9110 7.6.1), beside what Connection names.
const HOP_BY_HOP: u32 = names([
    Name::Connection,
    Name::KeepAlive,
    Name::ProxyConnection,
    Name::TransferEncoding,
    Name::Upgrade,
    Name::Http2Settings,
    Name::Te,
]);
/// What may only stand in a head (RFC 9110 6.5.1): framing, routing, credentials; Host aside.
const NOT_IN_TRAILERS: u32 = names([
    Name::ContentLength,
    Name::TransferEncoding,
    Name::Te,
    Name::Trailer,
    Name::Connection,
    Name::KeepAlive,
    Name::ProxyConnection,
    Name::Http2Settings,
    Name::Upgrade,
    Name::Authorization,
    Name::Cookie,
]);

/// Checks a request head as it came and removes what was meant for this hop alone. Gives back the protocol to upgrade to,
/// if the client asks for an upgrade.
///
/// # Errors
/// [`Error::BadRequest`] for whatever two readers could understand differently.
pub(crate) fn receive(head: &mut RequestHead) -> Result<Option<Box<[u8]>>, Error> {
    check_framing(&head.fields)?;
    check_target(head)?;
    if head.is_http2() {
        // RFC 9113 8.2.2: connection-specific fields have been refused.
        return Ok(None);
    }
    if !head.fields.may_have(HOP_BY_HOP) {
        return Ok(None);
    }
    let upgrade = requested_upgrade(head);
    remove_hop_by_hop(&mut head.fields);
    Ok(upgrade)
}

/// RFC 9112 6.1, 6.3: one length, or the chunked coding alone.
fn check_framing(fields: &Fields) -> Result<(), Error> {
    let mut codings = fields.all(Name::TransferEncoding);
    if let Some(coding) = codings.next() {
        if !coding.eq_ignore_ascii_case(b"chunked") || codings.next().is_some() {
            return Err(Error::BadRequest("a transfer coding other than chunked"));
        }
        if fields.has(Name::ContentLength) {
            return Err(Error::BadRequest("both Content-Length and Transfer-Encoding"));
        }
    }
    let mut lengths = fields.all(Name::ContentLength);
    if let Some(length) = lengths.next()
        && (length.is_empty() || !length.iter().all(u8::is_ascii_digit) || lengths.any(|other| other != length))
    {
        return Err(Error::BadRequest("an invalid Content-Length"));
    }
    Ok(())
}

/// RFC 9112 3.2, RFC 9113 8.3.1: a valid authority, and the asterisk for OPTIONS alone.
fn check_target(head: &RequestHead) -> Result<(), Error> {
    if head.path() == "*" && head.method != Method::OPTIONS {
        return Err(Error::BadRequest("an invalid request target"));
    }
    match head.authority() {
        Some(authority) if !is_authority(authority.as_bytes()) => Err(Error::BadRequest("an invalid authority")),
        None if head.version == Version::HTTP_11 => Err(Error::BadRequest("no Host")),
        _ => Ok(()),
    }
}

/// `uri-host [ ":" port ]` (RFC 9110 7.2), without escapes: each such is an [`http::uri::Authority`] too, so that a
/// request is good for HTTP/1 and HTTP/2, or for neither.
pub(crate) fn is_authority(bytes: &[u8]) -> bool {
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

/// What a host's name may be made of, RFC 3986 3.2.2: `unreserved` and `sub-delims`.
static NAMES: [bool; 256] = {
    let mut names = [false; 256];
    let mut byte = 0_u8;
    while byte < 0x80 {
        names[byte as usize] = byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'='
            );
        byte += 1;
    }
    names
};

fn is_name(byte: u8) -> bool {
    // Cannot miss: there is an entry for each byte.
    NAMES.get(usize::from(byte)).is_some_and(|name| *name)
}

/// The protocol that an HTTP/1.1 client wants to change to. h2c is not offered on: it would carry requests past us
/// (RFC 9113 deprecates it).
fn requested_upgrade(head: &RequestHead) -> Option<Box<[u8]>> {
    let upgrade = head.fields.get(Name::Upgrade)?;
    if head.version != Version::HTTP_11 || !lists(&head.fields, Name::Connection, b"upgrade") {
        return None;
    }
    let h2c = tokens(upgrade).any(|token| token.get(..3).is_some_and(|start| start.eq_ignore_ascii_case(b"h2c")));
    (!h2c).then(|| upgrade.into())
}

/// Removes what was meant for one hop, except `TE: trailers`, which we can honour.
fn remove_hop_by_hop(fields: &mut Fields) {
    let trailers = lists(fields, Name::Te, b"trailers");
    for name in named_by_connection(fields) {
        fields.remove_named(&name);
    }
    fields.remove(HOP_BY_HOP);
    if trailers {
        fields.push_known(Name::Te, b"trailers");
    }
}

/// Fields that the Connection field names, in lower case. Those that every recipient needs are not the client's to name.
fn named_by_connection(fields: &Fields) -> Vec<Vec<u8>> {
    let named = fields.all(Name::Connection).flat_map(tokens).map(<[u8]>::to_ascii_lowercase);
    let meant = |name: &Vec<u8>| {
        !matches!(
            name.as_slice(),
            b"close" | b"keep-alive" | b"host" | b"content-length" | b"proxy-authenticate" | b"proxy-authorization"
        )
    };
    named.filter(meant).collect()
}

/// The members of a comma-separated field value.
fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

fn lists(fields: &Fields, name: Name, wanted: &[u8]) -> bool {
    fields.all(name).flat_map(tokens).any(|token| token.eq_ignore_ascii_case(wanted))
}

/// Removes the proxy's own headers, which mean something only when a proxy of the mesh has set them.
pub(crate) fn remove_ours(fields: &mut Fields) {
    fields.remove(OURS);
}

/// Removes from trailers what may only stand in a head, and what is ours.
pub(crate) fn clean_trailers(trailers: &mut Fields) {
    trailers.remove(OURS | NOT_IN_TRAILERS);
    trailers.remove_named(b"host");
}

/// Whether the request is gRPC, by its content type: `application/grpc`, with or without a `+` suffix or parameters. Not
/// gRPC-Web, which is another protocol.
pub(crate) fn is_grpc(fields: &Fields) -> bool {
    fields.get(Name::ContentType).is_some_and(is_grpc_type)
}

/// As [`is_grpc`], of the content type.
pub(crate) fn is_grpc_type(value: &[u8]) -> bool {
    const TYPE: &[u8] = b"application/grpc";
    value.split_at_checked(TYPE.len()).is_some_and(|(start, rest)| {
        start.eq_ignore_ascii_case(TYPE) && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
    })
}

/// Whether the client waits for `100 Continue`.
pub(crate) fn expects_continue(fields: &Fields) -> bool {
    fields.get(Name::Expect).is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"))
}

/// The authority of a request whose client (HTTP/1.0) named none.
pub(crate) fn settle(head: &mut RequestHead, host: &dyn Display) {
    if head.authority().is_none() {
        head.set_authority(&host.to_string());
    }
}

/// Gives a head what HTTP/1.1 wants: one Cookie field (RFC 9113 8.2.3).
pub(crate) fn for_http1(head: &mut RequestHead) {
    if head.fields.all(Name::Cookie).nth(1).is_some() {
        let joined = head.fields.all(Name::Cookie).collect::<Vec<_>>().join(&b"; "[..]);
        head.fields.set(Name::Cookie, &joined);
    }
}

/// A response head from a peer: what was meant for one hop, or comes from outside and looks like ours, is removed.
///
/// # Errors
/// If its body is in a coding that would be lost.
pub(crate) fn receive_response(fields: &mut Fields, meshed: bool) -> Result<(), &'static str> {
    if fields.may_have(HOP_BY_HOP) {
        if let Some(coding) = fields.get(Name::TransferEncoding)
            && !coding.eq_ignore_ascii_case(b"chunked")
        {
            return Err("the response has a transfer coding other than chunked");
        }
        for name in named_by_connection(fields) {
            fields.remove_named(&name);
        }
        fields.remove(HOP_BY_HOP);
    }
    if !meshed {
        remove_ours(fields);
    }
    Ok(())
}

/// As [`receive_response`], for an informational one: it has no body (RFC 9110 8.6), and nothing of ours.
///
/// # Errors
/// If it says that it has a body all the same.
pub(crate) fn receive_informational(fields: &mut Fields) -> Result<(), &'static str> {
    receive_response(fields, false)?;
    fields.remove(names([Name::ContentLength, Name::Trailer]));
    Ok(())
}

/// Asks for, or grants, a change of protocol.
pub(crate) fn set_upgrade(fields: &mut Fields, protocol: &[u8]) {
    fields.set(Name::Connection, b"upgrade");
    fields.set(Name::Upgrade, protocol);
}

/// The longest that the client wants to wait, if it says so (gRPC over HTTP/2: at most 8 digits and a unit).
pub(crate) fn grpc_timeout(fields: &Fields) -> Option<Duration> {
    let value = fields.text(Name::GrpcTimeout)?;
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

/// The longest that a workload wants to wait, or what a proxy of the mesh says is left of that: milliseconds, at most 10 digits
/// (115 days). None: it is not said, or unreadable.
pub(crate) fn leno_timeout(fields: &Fields) -> Option<Duration> {
    let value = fields.text(Name::LenoTimeoutMs)?;
    let plain = value.len() <= 10 && value.bytes().all(|byte| byte.is_ascii_digit());
    if plain { value.parse().ok().map(Duration::from_millis) } else { None }
}

/// By this header the client's proxy tells the server's how long the exchange may be without a byte moved: milliseconds, if
/// policy allows longer than usual.
const IDLE: &[u8] = b"leno-idle-ms";

/// What [`IDLE`] says. None: nothing, or it is unreadable.
pub(crate) fn leno_idle(fields: &Fields) -> Option<Duration> {
    if !fields.has(Name::LenoOther) {
        return None;
    }
    let value = fields.values(IDLE).next().and_then(|value| std::str::from_utf8(value).ok())?;
    let plain = value.len() <= 10 && value.bytes().all(|byte| byte.is_ascii_digit());
    if plain { value.parse().ok().map(Duration::from_millis) } else { None }
}

/// Says it; None: only what an earlier hop was told is removed.
pub(crate) fn set_idle(fields: &mut Fields, idle: Option<Duration>) {
    match idle {
        Some(idle) => fields.set_named(IDLE, idle.as_millis().to_string().as_bytes()),
        None => fields.remove_named(IDLE),
    }
}

/// Which try of its client a request is, as a proxy of the mesh says it; 1: the first.
pub(crate) fn attempt(fields: &Fields) -> u32 {
    fields.text(Name::LenoAttempt).and_then(|value| value.parse().ok()).unwrap_or(1)
}

/// Tells the next hop what is left of the deadline.
pub(crate) fn set_timeout(fields: &mut Fields, left: Duration, grpc: bool) {
    let millis = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
    if grpc {
        fields.set(Name::GrpcTimeout, format!("{}m", millis.min(99_999_999)).as_bytes());
    } else {
        fields.set(Name::LenoTimeoutMs, millis.to_string().as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(version: Version, target: &str, authority: &str, fields: &[(&str, &str)]) -> RequestHead {
        let mut head = RequestHead::new(version, Method::GET, target);
        head.set_authority(authority);
        head.fields = fields.iter().copied().collect();
        head
    }

    #[test]
    fn an_authority_is_one() {
        let taken = |version, authority| receive(&mut head(version, "/", authority, &[])).is_ok();
        let (v0, v1, v2) = (Version::HTTP_10, Version::HTTP_11, Version::HTTP_2);
        assert!(taken(v1, "a:80") && taken(v2, "b") && taken(v0, "") && taken(v2, ""));
        for (version, authority) in [(v1, ""), (v1, "a b"), (v2, "u@b"), (v1, "a:b:c"), (v1, "a:http")] {
            assert!(!taken(version, authority), "{version:?} {authority}");
        }
    }

    #[test]
    fn the_asterisk_is_for_options_alone() {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let taken = |method: Method| {
                let mut head = head(version, "*", "a", &[]);
                head.method = method;
                receive(&mut head).is_ok()
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
                prop_assert!(http::uri::Authority::try_from(host.as_str()).is_ok(), "{}", host);
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
            assert_eq!(is_grpc(&Fields::from_iter([("content-type", content_type)])), expected, "{content_type}");
        }
        assert!(!is_grpc(&Fields::new()));
    }

    #[test]
    fn what_is_for_one_hop_ends_here() {
        let mut head = head(
            Version::HTTP_11,
            "/",
            "a",
            &[
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
        assert_eq!(receive(&mut head).unwrap(), None);
        assert_eq!(head.fields, Fields::from_iter([("x-three", "3"), ("content-length", "0"), ("te", "trailers")]));
        assert_eq!(head.authority(), Some("a"));
    }

    #[test]
    fn upgrades_are_asked_for_by_both_fields_and_never_to_h2c() {
        let upgrade = |version, fields: &[(&str, &str)]| {
            let mut head = head(version, "/", "a", fields);
            let upgrade = receive(&mut head).unwrap();
            assert!(!head.fields.has(Name::Upgrade) && !head.fields.has(Name::Connection));
            upgrade.map(|value| String::from_utf8(value.into()).unwrap())
        };
        let v1 = Version::HTTP_11;
        assert_eq!(upgrade(v1, &[("connection", "Upgrade"), ("upgrade", "websocket")]).as_deref(), Some("websocket"));
        assert_eq!(upgrade(v1, &[("upgrade", "websocket")]), None);
        assert_eq!(upgrade(v1, &[("connection", "upgrade, http2-settings"), ("upgrade", "h2c")]), None);
        assert_eq!(upgrade(Version::HTTP_10, &[("connection", "upgrade"), ("upgrade", "websocket")]), None);
    }

    #[test]
    fn heads_change_their_version() {
        let cookies = [("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers")];
        let mut to_1 = head(Version::HTTP_2, "/x?y", "a:80", &cookies);
        receive(&mut to_1).unwrap();
        for_http1(&mut to_1);
        settle(&mut to_1, &"unused");
        assert_eq!((to_1.target(), to_1.authority()), ("/x?y", Some("a:80")));
        assert_eq!(to_1.fields.get(Name::Cookie), Some(&b"a=1; b=2"[..]));

        let mut without = head(Version::HTTP_10, "/", "", &[]);
        receive(&mut without).unwrap();
        settle(&mut without, &"shop.shop:80");
        assert_eq!(without.authority(), Some("shop.shop:80"));
        settle(&mut without, &"other");
        assert_eq!(without.authority(), Some("shop.shop:80"));
    }

    #[test]
    fn framing_is_unambiguous() {
        let framing = |fields: &[(&str, &str)]| receive(&mut head(Version::HTTP_11, "/", "a", fields)).is_ok();
        assert!(framing(&[("transfer-encoding", "Chunked")]) && framing(&[("content-length", "5")]));
        assert!(!framing(&[("transfer-encoding", "chunked"), ("content-length", "5")]));
        assert!(!framing(&[("transfer-encoding", "gzip, chunked")]));
        assert!(!framing(&[("content-length", "5"), ("content-length", "6")]));
        assert!(!framing(&[("content-length", "5a")]));
    }

    #[test]
    fn ours_are_removed() {
        let ours = [("leno-client-id", "x"), ("leno-x", "1"), ("LENO_X", "2"), ("len", "1"), ("lenox", "1")];
        let mut fields = Fields::from_iter(ours);
        remove_ours(&mut fields);
        assert_eq!(fields, Fields::from_iter([("len", "1"), ("lenox", "1")]));
    }

    #[test]
    fn trailers_hold_no_framing_and_nothing_of_ours() {
        let mut trailers =
            Fields::from_iter([("host", "a"), ("content-length", "1"), ("leno-reason", "x"), ("sum", "1")]);
        clean_trailers(&mut trailers);
        assert_eq!(trailers, Fields::from_iter([("sum", "1")]));
    }

    #[test]
    fn idleness_is_read_and_told() {
        let read = |value: &str| leno_idle(&Fields::from_iter([("leno-idle-ms", value)]));
        assert_eq!((read("600000"), read("0")), (Some(Duration::from_secs(600)), Some(Duration::ZERO)));
        assert_eq!((read(""), read("-1"), read("1s"), read("12345678901")), (None, None, None, None));
        let mut fields = Fields::from_iter([("x", "y")]);
        assert_eq!(leno_idle(&fields), None);
        set_idle(&mut fields, Some(Duration::from_secs(7)));
        assert_eq!(leno_idle(&fields), Some(Duration::from_secs(7)));
        set_idle(&mut fields, None);
        assert_eq!((leno_idle(&fields), fields.len()), (None, 1));
    }

    #[test]
    fn timeouts_are_read_and_told() {
        let read = |value: &str| grpc_timeout(&Fields::from_iter([("grpc-timeout", value)]));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        for wrong in ["", "m", "1", "1x", "-1m", "123456789m", "1µ"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        let mut fields = Fields::new();
        set_timeout(&mut fields, Duration::from_millis(1500), false);
        assert_eq!(leno_timeout(&fields), Some(Duration::from_millis(1500)));
        let read = |value: &str| leno_timeout(&Fields::from_iter([("leno-timeout-ms", value)]));
        assert_eq!([read("0"), read("250")], [Some(Duration::ZERO), Some(Duration::from_millis(250))]);
        for wrong in ["", "-1", "+1", "1.5", "1s", "soon", "12345678901"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        set_timeout(&mut fields, Duration::from_micros(1), true);
        assert_eq!(grpc_timeout(&fields), Some(Duration::from_millis(1)));
    }
}
