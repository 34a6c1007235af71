//! What endpoints' own proxies would do with a request that a client's proxy would send them: asked of a few, since they serve
//! by the same policy, unless it is their own.

use std::sync::Arc;

use leno_proto::v1::{Decision, RequestToExplain, ServerExplanation};

use crate::serve::{limits, tracker::Tracker};

/// Servers that are asked; there is one for each backend, at least as long as there are no more backends.
const SERVERS: usize = 4;

pub(super) async fn ask(
    tracker: &Arc<Tracker>,
    client: &str,
    request: &RequestToExplain,
    decisions: &[Decision],
) -> Vec<ServerExplanation> {
    let proxies = tracker.proxies();
    let connected = |name: &str| proxies.iter().find(|proxy| proxy.connected && proxy.name == name);
    let identity = connected(client).map(|proxy| proxy.identity.clone()).unwrap_or_default();
    let mut explanations = Vec::new();
    for (workload, port) in servers(decisions, |name| connected(name).is_some()) {
        let request = as_it_comes_in(request, port, &identity);
        let answer = super::ask(tracker, workload, request, limits::FIND_ANSWER).await;
        let (decisions, error) = match answer {
            Ok(answer) => (answer.decisions, answer.error),
            Err(_) => (Vec::new(), "it did not answer".to_owned()),
        };
        explanations.push(ServerExplanation { proxy: workload.to_owned(), decisions, error });
    }
    explanations
}

/// The request as a server's proxy is asked of it. Without a destination: a proxy that knows no questions of what comes in would
/// answer for what goes out, and has to say instead that it cannot.
fn as_it_comes_in(request: &RequestToExplain, port: u32, client: &str) -> RequestToExplain {
    let mut request = request.clone();
    let destination = std::mem::take(&mut request.destination);
    if request.authority.is_empty() {
        request.authority = destination;
    }
    RequestToExplain { inbound_port: port, client: client.to_owned(), ..request }
}

/// The first usable endpoint of each backend, as far as they are connected.
fn servers(decisions: &[Decision], connected: impl Fn(&str) -> bool) -> Vec<(&str, u32)> {
    let mut found: Vec<(&str, u32)> = Vec::new();
    let mut has_one = false;
    for decision in decisions {
        match decision.subject.as_str() {
            "backend" | "destination" => has_one = false,
            "endpoint" if decision.applies && !has_one && connected(&decision.workload) => {
                let server = (decision.workload.as_str(), decision.port);
                has_one = true;
                if !found.contains(&server) {
                    found.push(server);
                }
            }
            _ => {}
        }
    }
    found.truncate(SERVERS);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_asked_of_what_comes_in_alone() {
        let asked = RequestToExplain { destination: "shop:80".into(), target: "/cart".into(), ..Default::default() };
        let inbound = as_it_comes_in(&asked, 8080, "spiffe://a/b");
        assert_eq!((inbound.destination.as_str(), inbound.authority.as_str()), ("", "shop:80"));
        assert_eq!(
            (inbound.target.as_str(), inbound.inbound_port, inbound.client.as_str()),
            ("/cart", 8080, "spiffe://a/b")
        );
        let named = RequestToExplain { authority: "shop.example".into(), ..asked };
        assert_eq!(as_it_comes_in(&named, 8080, "").authority, "shop.example");
    }

    #[test]
    fn one_endpoint_of_each_backend_is_asked() {
        let decision = |subject: &str, workload: &str, applies| Decision {
            subject: subject.into(),
            workload: workload.into(),
            port: 80,
            applies,
            ..Decision::default()
        };
        let decisions = [
            decision("backend", "", true),
            decision("endpoint", "a/drained", false),
            decision("endpoint", "a/gone", true),
            decision("endpoint", "a/one", true),
            decision("endpoint", "a/two", true),
            decision("backend", "", true),
            decision("endpoint", "a/three", true),
        ];
        assert_eq!(servers(&decisions, |name| name != "a/gone"), [("a/one", 80), ("a/three", 80)]);
    }
}
