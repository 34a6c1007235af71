//! The order of a request's parts: what a proxy sent comes before what the next received, and what a workload called to serve a
//! request comes below it. Spans say so where proxies export them; else what can be told from who it was, and when. Clocks of
//! different hosts may differ, so time decides only between parts that fit equally well.

use std::collections::HashSet;

use leno_proto::v1::CarriedRequest;

/// One proxy's part in a request, and how many others led to it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Part {
    pub(super) depth: usize,
    pub(super) proxy: String,
    pub(super) request: CarriedRequest,
}

pub(super) fn in_order(parts: impl IntoIterator<Item = (String, CarriedRequest)>) -> Vec<Part> {
    let mut parts: Vec<(String, CarriedRequest)> = parts.into_iter().collect();
    parts.sort_by_key(|(_, request)| (request.began_us, request.inbound));
    let parents: Vec<Option<usize>> = (0..parts.len()).map(|index| parent(&parts, index)).collect();
    let mut order = Vec::new();
    let mut seen = HashSet::new();
    let roots = (0..parts.len()).filter(|index| parents.get(*index).is_some_and(Option::is_none));
    // What is left belongs to a circle, which only clocks that differ can make: it begins with its earliest.
    for root in roots.chain(0..parts.len()) {
        descend(root, 0, &parents, &mut seen, &mut order);
    }
    let part = |(index, depth): (usize, usize)| {
        let (proxy, request) = parts.get(index)?.clone();
        Some(Part { depth, proxy, request })
    };
    order.into_iter().filter_map(part).collect()
}

fn descend(
    index: usize,
    depth: usize,
    parents: &[Option<usize>],
    seen: &mut HashSet<usize>,
    order: &mut Vec<(usize, usize)>,
) {
    if !seen.insert(index) {
        return;
    }
    order.push((index, depth));
    let children = parents.iter().enumerate().filter(|(_, parent)| **parent == Some(index)).map(|(child, _)| child);
    for child in children.collect::<Vec<_>>() {
        descend(child, depth + 1, parents, seen, order);
    }
}

/// The part that led to this one.
fn parent(parts: &[(String, CarriedRequest)], index: usize) -> Option<usize> {
    let (proxy, request) = parts.get(index)?;
    let others = || parts.iter().enumerate().filter(|(other, _)| *other != index);
    if !request.parent.is_empty()
        && let Some((found, _)) = others().find(|(_, (_, other))| other.span == request.parent)
    {
        return Some(found);
    }
    let fits = |(other_proxy, other): &(String, CarriedRequest)| {
        if request.inbound {
            // Without spans of proxies, both have the application's for a parent.
            !other.inbound && other.parent == request.parent
        } else {
            let end = other.began_us.saturating_add_unsigned(other.duration_us);
            other.inbound && other_proxy == proxy && (other.began_us..=end).contains(&request.began_us)
        }
    };
    let workload = proxy.rsplit('/').next().unwrap_or(proxy);
    let rank = |(_, (_, other)): &(usize, &(String, CarriedRequest))| {
        let names_it = request.inbound && names(other, workload);
        (names_it, other.began_us <= request.began_us, other.began_us)
    };
    others().filter(|(_, part)| fits(part)).max_by_key(rank).map(|(found, _)| found)
}

/// Whether a decision names the workload as the endpoint: "10.0.0.1:80 (shop-0)".
fn names(request: &CarriedRequest, workload: &str) -> bool {
    let named = format!("({workload})");
    request.decisions.iter().any(|decision| decision.text.contains(&named))
}

#[cfg(test)]
mod tests {
    use leno_proto::v1::Decision;

    use super::*;

    fn part(proxy: &str, inbound: bool, began_us: i64, duration_us: u64) -> (String, CarriedRequest) {
        (proxy.to_owned(), CarriedRequest { inbound, began_us, duration_us, ..CarriedRequest::default() })
    }

    fn shown(parts: Vec<(String, CarriedRequest)>) -> Vec<String> {
        let show = |part: Part| {
            format!("{}{} {}", "-".repeat(part.depth), part.proxy, if part.request.inbound { "in" } else { "out" })
        };
        in_order(parts).into_iter().map(show).collect()
    }

    #[test]
    fn each_hop_follows_what_led_to_it() {
        let parts = vec![
            part("a/db", true, 40, 10),
            part("a/shop", true, 20, 60),
            part("a/shop", false, 30, 40),
            part("a/client", false, 10, 80),
        ];
        assert_eq!(shown(parts), ["a/client out", "-a/shop in", "--a/shop out", "---a/db in"]);
    }

    #[test]
    fn clocks_may_differ() {
        let parts = vec![part("a/shop", true, 5, 60), part("a/client", false, 10, 80)];
        assert_eq!(shown(parts), ["a/client out", "-a/shop in"]);
    }

    #[test]
    fn each_of_two_calls_goes_with_the_server_that_it_names() {
        let naming = |began, workload: &str| {
            let (proxy, mut request) = part("a/client", false, began, 5);
            request.decisions.push(Decision { text: format!("10.0.0.1:80 ({workload})"), ..Decision::default() });
            (proxy, request)
        };
        let parts = vec![naming(1, "one"), naming(2, "two"), part("a/two", true, 3, 1), part("a/one", true, 4, 1)];
        assert_eq!(shown(parts), ["a/client out", "-a/one in", "a/client out", "-a/two in"]);
    }

    #[test]
    fn spans_go_before_time() {
        let (proxy, mut sent) = part("a/client", false, 10, 80);
        sent.span = vec![1; 8];
        let (_, mut other) = part("a/client", false, 20, 80);
        other.span = vec![2; 8];
        let (server, mut received) = part("a/shop", true, 30, 5);
        received.parent = vec![1; 8];
        let order = shown(vec![(proxy.clone(), sent), (proxy, other), (server, received)]);
        assert_eq!(order, ["a/client out", "-a/shop in", "a/client out"]);
    }

    #[test]
    fn nothing_is_lost_in_a_circle() {
        let spans = |proxy: &str, span: u8, parent: u8| {
            let (proxy, mut request) = part(proxy, true, 1, 1);
            (request.span, request.parent) = (vec![span; 8], vec![parent; 8]);
            (proxy, request)
        };
        assert_eq!(in_order([spans("a/a", 1, 2), spans("a/b", 2, 1)]).len(), 2);
    }
}
