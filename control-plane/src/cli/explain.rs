//! `leno explain`

use leno_proto::v1::{Decision, ExplainRequest, Explanation, Header, RequestToExplain};
use serde_json::{Value, json};

use super::{
    State, block_on,
    print::{Style, clean},
};

/// Port of a URL that names none.
const DEFAULT_PORT: u16 = 80;

/// Show what a workload's proxy would do with a request, and which object decided it
///
/// The proxy itself answers, by the policy that is in force there and by what it knows of its endpoints at this moment;
/// nothing is sent to them. Rules that were looked at and passed over are shown with the first thing that does not fit.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  leno explain client http://shop.default/cart\n  leno explain shop/client \
                        http://cart.shop:8080/items -X POST -H 'x-version: two' -o json\n\nExit codes: 0 explained; 1 the proxy is \
                        not connected, or cannot tell; 2 the command line is wrong.")]
pub(super) struct Args {
    /// The client: WORKLOAD or NAMESPACE/WORKLOAD, as `leno get proxies` names it
    workload: String,
    /// What it calls: http://SERVICE.NAMESPACE[:PORT]/PATH?QUERY, or an address instead of the name
    url: String,
    /// The request's method
    #[arg(short = 'X', long = "request", value_name = "METHOD", env = "LENO_REQUEST", default_value = "GET")]
    method: String,
    /// A header of the request, may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", env = "LENO_HEADER")]
    headers: Vec<String>,
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
    let request = match request(&args.url, &args.method, &args.headers) {
        Ok(request) => request,
        Err(wrong) => return super::usage(&wrong),
    };
    let workload = &args.workload;
    let proxy = if workload.contains('/') {
        workload.clone()
    } else {
        format!("{}/{workload}", args.state.namespace(args.namespace.as_deref()))
    };
    let explanation = block_on(async {
        let asked = ExplainRequest { proxy: proxy.clone(), request: Some(request.clone()) };
        args.state.connect().await?.explain(asked).await
    })?;
    match args.output {
        Output::Json => outln!("{:#}", as_json(&explanation)),
        Output::Text => out!("{}", text(&proxy, &request, &explanation, Style::of_stdout())),
    }
    if !explanation.error.is_empty() {
        eprintln!("leno: {}", clean(&explanation.error));
        return Ok(super::FAILURE);
    }
    Ok(super::SUCCESS)
}

/// The request that a URL stands for.
fn request(url: &str, method: &str, headers: &[String]) -> Result<RequestToExplain, String> {
    let wrong = || format!("{url:?} is not like http://shop.default:80/path");
    let uri: tonic::transport::Uri =
        if url.contains("://") { url.parse() } else { format!("http://{url}").parse() }.map_err(|_| wrong())?;
    if uri.scheme_str() != Some("http") {
        return Err(format!("{url:?}: the application speaks plain HTTP to its proxy, write http://"));
    }
    let authority = uri.authority().ok_or_else(wrong)?;
    let header = |text: &String| {
        let (name, value) = text.split_once(':').ok_or_else(|| format!("{text:?} is not a header (NAME: VALUE)"))?;
        Ok(Header { name: name.trim().to_ascii_lowercase(), value: value.trim().to_owned() })
    };
    let port = uri.port_u16().unwrap_or(DEFAULT_PORT);
    Ok(RequestToExplain {
        destination: format!("{}:{port}", uri.host().ok_or_else(wrong)?),
        method: method.to_owned(),
        target: uri.path_and_query().map_or("/", |target| target.as_str()).to_owned(),
        authority: authority.to_string(),
        headers: headers.iter().map(header).collect::<Result<_, String>>()?,
    })
}

fn as_json(explanation: &Explanation) -> Value {
    let decision = |decision: &Decision| {
        json!({
            "subject": decision.subject,
            "text": decision.text,
            "applies": decision.applies,
            "origin": decision.origin,
            "generation": decision.generation,
        })
    };
    json!({ "decisions": explanation.decisions.iter().map(decision).collect::<Vec<_>>(), "error": explanation.error })
}

fn text(proxy: &str, request: &RequestToExplain, explanation: &Explanation, style: Style) -> String {
    let title = format!("{} {} to {}, by proxy {proxy}", request.method, request.target, request.destination);
    let mut text = format!("{}\n", style.bold(&clean(&title)));
    let widest = explanation.decisions.iter().map(|decision| decision.subject.len()).max().unwrap_or_default();
    for decision in &explanation.decisions {
        let sign = if decision.applies { style.green("✓") } else { style.yellow("·") };
        let origin = match (decision.origin.as_str(), decision.generation) {
            ("", _) => String::new(),
            (origin, 0) => format!("  [{origin}]"),
            (origin, generation) => format!("  [{origin}, generation {generation}]"),
        };
        let line = format!("{:widest$}  {}{origin}", decision.subject, decision.text);
        text += &format!("  {sign} {}\n", clean(&line));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_request() {
        let asked = request("http://shop.default/cart?x=1", "POST", &["X-Version: two".to_owned()]).unwrap();
        assert_eq!((asked.destination.as_str(), asked.target.as_str()), ("shop.default:80", "/cart?x=1"));
        assert_eq!(asked.headers, [Header { name: "x-version".into(), value: "two".into() }]);
        assert_eq!(request("10.0.0.1:8080", "GET", &[]).unwrap().destination, "10.0.0.1:8080");
        assert_eq!(request("http://[fd00::1]:80/", "GET", &[]).unwrap().destination, "[fd00::1]:80");
        for (url, header) in [("https://shop/", ""), ("http://", ""), ("a b", ""), ("http://shop/", "nothing")] {
            let headers: Vec<String> =
                Some(header.to_owned()).filter(|header| !header.is_empty()).into_iter().collect();
            assert!(request(url, "GET", &headers).is_err(), "{url} {header}");
        }
    }
}
