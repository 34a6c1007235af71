use std::future::{pending, poll_fn};

use http::{Method, StatusCode, Version};
use tokio::sync::{mpsc, watch};

use super::*;
use crate::{
    drain::DrainOwner,
    http::{
        Body,
        h2::{self, Code, Frame, StreamError},
        head::{RequestHead, ResponseHead},
    },
    testing::run,
};

const IDLE: Duration = Duration::from_secs(300);

fn done(_: &Rc<Watch>) -> Respond {
    Respond::Done
}

#[test]
fn a_task_serves_one_stream_after_the_other() {
    run(async {
        let tasks = Rc::new(StreamTasks::default());
        let free = || tasks.0.borrow().len();
        tasks.answer(IDLE, done);
        tasks.answer(IDLE, done);
        assert_eq!(free(), 0, "both have something to do");
        while free() < 2 {
            tokio::task::yield_now().await;
        }
        for _ in 0..10 {
            tasks.answer(IDLE, done);
            assert_eq!(free(), 1);
            while free() < 2 {
                tokio::task::yield_now().await;
            }
        }
    });
}

#[test]
fn no_more_tasks_are_kept_than_are_likely_to_be_needed() {
    run(async {
        let tasks = Rc::new(StreamTasks::default());
        let watches: Rc<RefCell<Vec<Weak<Watch>>>> = Rc::default();
        for _ in 0..2 * KEPT {
            tasks.answer(IDLE, |watch| {
                watches.borrow_mut().push(Rc::downgrade(watch));
                Respond::Done
            });
        }
        // Those that are not kept take theirs with them.
        let left = || watches.borrow().iter().filter(|watch| watch.strong_count() > 0).count();
        while left() > KEPT {
            tokio::task::yield_now().await;
        }
        assert_eq!((left(), tasks.0.borrow().len()), (KEPT, KEPT));
    });
}

/// A client whose requests are answered by tasks: by their targets.
fn client_of(tasks: &Rc<StreamTasks>, answer: impl Fn(String) -> Answering + 'static) -> h2::Connection {
    let tasks = Rc::clone(tasks);
    let (near, far) = tokio::io::duplex(64 * 1024);
    let drain = DrainOwner::default().handle();
    let on_request = move |request: h2::Request| {
        let h2::Request { head, send, .. } = request;
        let answer = answer(head.target().to_owned());
        tasks.answer(IDLE, |_| Respond::Waiting { answer, sender: send, tunnel: None });
    };
    tokio::task::spawn_local(async move { h2::serve(far, h2::Settings::new(), drain, on_request, |_, _| {}).await });
    let (client, driver) = h2::connect(near, h2::Settings::new());
    tokio::task::spawn_local(driver);
    client
}

fn open(client: &h2::Connection, target: &str) -> (SendStream, RecvStream) {
    let mut head = RequestHead::new(Version::HTTP_2, Method::GET, target);
    head.set_authority("shop:80");
    client.open(&head, true).unwrap()
}

/// What it is answered with.
async fn answered(receive: &mut RecvStream) -> Result<String, StreamError> {
    poll_fn(|cx| receive.poll_response(cx)).await?;
    let mut all = Vec::new();
    while let Some(frame) = poll_fn(|cx| receive.poll_frame(cx)).await.transpose()? {
        if let Frame::Data(data) = frame {
            all.extend_from_slice(&data);
        }
    }
    Ok(String::from_utf8(all).unwrap())
}

fn response(body: String) -> Response {
    Response { head: ResponseHead::new(StatusCode::OK), body: Body::full(body) }
}

#[test]
fn a_stream_that_panics_or_is_given_up_takes_no_other_with_it() {
    run(async {
        let tasks = Rc::new(StreamTasks::default());
        let free = || tasks.0.borrow().len();
        let (begun, mut has_begun) = mpsc::channel(1);
        let client = client_of(&tasks, move |target| {
            let begun = begun.clone();
            Box::pin(async move {
                match target.as_str() {
                    "/panics" => panic!("as it was asked to"),
                    "/hangs" => {
                        begun.send(()).await.unwrap();
                        pending().await
                    }
                    _ => response(target),
                }
            })
        });
        for round in 0..3 {
            let (_send, mut receive) = open(&client, "/well");
            assert_eq!(answered(&mut receive).await.unwrap(), "/well", "round {round}");
            while free() < 1 {
                tokio::task::yield_now().await;
            }
            // By the task that was kept.
            let (_send, mut receive) = open(&client, "/panics");
            assert!(answered(&mut receive).await.is_err());
            assert_eq!(free(), 0, "it is gone");
            let (mut send, _receive) = open(&client, "/hangs");
            has_begun.recv().await.unwrap();
            send.reset(Code::CANCEL);
            while free() < 1 {
                tokio::task::yield_now().await;
            }
        }
    });
}

#[test]
fn more_streams_at_once_than_tasks_are_kept_have_their_own_answers() {
    run(async {
        let tasks = Rc::new(StreamTasks::default());
        let (go, gone) = watch::channel(0);
        let client = || {
            let gone = gone.clone();
            client_of(&tasks, move |target| {
                let mut gone = gone.clone();
                Box::pin(async move {
                    let round = target.as_bytes()[1] - b'0';
                    gone.wait_for(|gone| *gone > round).await.unwrap();
                    response(target)
                })
            })
        };
        let clients = [client(), client(), client()];
        for round in 0..3 {
            let mut streams = Vec::new();
            for (number, client) in (0..3 * KEPT).zip(clients.iter().cycle()) {
                let target = format!("/{round}/{number}");
                streams.push((open(client, &target), target));
            }
            go.send(round + 1).unwrap();
            for ((_send, receive), target) in &mut streams {
                assert_eq!(answered(receive).await.unwrap(), *target);
            }
            while tasks.0.borrow().len() < KEPT {
                tokio::task::yield_now().await;
            }
        }
    });
}
