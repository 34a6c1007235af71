//! `leno explain`

use leno_proto::v1::{Decision, ExplainRequest, Explanation, Header, RequestToExplain, ServerExplanation};
use serde_json::{Value, json};

use super::{
    State, block_on,
    print::{Style, clean},
};

mod carried;

/// Ports of URLs that name none.
const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;

/// Show what a workload's proxy would do with a request, or what proxies did with one, and which object decided it
///
/// With a URL, the proxy itself answers, by the policy that is in force there and by what it knows of its endpoints at this
/// moment; nothing is sent to them. Rules that were looked at and passed over are shown with the first thing that does not fit.
///
/// Of requests that were carried, proxies keep for ten minutes what they decided over those that failed, those that are
/// sampled by trace, and those with a header that a RoutePolicy names (explain.headers), or the control plane (--explain-headers).
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  leno explain client http://shop.default/cart\n  leno explain shop/client \
                        http://cart.shop:8080/items -X POST -H 'x-version: two' -o json\n  leno explain client \
                        --last-failed\n  leno explain shop-1 --last-refused\n  leno explain --trace 4bf92f3577b34da6a3ce929d0e0e4736\n  leno explain --header \
                        x-request-id=7f3a\n\nExit codes: 0 explained; 1 the proxy is not connected, or cannot tell, or nobody \
                        keeps such a request; 2 the command line is wrong.")]
pub(super) struct Args {
    /// The client: WORKLOAD or NAMESPACE/WORKLOAD, as `leno get proxies` names it. With --last-failed, --last-refused or --header: whose
    workload: Option<String>,
    /// What it calls: http://SERVICE.NAMESPACE[:PORT]/PATH?QUERY, or an address instead of the name; https, if the application itself
    /// speaks TLS: then its server name decides, and nothing in a request
    url: Option<String>,
    /// A request that was carried: its trace id, traceparent, or the leno-request-id of its answer
    #[arg(long, value_name = "ID", env = "LENO_TRACE", conflicts_with_all = ["workload", "url", "last_failed", "last_refused", "headers"])]
    trace: Option<String>,
    /// The latest request of the workload, or to it, that failed
    #[arg(long, env = "LENO_LAST_FAILED", conflicts_with_all = ["url", "headers"])]
    last_failed: bool,
    /// The latest connection to the workload that was not let in
    #[arg(long, env = "LENO_LAST_REFUSED", conflicts_with_all = ["url", "headers", "last_failed"])]
    last_refused: bool,
    /// The request's method
    #[arg(short = 'X', long = "request", value_name = "METHOD", env = "LENO_REQUEST", default_value = "GET")]
    method: String,
    /// A header of the request, may be repeated. Without a URL: of the request that was carried, once
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", env = "LENO_HEADER")]
    headers: Vec<String>,
    /// With https: the server name in the application's TLS (SNI) [default: the URL's host]
    #[arg(long, value_name = "NAME", env = "LENO_SERVER_NAME", requires = "url")]
    server_name: Option<String>,
    /// The workload's namespace [default: that of the kubeconfig's context, or default]
    #[arg(short, long, env = "LENO_NAMESPACE")]
    namespace: Option<String>,
    /// How to show it
    #[arg(short, long, value_name = "FORMAT", env = "LENO_OUTPUT", default_value = "text")]
    output: Output,
    #[command(flatten)]
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    #[value(alias = "table", alias = "wide")]
    Text,
    Json,
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    let named = |workload: &String| {
        if workload.contains('/') {
            workload.clone()
        } else {
            format!("{}/{workload}", args.state.namespace(args.namespace.as_deref()))
        }
    };
    let proxy = args.workload.as_ref().map(named);
    match (&proxy, &args.url) {
        (Some(proxy), Some(url)) => hypothetical(&args, proxy, url),
        _ => match carried::Wanted::of(&args, proxy.as_deref()) {
            Ok(wanted) => carried::run(&args, &wanted),
            Err(wrong) => super::usage(&wrong),
        },
    }
}

fn hypothetical(args: &Args, proxy: &str, url: &str) -> anyhow::Result<u8> {
    let request = match request(url, args) {
        Ok(request) => request,
        Err(wrong) => return super::usage(&wrong),
    };
    let explanation = block_on(async {
        let asked = ExplainRequest { proxy: proxy.to_owned(), request: Some(request.clone()) };
        args.state.connect().await?.explain(asked).await
    })?;
    match args.output {
        Output::Json => outln!("{:#}", as_json(&explanation)),
        Output::Text => out!("{}", text(proxy, &request, &explanation, Style::of_stdout())),
    }
    if !explanation.error.is_empty() {
        eprintln!("leno: {}", clean(&explanation.error));
        return Ok(super::FAILURE);
    }
    Ok(super::SUCCESS)
}

/// The request that a URL stands for.
fn request(url: &str, args: &Args) -> Result<RequestToExplain, String> {
    let Args { method, headers, server_name, .. } = args;
    let wrong = || format!("{url:?} is not like http://shop.default:80/path");
    let uri: tonic::transport::Uri =
        if url.contains("://") { url.parse() } else { format!("http://{url}").parse() }.map_err(|_| wrong())?;
    let default_port = match uri.scheme_str() {
        Some("http") if server_name.is_none() => HTTP_PORT,
        Some("http") => return Err(format!("{url:?}: plain HTTP has no server name, write https://")),
        Some("https") => HTTPS_PORT,
        _ => return Err(wrong()),
    };
    let authority = uri.authority().ok_or_else(wrong)?;
    let header = |text: &String| {
        let (name, value) = text.split_once(':').ok_or_else(|| format!("{text:?} is not a header (NAME: VALUE)"))?;
        Ok(Header { name: name.trim().to_ascii_lowercase(), value: value.trim().to_owned() })
    };
    let host = uri.host().ok_or_else(wrong)?;
    let after_user = authority.as_str().rsplit('@').next().unwrap_or_default();
    let port = match after_user.strip_prefix(host) {
        Some("" | ":") => default_port,
        // A port beyond what there is would be read as none.
        _ => uri.port_u16().filter(|port| *port > 0).ok_or_else(|| format!("{url:?}: a port is 1 to 65535"))?,
    };
    let named = || server_name.clone().unwrap_or_else(|| host.to_owned());
    Ok(RequestToExplain {
        destination: format!("{host}:{port}"),
        server_name: if default_port == HTTPS_PORT { named() } else { String::new() },
        method: method.clone(),
        target: uri.path_and_query().map_or("/", |target| target.as_str()).to_owned(),
        authority: authority.to_string(),
        headers: headers.iter().map(header).collect::<Result<_, String>>()?,
        ..RequestToExplain::default()
    })
}

fn as_json(explanation: &Explanation) -> Value {
    let decisions = |decisions: &[Decision]| decisions.iter().map(decision_json).collect::<Vec<_>>();
    let server = |server: &ServerExplanation| json!({ "proxy": server.proxy, "decisions": decisions(&server.decisions), "error": server.error });
    json!({
        "generation": explanation.generation,
        "decisions": decisions(&explanation.decisions),
        "error": explanation.error,
        "servers": explanation.servers.iter().map(server).collect::<Vec<_>>(),
    })
}

fn decision_json(decision: &Decision) -> Value {
    json!({
        "subject": decision.subject,
        "text": decision.text,
        "applies": decision.applies,
        "origin": decision.origin,
        "generation": decision.generation,
    })
}

fn text(proxy: &str, request: &RequestToExplain, explanation: &Explanation, style: Style) -> String {
    let what = match request.server_name.as_str() {
        "" => format!("{} {}", request.method, request.target),
        name => format!("TLS for {name}"),
    };
    let (to, generation) = (&request.destination, explanation.generation);
    let title = format!("{what} to {to}, by proxy {proxy} at generation {generation}");
    let mut text = format!("{}\n", style.bold(&clean(&title)));
    for decision in &explanation.decisions {
        text += &format!("  {}\n", line(decision, widest(&explanation.decisions), "", style));
    }
    for ServerExplanation { proxy, decisions, error } in &explanation.servers {
        text += &format!("{}\n", style.bold(&clean(&format!("then, at its server, by proxy {proxy}"))));
        for decision in decisions {
            text += &format!("  {}\n", line(decision, widest(decisions), "", style));
        }
        if !error.is_empty() {
            text += &format!("  {}\n", clean(error));
        }
    }
    text
}

/// Of the decisions' subjects.
fn widest(decisions: &[Decision]) -> usize {
    decisions.iter().map(|decision| decision.subject.len()).max().unwrap_or_default()
}

/// "✓ rule  matches  [HTTPRoute shop/cart, rule 0, generation 1]". `when`: what goes before the subject.
fn line(decision: &Decision, widest: usize, when: &str, style: Style) -> String {
    let sign = if decision.applies { style.green("✓") } else { style.yellow("·") };
    let origin = match (decision.origin.as_str(), decision.generation) {
        ("", _) => String::new(),
        (origin, 0) => format!("  [{origin}]"),
        (origin, generation) => format!("  [{origin}, generation {generation}]"),
    };
    format!("{sign} {when}{}", clean(&format!("{:widest$}  {}{origin}", decision.subject, decision.text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As of `leno explain client`, with these arguments.
    fn asked(url: &str, more: &[&str]) -> Result<RequestToExplain, String> {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        let line = ["explain", "client", url].into_iter().chain(more.iter().copied());
        let Line { args } = clap::Parser::try_parse_from(line).map_err(|error| error.to_string())?;
        request(url, &args)
    }

    #[test]
    fn a_url_is_a_request() {
        let post = asked("http://shop.default/cart?x=1", &["-X", "POST", "-H", "X-Version: two"]).unwrap();
        assert_eq!((post.destination.as_str(), post.target.as_str()), ("shop.default:80", "/cart?x=1"));
        assert_eq!(post.headers, [Header { name: "x-version".into(), value: "two".into() }]);
        assert_eq!(asked("10.0.0.1:8080", &[]).unwrap().destination, "10.0.0.1:8080");
        assert_eq!(asked("http://80:8080/", &[]).unwrap().destination, "80:8080");
        assert_eq!(asked("http://[fd00::1]/", &[]).unwrap().destination, "[fd00::1]:80");
        assert_eq!(asked("http://[fd00::1]:80/", &[]).unwrap().destination, "[fd00::1]:80");
        for (url, more) in [
            ("ftp://shop/", &[] as &[&str]),
            ("http://", &[]),
            ("a b", &[]),
            ("http://shop/", &["-H", "nothing"]),
            ("http://shop/", &["--server-name", "shop"]),
            ("http://shop:99999/", &[]),
            ("http://shop:0/", &[]),
        ] {
            assert!(asked(url, more).is_err(), "{url} {more:?}");
        }
    }

    #[test]
    fn https_is_the_applications_own_tls() {
        let tls = asked("https://shop.default", &[]).unwrap();
        assert_eq!((tls.destination.as_str(), tls.server_name.as_str()), ("shop.default:443", "shop.default"));
        let other = asked("https://10.0.0.1:8443", &["--server-name", "a.example"]).unwrap();
        assert_eq!((other.destination.as_str(), other.server_name.as_str()), ("10.0.0.1:8443", "a.example"));
        assert_eq!(asked("http://shop.default", &[]).unwrap().server_name, "");
    }
}
