//! What proxies did with a request: the parts that they keep of it, joined in the order of its way.

use std::time::{Duration, UNIX_EPOCH};

use leno_proto::v1::{CarriedRequest, FindRequestsRequest, FindRequestsResponse, FoundRequest, Header, RequestsToFind};
use serde_json::{Value, json};

use super::{Args, Output, decision_json, line, widest};
use crate::{
    authority::issue,
    cli::{
        FAILURE, SUCCESS, block_on,
        print::{Style, clean},
        replicas::Found,
    },
};

mod hops;

/// Requests looked at to find the latest that has a header.
const CANDIDATES: u32 = 16;

/// Which request is asked for.
#[derive(Debug, PartialEq)]
pub(super) enum Wanted {
    Id(Vec<u8>),
    LastFailed {
        proxy: String,
    },
    /// A connection that was not let in.
    LastRefused {
        proxy: String,
    },
    /// `proxy`: empty for any.
    Header {
        proxy: String,
        header: Header,
    },
}

impl Wanted {
    /// `proxy`: the workload's, if one was named.
    pub(super) fn of(args: &Args, proxy: Option<&str>) -> Result<Self, String> {
        if let Some(text) = &args.trace {
            let id = id(text).ok_or_else(|| format!("{text:?} is neither an id of 32 hex digits nor a traceparent"))?;
            return Ok(Self::Id(id));
        }
        if args.last_failed {
            let proxy = proxy.ok_or("--last-failed needs the workload whose request it was")?.to_owned();
            return Ok(Self::LastFailed { proxy });
        }
        if args.last_refused {
            let proxy = proxy.ok_or("--last-refused needs the workload that was connected to")?.to_owned();
            return Ok(Self::LastRefused { proxy });
        }
        match args.headers.as_slice() {
            [] => {
                Err("explain what? A WORKLOAD and a URL, or --trace, --last-failed, --last-refused, --header"
                    .to_owned())
            }
            [header] => {
                let at = header.find([':', '=']).ok_or_else(|| format!("{header:?} is not a header (NAME=VALUE)"))?;
                let (name, value) = header.split_at(at);
                let value = value.get(1..).unwrap_or_default().trim().to_owned();
                let header = Header { name: name.trim().to_ascii_lowercase(), value };
                Ok(Self::Header { proxy: proxy.unwrap_or_default().to_owned(), header })
            }
            _ => Err("one --header, by which the request is to be found".to_owned()),
        }
    }

    /// What is asked to learn the request's id; None: it is known.
    fn first_question(&self) -> Option<FindRequestsRequest> {
        let (proxy, find) = match self {
            Self::Id(_) => return None,
            Self::LastFailed { proxy } => (proxy, RequestsToFind { failed: true, most: 1, ..Default::default() }),
            Self::LastRefused { proxy } => (proxy, RequestsToFind { connection: true, most: 1, ..Default::default() }),
            Self::Header { proxy, header } => {
                (proxy, RequestsToFind { header: Some(header.clone()), most: CANDIDATES, ..Default::default() })
            }
        };
        Some(FindRequestsRequest { proxy: proxy.clone(), find: Some(find) })
    }

    fn nothing(&self) -> String {
        match self {
            Self::Id(id) => format!("no connected proxy keeps a request {}", hex(id)),
            Self::LastFailed { proxy } => format!("proxy {proxy} keeps no request that failed"),
            Self::LastRefused { proxy } => format!("proxy {proxy} keeps no connection that was not let in"),
            Self::Header { header, .. } => format!(
                "no proxy keeps a request with {}: {} (does a RoutePolicy's `explain.headers` name it, or --explain-headers of the control plane?)",
                header.name, header.value
            ),
        }
    }
}

pub(super) fn run(args: &Args, wanted: &Wanted) -> anyhow::Result<u8> {
    let (found, others) = block_on(async {
        let client = args.state.connect().await?;
        let mut others = 0;
        let id = match (wanted, wanted.first_question()) {
            (Wanted::Id(id), _) => id.clone(),
            (_, None) => Vec::new(),
            (_, Some(question)) => {
                let connection = question.find.as_ref().is_some_and(|find| find.connection);
                let mut found = client.find_requests(question).await?;
                // An older proxy knows of no connections, and answers with any request.
                found.all.requests.retain(|found| found.request.as_ref().is_some_and(|r| !connection || r.connection));
                let Some(latest) = found.all.requests.iter().rev().find_map(|found| found.request.as_ref()) else {
                    return Ok((found, 0));
                };
                let mut ids: Vec<_> =
                    found.all.requests.iter().flat_map(|found| &found.request).map(|r| &r.id).collect();
                ids.sort();
                ids.dedup();
                others = ids.len() - 1;
                latest.id.clone()
            }
        };
        let find = Some(RequestsToFind { id, ..Default::default() });
        let asked = FindRequestsRequest { proxy: String::new(), find };
        Ok((client.find_requests(asked).await?, others))
    })?;
    let Found { all: FindRequestsResponse { requests, silent, not_asked, left_out, .. }, failures } = found;
    let parts =
        hops::in_order(requests.into_iter().filter_map(|FoundRequest { proxy, request }| Some((proxy, request?))));
    match args.output {
        Output::Json => {
            let parts = parts.iter().map(|part| as_json(part.depth, &part.proxy, &part.request));
            let parts = parts.collect::<Vec<_>>();
            outln!(
                "{:#}",
                json!({
                    "requests": parts,
                    "silent": silent,
                    "not_asked": not_asked,
                    "left_out": left_out,
                    "failures": failures,
                })
            );
        }
        Output::Text => {
            for part in &parts {
                out!("{}", text(part.depth, &part.proxy, &part.request, Style::of_stdout()));
            }
        }
    }
    if !silent.is_empty() {
        eprintln!("leno: no answer from {}: their part may be missing", clean(&silent.join(", ")));
    }
    if not_asked > 0 {
        eprintln!("leno: {not_asked} more proxies were not asked");
    }
    if left_out > 0 {
        eprintln!("leno: {left_out} more parts fit, for which there was no room");
    }
    for failure in &failures {
        eprintln!(
            "leno: no answer from a replica of the control plane, whose proxies' parts are missing: {}",
            clean(failure)
        );
    }
    if others > 0 {
        eprintln!("leno: the latest; {others} more fit");
    }
    if parts.is_empty() {
        eprintln!("leno: {}", clean(&wanted.nothing()));
        return Ok(FAILURE);
    }
    Ok(SUCCESS)
}

/// Of a trace id, or of a traceparent ("00-<32 digits>-<16 digits>-<2 digits>").
fn id(text: &str) -> Option<Vec<u8>> {
    let digits = match text.split('-').collect::<Vec<_>>().as_slice() {
        [digits] => *digits,
        [_, digits, _, ..] => *digits,
        _ => return None,
    };
    if digits.len() != 32 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(digits, 16).ok().filter(|id| *id != 0).map(|id| id.to_be_bytes().to_vec())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn as_json(depth: usize, proxy: &str, request: &CarriedRequest) -> Value {
    let decisions = request.decisions.iter().map(|decision| {
        let mut value = decision_json(decision);
        value["after_ms"] = json!(decision.after_us as f64 / 1e3);
        value
    });
    let known = |text: &str| if text.is_empty() { Value::Null } else { json!(text) };
    json!({
        "proxy": proxy,
        "direction": direction(request),
        "depth": depth,
        "id": hex(&request.id),
        "traced": request.traced,
        "span": known(&hex(&request.span)),
        "parent": known(&hex(&request.parent)),
        "began_us": request.began_us,
        "duration_ms": request.duration_us as f64 / 1e3,
        "method": known(&request.method),
        "path": known(&request.path),
        "authority": known(&request.authority),
        "status": if request.status == 0 { Value::Null } else { json!(request.status) },
        "grpc_status": request.grpc_status,
        "reason": known(&request.reason),
        "peer": known(&request.peer),
        "failed": request.failed,
        "kept_because": request.kept_because,
        "connection": request.connection,
        "headers": request.headers.iter().map(|h| json!({"name": h.name, "value": h.value})).collect::<Vec<_>>(),
        "decisions": decisions.collect::<Vec<_>>(),
        "left_out": request.left_out,
    })
}

fn direction(request: &CarriedRequest) -> &'static str {
    if request.inbound { "inbound" } else { "outbound" }
}

fn text(depth: usize, proxy: &str, request: &CarriedRequest, style: Style) -> String {
    let indent = "  ".repeat(depth);
    let began = UNIX_EPOCH + Duration::from_micros(request.began_us.try_into().unwrap_or_default());
    let what = match (request.method.as_str(), request.path.as_str()) {
        _ if request.connection => "a connection".to_owned(),
        ("", _) => "a request (its path is not known any more)".to_owned(),
        (method, path) => format!("{method} {path} of {}", request.authority),
    };
    let title = format!("{proxy}, {}: {what}", direction(request));
    let mut text = format!("{indent}{}\n", style.bold(&clean(&title)));
    let result = clean(&format!("{}, {:.1} ms", result(request), request.duration_us as f64 / 1e3));
    let result = if request.failed || request.connection { style.red(&result) } else { style.green(&result) };
    let kind = if request.traced { "trace" } else { "request" };
    let kept = format!("{}; {kind} {}; kept: {}", issue::display(began), hex(&request.id), request.kept_because);
    text += &format!("{indent}  {result}; {}\n", clean(&kept));
    if !request.peer.is_empty() {
        text += &format!("{indent}  with {}\n", clean(&request.peer));
    }
    for Header { name, value } in &request.headers {
        text += &format!("{indent}  {}\n", clean(&format!("{name}: {value}")));
    }
    for decision in &request.decisions {
        let when = format!("{:>9.1} ms  ", decision.after_us as f64 / 1e3);
        text += &format!("{indent}  {}\n", line(decision, widest(&request.decisions), &when, style));
    }
    if request.left_out > 0 {
        text += &format!("{indent}  and {} more, for which there was no room\n", request.left_out);
    }
    text
}

/// "503, leno-reason circuit-open"
fn result(request: &CarriedRequest) -> String {
    if request.connection {
        return format!("not let in ({})", request.reason);
    }
    let mut text = if request.status == 0 { "no answer".to_owned() } else { request.status.to_string() };
    if let Some(code) = request.grpc_status {
        text += &format!(", grpc-status {code}");
    }
    if !request.reason.is_empty() {
        text += &format!(", leno-reason {}", request.reason);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_of_traces_or_traceparents() {
        let digits = "4bf92f3577b34da6a3ce929d0e0e4736";
        let traceparent = format!("00-{digits}-00f067aa0ba902b7-01");
        assert_eq!(id(digits).map(|id| hex(&id)).as_deref(), Some(digits));
        assert_eq!(id(&traceparent), id(digits));
        for wrong in ["", "4bf92f", "00-4bf92f", &"0".repeat(32), &"é".repeat(16), &format!("{digits}-")] {
            assert_eq!(id(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_part_is_shown_with_how_it_ended() {
        let request = CarriedRequest {
            id: vec![0xab; 16],
            method: "GET".into(),
            path: "/cart\x1b[31m".into(),
            authority: "shop.default".into(),
            status: 503,
            reason: "circuit-open".into(),
            failed: true,
            kept_because: "failed".into(),
            decisions: vec![leno_proto::v1::Decision {
                subject: "rule".into(),
                text: "matches".into(),
                applies: true,
                origin: "HTTPRoute default/shop, rule 0".into(),
                generation: 3,
                after_us: 1500,
                ..leno_proto::v1::Decision::default()
            }],
            ..CarriedRequest::default()
        };
        let shown = text(1, "default/client", &request, Style::plain());
        for part in [
            "  default/client, outbound: GET /cart\\u{1b}[31m of shop.default\n",
            "503, leno-reason circuit-open, 0.0 ms",
            "kept: failed",
            "    ✓       1.5 ms  rule  matches  [HTTPRoute default/shop, rule 0, generation 3]\n",
        ] {
            assert!(shown.contains(part), "{part:?}\n{shown}");
        }
        assert_eq!(as_json(1, "a/b", &request)["grpc_status"], Value::Null);
    }
}
