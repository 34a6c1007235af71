//! Asks proxies for requests that they keep: those that are connected, so many at a time, and none for longer than an answer
//! may take.

use std::{collections::BTreeSet, sync::Arc};

use leno_proto::v1::{
    CarriedRequest, FindRequestsRequest, FindRequestsResponse, FoundRequest, Question, RequestsToFind,
};
use prost::Message as _;
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, timeout_at},
};
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
    let mut silent: BTreeSet<String> = proxies.iter().cloned().collect();
    let mut answers = ask(tracker, proxies, &wanted);
    let until = Instant::now() + limits::FIND;
    while let Ok(Some(answer)) = timeout_at(until, answers.join_next()).await {
        if let Ok((proxy, Some(kept))) = answer {
            take(&mut found, &mut room, &proxy, kept);
            silent.remove(&proxy);
        }
    }
    found.silent = silent.into_iter().collect();
    found.requests.sort_by_key(|found| found.request.as_ref().map(|request| request.began_us));
    Ok(found)
}

/// Adds what one proxy keeps, as far as there is `room` for it, in bytes.
fn take(found: &mut FindRequestsResponse, room: &mut usize, proxy: &str, (kept, mut left_out): KeptByOne) {
    for request in kept {
        match room.checked_sub(request.encoded_len()) {
            Some(left) => {
                *room = left;
                found.requests.push(FoundRequest { proxy: proxy.to_owned(), request: Some(request) });
            }
            None => left_out = left_out.saturating_add(1),
        }
    }
    found.left_out = found.left_out.saturating_add(left_out);
}

/// What a proxy keeps of it, and how many more, for which its answer had no room.
type KeptByOne = (Vec<CarriedRequest>, u32);

/// None: it did not answer.
type Answers = JoinSet<(String, Option<KeptByOne>)>;

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
            (proxy, answer.map(|answer| (answer.requests, answer.requests_left_out)))
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

    #[test]
    fn what_there_is_no_room_for_is_counted() {
        let request = |n: u8| CarriedRequest { id: vec![n; 16], path: "x".repeat(100), ..Default::default() };
        let (mut found, mut room) = (FindRequestsResponse::default(), 2 * request(1).encoded_len() + 1);
        take(&mut found, &mut room, "a/b", (vec![request(1)], 0));
        take(&mut found, &mut room, "a/c", (vec![request(2), request(3)], 4));
        assert_eq!((found.requests.len(), found.left_out), (2, 5));
    }

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
