//! Heads and bodies as hyper has them, for the connections that hyper serves.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version,
    header::{CONNECTION, HOST},
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme as UriScheme},
};
use http_body::{Body as HttpBody, SizeHint};
use hyper::body::Incoming;

use super::{
    Body, Response,
    body::{BodyError, Frame},
    head::{Fields, Name, RequestHead, ResponseHead, Scheme},
};

// ---- from hyper ---------------------------------------------------------------------------------

/// A request's head, and why it must be refused if two readers could understand it differently.
pub(super) fn request_head(parts: &Parts) -> (RequestHead, Option<&'static str>) {
    let target = match parts.uri.path_and_query() {
        _ if parts.method == Method::CONNECT => "",
        Some(target) => target.as_str(),
        None => "/",
    };
    // The absolute form may leave the path out (RFC 9112 3.2.1).
    let rooted = target.starts_with('?').then(|| format!("/{target}"));
    let target = rooted.as_deref().unwrap_or(target);
    let mut head = RequestHead::new(parts.version, parts.method.clone(), target);
    if parts.uri.scheme() == Some(&UriScheme::HTTPS) {
        head.scheme = Scheme::Https;
    }
    for (name, value) in &parts.headers {
        if name != HOST {
            head.fields.push(name.as_str().as_bytes(), value.as_bytes());
        }
    }
    let refused = settle_authority(parts, &mut head).err();
    (head, refused)
}

/// RFC 9112 3.2, RFC 9113 8.3.1: exactly one authority.
fn settle_authority(parts: &Parts, head: &mut RequestHead) -> Result<(), &'static str> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err("several Host fields");
    }
    let host = host.map(|host| host.to_str().ok().filter(|host| !host.is_empty()).ok_or("an invalid Host"));
    let host = host.transpose()?;
    let named = parts.uri.authority().map(Authority::as_str);
    // The authority form is CONNECT's.
    let authority_form = !head.is_http2() && parts.uri.scheme().is_none() && named.is_some();
    if authority_form && head.method != Method::CONNECT {
        return Err("an invalid request target");
    }
    match (host, named) {
        (Some(host), Some(named)) if head.is_http2() && !host.eq_ignore_ascii_case(named) => {
            return Err("Host and :authority differ");
        }
        // The client's own spelling.
        (Some(host), Some(named)) if host.eq_ignore_ascii_case(named) => head.set_authority(host),
        // RFC 9112 3.2.2: the absolute form's authority replaces Host.
        (_, Some(named)) => head.set_authority(named),
        (Some(host), None) => head.set_authority(host),
        (None, None) => {}
    }
    Ok(())
}

pub(crate) fn response_head(parts: &http::response::Parts) -> ResponseHead {
    ResponseHead { status: parts.status, fields: fields(&parts.headers) }
}

pub(crate) fn informational_head(status: http::StatusCode, headers: &HeaderMap) -> ResponseHead {
    ResponseHead { status, fields: fields(headers) }
}

fn fields(headers: &HeaderMap) -> Fields {
    let mut fields = Fields::new();
    for (name, value) in headers {
        fields.push(name.as_str().as_bytes(), value.as_bytes());
    }
    fields
}

/// The next part of a peer's body.
pub(super) fn poll_frame(incoming: &mut Incoming, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
    Pin::new(incoming).poll_frame(cx).map(|polled| {
        polled.map(|read| match read.map_err(BodyError::from)?.into_data() {
            Ok(data) => Ok(Frame::Data(data)),
            Err(frame) => Ok(Frame::Trailers(Box::new(fields(&frame.into_trailers().unwrap_or_default())))),
        })
    })
}

// ---- to hyper -----------------------------------------------------------------------------------

/// The request as HTTP/1.1 wants it. None: its target is none that hyper takes.
pub(crate) fn http1_request(head: &RequestHead, body: Body) -> Result<Request<HyperBody>, Body> {
    let uri = if head.method == Method::CONNECT {
        head.authority().and_then(|authority| authority.parse::<Uri>().ok())
    } else {
        head.target().parse::<PathAndQuery>().ok().map(Uri::from)
    };
    let Some(uri) = uri else { return Err(body) };
    let mut request = request(head, uri, body);
    let headers = request.headers_mut();
    if let Some(host) = head.authority().and_then(|host| HeaderValue::from_str(host).ok()) {
        headers.insert(HOST, host);
    }
    if head.fields.has(Name::Te) {
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    Ok(request)
}

fn request(head: &RequestHead, uri: Uri, body: Body) -> Request<HyperBody> {
    let mut request = Request::new(HyperBody(body));
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = uri;
    *request.headers_mut() = headers(&head.fields);
    request
}

/// The response as hyper's server takes it: it writes the version that the client speaks.
pub(super) fn response(response: Response, client: Version) -> http::Response<HyperBody> {
    let Response { head, body } = response;
    let mut response = http::Response::new(HyperBody(body));
    *response.status_mut() = head.status;
    *response.version_mut() = if client == Version::HTTP_2 { Version::HTTP_2 } else { Version::HTTP_11 };
    *response.headers_mut() = headers(&head.fields);
    response
}

fn headers(fields: &Fields) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(fields.len());
    for (name, value) in fields.iter() {
        // What came in by a parser, or from policy, is fit to go out.
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    headers
}

/// A body as hyper asks for it.
#[derive(Debug, Default)]
pub(crate) struct HyperBody(pub(crate) Body);

impl HttpBody for HyperBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, BodyError>>> {
        self.0.poll_frame(cx).map(|polled| {
            polled.map(|frame| match frame? {
                Frame::Data(data) => Ok(http_body::Frame::data(data)),
                Frame::Trailers(trailers) => Ok(http_body::Frame::trailers(headers(&trailers))),
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.exact_length().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority(version: Version, target: &str, hosts: &[&str]) -> Result<Option<String>, &'static str> {
        let mut request = Request::builder().version(version).uri(target);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let (head, refused) = request_head(&request.body(()).unwrap().into_parts().0);
        refused.map_or_else(|| Ok(head.authority().map(str::to_owned)), Err)
    }

    #[test]
    fn one_authority_or_none() {
        let (v1, v2) = (Version::HTTP_11, Version::HTTP_2);
        let some = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(authority(v1, "/", &["a:80"]), some("a:80"));
        assert_eq!(authority(v1, "http://b/", &["a"]), some("b"));
        assert_eq!(authority(v2, "http://b/", &[]), some("b"));
        assert_eq!(authority(v2, "http://b/", &["B"]), some("B"));
        assert_eq!(authority(Version::HTTP_10, "/", &[]), Ok(None));
        for (version, target, hosts) in
            [(v1, "/", &["a", "b"][..]), (v1, "/", &[""]), (v2, "http://b/", &["a"]), (v1, "b:80", &["b:80"])]
        {
            assert!(authority(version, target, hosts).is_err(), "{version:?} {target} {hosts:?}");
        }
    }

    #[test]
    fn heads_go_through_hyper_unchanged() {
        let mut head = RequestHead::new(Version::HTTP_11, Method::GET, "/x?y");
        head.set_authority("a:80");
        head.fields = Fields::from_iter([("x-a", "1"), ("x-a", "2")]);
        let request = http1_request(&head, Body::empty()).unwrap();
        assert_eq!(request.uri().to_string(), "/x?y");
        assert_eq!(request.headers()[HOST], "a:80");
        assert_eq!(request_head(&request.into_parts().0), (head, None));

        let mut connect = RequestHead::new(Version::HTTP_11, Method::CONNECT, "");
        connect.set_authority("db:5432");
        let request = http1_request(&connect, Body::empty()).unwrap();
        assert_eq!(request.uri().to_string(), "db:5432");
    }
}
