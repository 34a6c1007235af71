use super::*;

#[test]
fn every_known_name_is_known_by_itself() {
    for bit in 0..32_u8 {
        // The names are found by writing all of them that can be told apart.
        let all = [
            Name::Authorization,
            Name::Baggage,
            Name::Connection,
            Name::ContentLength,
            Name::ContentType,
            Name::Cookie,
            Name::Expect,
            Name::GrpcMessage,
            Name::GrpcStatus,
            Name::GrpcTimeout,
            Name::Http2Settings,
            Name::IdempotencyKey,
            Name::KeepAlive,
            Name::LenoAttempt,
            Name::LenoClientId,
            Name::LenoReason,
            Name::LenoTimeoutMs,
            Name::Location,
            Name::ProxyAuthenticate,
            Name::ProxyAuthorization,
            Name::ProxyConnection,
            Name::RetryAfter,
            Name::Te,
            Name::Traceparent,
            Name::Tracestate,
            Name::Trailer,
            Name::TransferEncoding,
            Name::Upgrade,
        ];
        if let Some(name) = all.into_iter().find(|name| *name as u8 == bit) {
            assert_eq!(Name::of(name.as_str().as_bytes()), name);
        }
    }
    assert_eq!(Name::of(b"leno_x"), Name::LenoOther);
    assert_eq!(Name::of(b"leno"), Name::Other);
}

#[test]
fn fields_keep_their_order_and_are_found_in_any_case() {
    let mut fields = Fields::from_iter([("X-A", "1"), ("Connection", "close"), ("x-a", "2"), ("x-empty", "")]);
    assert_eq!(fields.values(b"x-a").collect::<Vec<_>>(), [b"1", b"2"]);
    assert_eq!(fields.get(Name::Connection), Some(&b"close"[..]));
    assert!(fields.has(Name::Connection) && !fields.has(Name::Te));
    fields.remove(names([Name::Connection, Name::Te]));
    assert!(!fields.has(Name::Connection));
    fields.set_named(b"x-a", b"3");
    let all: Vec<_> = fields.iter().collect();
    assert_eq!(all, [(&b"x-empty"[..], &b""[..]), (b"x-a", b"3")]);
    fields.set(Name::Te, b"trailers");
    assert_eq!(fields.only(Name::Te), Some(&b"trailers"[..]));
    fields.push_known(Name::Te, b"x");
    assert_eq!(fields.only(Name::Te), None);
}

#[test]
fn targets_have_path_and_query() {
    let mut head = RequestHead::new(Version::HTTP_11, Method::GET, "/a?b=c?d");
    assert_eq!((head.path(), head.query()), ("/a", Some("b=c?d")));
    head.set_target("/a");
    assert_eq!((head.path(), head.query()), ("/a", None));
    head.set_target("/a?");
    assert_eq!((head.path(), head.query()), ("/a", Some("")));
    head.set_authority("shop:80");
    assert_eq!(head.authority(), Some("shop:80"));
    head.set_target("/longer?than=before");
    assert_eq!((head.target(), head.authority()), ("/longer?than=before", Some("shop:80")));
    assert_eq!((head.path(), head.query()), ("/longer", Some("than=before")));
    head.set_authority("");
    assert_eq!((head.target(), head.authority()), ("/longer?than=before", None));
    head.set_authority("cart");
    head.reset(Version::HTTP_2, Method::PUT, "*");
    assert_eq!((head.target(), head.path(), head.query(), head.authority()), ("*", "*", None, None));
}
