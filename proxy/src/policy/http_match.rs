//! What a rule asks of a request: path, headers, query, method, gRPC. Compiled once, read without allocating
//! (a regular expression over an escaped query value, or over a header sent several times, does allocate).

use std::sync::Arc;

use http::{HeaderName, Method, header};
use leno_proto::pattern::Pattern;

use crate::http::{head::RequestHead, headers::is_grpc};

/// All parts must hold.
#[derive(Debug, Default)]
pub struct HttpMatch {
    pub path: PathMatch,
    pub headers: Box<[HeaderMatch]>,
    pub query: Box<[QueryMatch]>,
    pub method: Option<Method>,
    /// Only gRPC (`content-type: application/grpc`, with or without a `+` suffix or parameters).
    pub grpc: bool,
}

#[derive(Debug, Default)]
pub enum PathMatch {
    #[default]
    Any,
    Exact(Box<str>),
    /// Whole segments. Without the slash at its end; never empty (that is `Any`).
    Prefix(Box<str>),
    /// The whole path.
    Regex(Arc<Pattern>),
}

#[derive(Debug)]
pub struct HeaderMatch {
    pub name: HeaderName,
    pub value: ValueMatch,
}

#[derive(Debug)]
pub struct QueryMatch {
    pub name: Box<str>,
    pub value: ValueMatch,
}

#[derive(Debug)]
pub enum ValueMatch {
    Exact(Box<[u8]>),
    /// The whole value.
    Regex(Arc<Pattern>),
}

impl HttpMatch {
    /// The length of the path's prefix that the match holds for (see [`super::Matched`]); None: it does not hold.
    pub fn holds(&self, request: &RequestHead) -> Option<usize> {
        if self.method.as_ref().is_some_and(|method| *method != request.method) {
            return None;
        }
        let prefix_len = self.path.holds(request.path())?;
        let all = (!self.grpc || is_grpc(&request.fields))
            && self.headers.iter().all(|wanted| wanted.holds(request))
            && (self.query.is_empty() || {
                let query = request.query().unwrap_or_default().as_bytes();
                self.query.iter().all(|wanted| wanted.holds(query))
            });
        all.then_some(prefix_len)
    }
}

impl HttpMatch {
    /// As [`Self::holds`]; the first part that does not hold is told in words.
    pub(crate) fn fits(&self, request: &RequestHead) -> Result<(), String> {
        if self.holds(request).is_some() {
            return Ok(());
        }
        if let Some(method) = self.method.as_ref().filter(|method| **method != request.method) {
            return Err(format!("the method is not {method}"));
        }
        if self.path.holds(request.path()).is_none() {
            return Err(match &self.path {
                PathMatch::Any => "the path does not fit".to_owned(),
                PathMatch::Exact(exact) => format!("the path is not {exact}"),
                PathMatch::Prefix(prefix) => format!("the path is not under {prefix}"),
                PathMatch::Regex(regex) => format!("the path does not fit {regex}"),
            });
        }
        if self.grpc && !is_grpc(&request.fields) {
            return Err("it is no gRPC request (content-type)".to_owned());
        }
        if let Some(header) = self.headers.iter().find(|wanted| !wanted.holds(request)) {
            return Err(format!("the header {} is not {}", header.name, header.value.text()));
        }
        let query = request.query().unwrap_or_default().as_bytes();
        let parameter = self.query.iter().find(|wanted| !wanted.holds(query));
        Err(parameter.map_or_else(
            || "it does not match".to_owned(),
            |wanted| format!("the query parameter {} is not {}", wanted.name, wanted.value.text()),
        ))
    }
}

impl PathMatch {
    /// A prefix of whole segments: "/v2" and "/v2/" are the same, "/" holds for every path.
    pub fn prefix(prefix: &str) -> Self {
        match prefix.trim_end_matches('/') {
            "" => Self::Any,
            trimmed => Self::Prefix(trimmed.into()),
        }
    }

    fn holds(&self, path: &str) -> Option<usize> {
        match self {
            Self::Any => Some(0),
            Self::Exact(exact) => (**exact == *path).then_some(path.len()),
            Self::Prefix(prefix) => match path.strip_prefix(&**prefix)?.as_bytes().first() {
                None | Some(b'/') => Some(prefix.len()),
                Some(_) => None,
            },
            Self::Regex(regex) => regex.is_match(path.as_bytes()).then_some(path.len()),
        }
    }
}

impl HeaderMatch {
    /// Several values count as one, joined by commas (RFC 9110, 5.3). `host` is the authority.
    fn holds(&self, request: &RequestHead) -> bool {
        if self.name == header::HOST {
            return request.authority().is_some_and(|authority| self.value.holds(authority.as_bytes()));
        }
        let mut values = request.fields.values(self.name.as_str().as_bytes());
        let Some(first) = values.next() else { return false };
        if values.next().is_none() {
            return self.value.holds(first);
        }
        let values: Vec<&[u8]> = request.fields.values(self.name.as_str().as_bytes()).collect();
        self.value.holds(&values.join(&b','))
    }
}

impl QueryMatch {
    /// The first parameter of that name decides. Names and values are compared decoded.
    fn holds(&self, query: &[u8]) -> bool {
        for pair in query.split(|byte| *byte == b'&') {
            let mut parts = pair.splitn(2, |byte| *byte == b'=');
            let name = parts.next().unwrap_or_default();
            if decode(name).eq(self.name.bytes()) {
                return self.value.holds_decoded(parts.next().unwrap_or_default());
            }
        }
        false
    }
}

impl ValueMatch {
    fn text(&self) -> String {
        match self {
            Self::Exact(exact) => format!("{:?}", String::from_utf8_lossy(exact)),
            Self::Regex(regex) => format!("like {regex}"),
        }
    }

    fn holds(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => **exact == *value,
            Self::Regex(regex) => regex.is_match(value),
        }
    }

    fn holds_decoded(&self, raw: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => decode(raw).eq(exact.iter().copied()),
            Self::Regex(regex) if raw.iter().any(|byte| matches!(byte, b'%' | b'+')) => {
                regex.is_match(&decode(raw).collect::<Vec<u8>>())
            }
            Self::Regex(regex) => regex.is_match(raw),
        }
    }
}

/// The bytes of a query name or value: `%xx` and `+` decoded, as forms encode them. What is not a valid
/// escape stands for itself.
fn decode(raw: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let mut rest = raw;
    std::iter::from_fn(move || {
        let (byte, left) = match rest {
            [] => return None,
            [b'%', high, low, left @ ..] => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, left),
                _ => (b'%', rest.get(1..).unwrap_or_default()),
            },
            [b'+', left @ ..] => (b' ', left),
            [byte, left @ ..] => (*byte, left),
        };
        rest = left;
        Some(byte)
    })
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use leno_proto::pattern::whole;

    use super::*;

    fn request(method: &str, uri: &str, fields: &[(&str, &str)]) -> RequestHead {
        let uri: http::Uri = uri.parse().unwrap();
        let target = uri.path_and_query().map_or("", |target| target.as_str());
        let mut head = RequestHead::new(http::Version::HTTP_11, method.parse().unwrap(), target);
        head.set_authority(uri.authority().map_or("a", |authority| authority.as_str()));
        head.fields = fields.iter().copied().collect();
        head
    }

    #[test]
    fn prefixes_are_whole_segments() {
        let v2 = PathMatch::prefix("/v2/");
        assert_eq!(v2.holds("/v2"), Some(3));
        assert_eq!(v2.holds("/v2/"), Some(3));
        assert_eq!(v2.holds("/v2/x"), Some(3));
        assert_eq!(v2.holds("/v2x"), None);
        assert_eq!(v2.holds("/v"), None);
        assert_eq!(PathMatch::prefix("/").holds("/any"), Some(0));
        assert_eq!(PathMatch::prefix("/").holds("*"), Some(0), "OPTIONS *");
        assert_eq!(PathMatch::prefix("/").holds(""), Some(0), "CONNECT");
    }

    #[test]
    fn regex_is_over_the_whole_path() {
        let regex = PathMatch::Regex(whole("/a|/b[0-9]+").unwrap().into());
        assert!(regex.holds("/a").is_some());
        assert!(regex.holds("/b12").is_some());
        assert!(regex.holds("/ab").is_none());
        assert!(regex.holds("/b12/").is_none());
    }

    #[test]
    fn headers_joined_and_host_from_the_authority() {
        let wanted = |name: &str, value: &str| HeaderMatch {
            name: name.parse().unwrap(),
            value: ValueMatch::Exact(value.as_bytes().into()),
        };
        let parts = request("GET", "http://shop.example:80/", &[("x-a", "1"), ("x-a", "2"), ("x-b", "3")]);
        assert!(wanted("x-a", "1,2").holds(&parts));
        assert!(!wanted("x-a", "1").holds(&parts));
        assert!(wanted("x-b", "3").holds(&parts));
        assert!(!wanted("x-c", "").holds(&parts));
        assert!(wanted("host", "shop.example:80").holds(&parts));
        let regex =
            HeaderMatch { name: "x-a".parse().unwrap(), value: ValueMatch::Regex(whole("1.2").unwrap().into()) };
        assert!(regex.holds(&parts));
    }

    #[test]
    fn query_first_value_decoded() {
        let wanted = |name: &str, value: &str| QueryMatch {
            name: name.into(),
            value: ValueMatch::Exact(value.as_bytes().into()),
        };
        let query = b"a=1&a=2&b%20c=x%2By&d=p+q&e&f=%zz&g=%4";
        assert!(wanted("a", "1").holds(query));
        assert!(!wanted("a", "2").holds(query));
        assert!(wanted("b c", "x+y").holds(query));
        assert!(wanted("d", "p q").holds(query));
        assert!(wanted("e", "").holds(query));
        assert!(wanted("f", "%zz").holds(query));
        assert!(wanted("g", "%4").holds(query));
        assert!(!wanted("A", "1").holds(query));
        let regex = QueryMatch { name: "d".into(), value: ValueMatch::Regex(whole("p q").unwrap().into()) };
        assert!(regex.holds(query));
    }
}
