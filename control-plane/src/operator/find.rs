//! Asks proxies for requests that they keep: those that are connected, so many at a time, and none for longer than an answer
//! may take.

use std::sync::Arc;

use leno_proto::v1::{
    CarriedRequest, FindRequestsRequest, FindRequestsResponse, FoundRequest, Question, RequestsToFind,
};
use prost::Message as _;
use tokio::{sync::Semaphore, task::JoinSet};
use tonic::Status;

use crate::serve::{limits, tracker::Tracker};

/// Proxies asked at a time; others ask, too ([`limits::QUESTIONS`]).
const AT_A_TIME: usize = limits::QUESTIONS / 2;

pub(super) async fn find(tracker: &Arc<Tracker>, request: FindRequestsRequest) -> Result<FindRequestsResponse, Status> {
    let wanted = request.find.ok_or_else(|| Status::invalid_argument("which requests?"))?;
    if !matches!(wanted.id.len(), 0 | 16) {
        return Err(Status::invalid_argument("an id has 16 bytes"));
    }
    let mut proxies: Vec<String> = tracker.proxies().into_iter().filter(|p| p.connected).map(|p| p.name).collect();
    proxies.dedup();
    if !request.proxy.is_empty() {
        proxies.retain(|name| *name == request.proxy);
        if proxies.is_empty() {
            return Err(super::not_connected(&request.proxy));
        }
    }
    let not_asked = proxies.len().saturating_sub(limits::PROXIES_ASKED);
    proxies.truncate(limits::PROXIES_ASKED);
    let mut found =
        FindRequestsResponse { asked: count(proxies.len()), not_asked: count(not_asked), ..Default::default() };
    let mut room = limits::FOUND_BYTES;
    let mut answers = ask(tracker, proxies, &wanted);
    while let Some(answer) = answers.join_next().await {
        let Ok((proxy, answer)) = answer else { continue };
        let Some(requests) = answer else {
            found.silent.push(proxy);
            continue;
        };
        for request in requests {
            let Some(left) = room.checked_sub(request.encoded_len()) else { break };
            room = left;
            found.requests.push(FoundRequest { proxy: proxy.clone(), request: Some(request) });
        }
    }
    found.silent.sort();
    found.requests.sort_by_key(|found| found.request.as_ref().map(|request| request.began_us));
    Ok(found)
}

/// What each proxy keeps of it; None: it did not answer.
type Answers = JoinSet<(String, Option<Vec<CarriedRequest>>)>;

fn ask(tracker: &Arc<Tracker>, proxies: Vec<String>, wanted: &RequestsToFind) -> Answers {
    let places = Arc::new(Semaphore::new(AT_A_TIME));
    let mut answers = JoinSet::new();
    for proxy in proxies {
        let (tracker, places, find) = (Arc::clone(tracker), Arc::clone(&places), wanted.clone());
        answers.spawn(async move {
            // Nobody closes it.
            let _place = places.acquire().await;
            let question = Question { find: Some(find), ..Question::default() };
            let tell = |proxy: &str| tracker.tell_of_questions(proxy);
            let answer = tracker.questions.ask(&proxy, question, limits::FIND_ANSWER, tell).await;
            // An older proxy takes it for another question, and says that it makes no sense.
            let answer = answer.ok().filter(|answer| answer.error.is_empty());
            (proxy, answer.map(|answer| answer.requests))
        });
    }
    answers
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_is_not_connected_is_not_asked() {
        let tracker = Arc::new(Tracker::default());
        let all = FindRequestsRequest { find: Some(RequestsToFind::default()), ..Default::default() };
        assert_eq!(find(&tracker, all.clone()).await.unwrap(), FindRequestsResponse::default());
        let one = FindRequestsRequest { proxy: "a/b".into(), ..all.clone() };
        assert_eq!(find(&tracker, one).await.unwrap_err().code(), tonic::Code::NotFound);
        let find_id =
            |id| FindRequestsRequest { find: Some(RequestsToFind { id, ..Default::default() }), ..Default::default() };
        assert!(find(&tracker, find_id(vec![1; 15])).await.is_err());
        assert!(find(&tracker, FindRequestsRequest::default()).await.is_err());
    }
}
