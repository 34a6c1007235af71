//! What becomes of a head that is not plain: whether hyper would serve it. What it would refuse is refused here, so that
//! the answer says why and is recorded; hyper's own says neither. Read by hyper's parser, and by its rules of framing.

use std::mem::MaybeUninit;

use http::{Uri, Version};

use super::{Framing, parse::Request};
use crate::{
    config::limits,
    http::head::{RequestHead, Unfit},
};

/// See the module.
pub(super) enum Judged {
    /// More is needed to tell.
    Incomplete,
    /// Not to be served. In the head is what could be read of it; the rest of the connection is not to be read for requests.
    Refused(Box<Request>),
    Unusual,
}

/// Looks at the head at the beginning of `bytes`, which is not plain.
pub(super) fn judge(bytes: &[u8]) -> Judged {
    let mut fields = [const { MaybeUninit::uninit() }; limits::HEADERS];
    let mut head = httparse::Request::new(&mut []);
    let unfit = match head.parse_with_uninit_headers(bytes, &mut fields) {
        Ok(httparse::Status::Complete(length)) if length <= limits::HEAD_BYTES => wrong(&head),
        // Nothing but empty lines, which some send after a body: the connection idles.
        Ok(httparse::Status::Partial) if bytes.iter().all(|byte| matches!(byte, b'\r' | b'\n')) => None,
        Ok(httparse::Status::Partial) if bytes.len() <= limits::HEAD_BYTES => return Judged::Incomplete,
        Ok(_) | Err(httparse::Error::TooManyHeaders) => Some(Unfit::TooLarge),
        Err(error) => Some(Unfit::Malformed(what(error))),
    };
    let Some(unfit) = unfit else { return Judged::Unusual };
    // Whatever it says of a body: nothing after it can be trusted to begin where it seems to.
    let framing = Framing::Length(0);
    let target = head.path.filter(|target| target.len() <= limits::HEAD_BYTES);
    let (head, refused) = (RequestHead::remains(Version::HTTP_11, head.method, target), Some(unfit));
    Judged::Refused(Box::new(Request { head, framing, close: true, length: bytes.len(), refused }))
}

/// What is wrong with a head that could be read.
fn wrong(head: &httparse::Request<'_, '_>) -> Option<Unfit> {
    let malformed = |why| Some(Unfit::Malformed(why));
    if head.path.is_none_or(|target| target.parse::<Uri>().is_err()) {
        return malformed("a malformed target");
    }
    let values = |name: &'static str| {
        let named = head.headers.iter().filter(move |field| field.name.eq_ignore_ascii_case(name));
        named.map(|field| field.value.trim_ascii())
    };
    if values("content-length").any(|length| number(length).is_none()) {
        return malformed("a malformed Content-Length");
    }
    let mut lengths = values("content-length").map(number);
    let Some(codings) = values("transfer-encoding").next_back() else {
        let first = lengths.next()?;
        return if lengths.all(|other| other == first) { None } else { malformed("lengths that differ") };
    };
    // Both a length and a coding: hyper reads it, and it is refused as ambiguous behind it.
    let last = codings.rsplit(|byte| *byte == b',').next().unwrap_or_default();
    match () {
        () if head.version != Some(1) => malformed("Transfer-Encoding in HTTP/1.0"),
        () if !last.trim_ascii().eq_ignore_ascii_case(b"chunked") => malformed("a body that does not end chunked"),
        () => None,
    }
}

fn number(value: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok()
}

fn what(error: httparse::Error) -> &'static str {
    match error {
        httparse::Error::HeaderName => "a malformed field name",
        httparse::Error::HeaderValue => "a malformed field value",
        httparse::Error::NewLine => "a malformed line end",
        httparse::Error::Version => "an unknown version of HTTP",
        _ => "a malformed request line",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(head: &str) -> Option<(Unfit, String)> {
        match judge(head.as_bytes()) {
            Judged::Refused(request) => {
                assert!(request.close);
                Some((request.refused?, format!("{} {}", request.head.method, request.head.target())))
            }
            _ => None,
        }
    }

    #[test]
    fn what_no_one_would_serve_is_refused() {
        for (rest, why) in [
            ("X-A : b\r\n", "a malformed field name"),
            ("X-A: b\r\n c\r\n", "a malformed field name"),
            ("X-A: b\0\r\n", "a malformed field value"),
            ("Content-Length: +1\r\n", "a malformed Content-Length"),
            ("Content-Length: \r\n", "a malformed Content-Length"),
            ("Content-Length: 18446744073709551616\r\n", "a malformed Content-Length"),
            ("Content-Length: 1\r\nContent-Length: 2\r\n", "lengths that differ"),
            ("Transfer-Encoding: chunked, gzip\r\n", "a body that does not end chunked"),
        ] {
            let head = format!("POST /a HTTP/1.1\r\nHost: x\r\n{rest}\r\n");
            assert_eq!(refused(&head), Some((Unfit::Malformed(why), "POST /a".into())), "{rest:?}");
        }
        assert_eq!(refused("G{T / HTTP/1.1\r\n"), Some((Unfit::Malformed("a malformed request line"), "- -".into())));
        assert!(matches!(refused("GET /a HTTP/3.9\r\n"), Some((Unfit::Malformed("an unknown version of HTTP"), _))));
    }

    #[test]
    fn what_is_beyond_the_limits_is_refused() {
        let many = "X: y\r\n".repeat(limits::HEADERS + 1);
        let long = "y".repeat(limits::HEAD_BYTES);
        for head in [
            format!("GET / HTTP/1.1\r\n{many}\r\n"),
            format!("GET / HTTP/1.1\r\nX: {long}\r\n\r\n"),
            format!("GET / HTTP/1.1\r\nX: {long}"),
            format!("GET /{long}"),
        ] {
            assert!(matches!(refused(&head), Some((Unfit::TooLarge, _))), "{} bytes", head.len());
        }
    }

    #[test]
    fn what_may_be_served_is_not() {
        for head in [
            "PROPFIND / HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n",
            "CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "\r\nGET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
            "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\nX: \u{fc}\r\n\r\nb",
            "PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n",
        ] {
            assert!(matches!(judge(head.as_bytes()), Judged::Unusual), "{head:?}");
            assert!(matches!(judge(&head.as_bytes()[..head.len() / 3]), Judged::Incomplete), "{head:?}");
        }
    }
}
