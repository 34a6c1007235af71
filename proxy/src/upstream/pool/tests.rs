use std::{cell::RefCell, rc::Rc, time::Duration};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::{
    config::limits,
    upstream::{Outcome, testing::*},
};

async fn exchange(upstreams: &crate::upstream::Upstreams, server: &Server) -> (bool, Reply) {
    let pick = upstreams.plain(server.address);
    let connection = pick.http(Carry::Http1).await.unwrap();
    (connection.reused, get(connection).await.unwrap())
}

#[tokio::test]
async fn a_connection_is_used_again() {
    on_worker(async {
        let server = Server::start(|_, _| OK).await;
        let upstreams = upstreams();
        for request in 0..5 {
            let (reused, response) = exchange(&upstreams, &server).await;
            assert_eq!(reused, request > 0);
            assert_eq!(read(response).await, "ok");
        }
        assert_eq!(server.accepted.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_connection_comes_back_only_when_its_response_was_read() {
    on_worker(async {
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
        let partial = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nok";
        let server =
            Server::start(move |number, _| if number == 0 { Act::Answer(partial) } else { Act::Answer(chunked) }).await;
        let upstreams = upstreams();
        let (_, unfinished) = exchange(&upstreams, &server).await;
        let (reused, response) = exchange(&upstreams, &server).await;
        assert!(!reused, "the first is still in use");
        assert_eq!(read(response).await, "ok");
        drop(unfinished);
        server.until(|server| server.closed.get() == 1).await;
        let (reused, response) = exchange(&upstreams, &server).await;
        assert!(reused, "the second is idle");
        read(response).await;
        assert_eq!((server.accepted.get(), server.closed.get()), (2, 1));
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_closes_is_not_kept() {
    on_worker(async {
        let closing = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";
        let server = Server::start(move |_, _| Act::AnswerAndClose(closing)).await;
        let upstreams = upstreams();
        for _ in 0..3 {
            let (reused, response) = exchange(&upstreams, &server).await;
            assert!(!reused);
            read(response).await;
        }
        assert_eq!(server.accepted.get(), 3);
    })
    .await;
}

#[tokio::test]
async fn idle_connections_that_the_peer_closed_fail_no_request() {
    on_worker(async {
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        let server = Server::start(move |_, _| Act::AnswerAndClose(answer)).await;
        let upstreams = upstreams();
        for round in 1..=20 {
            let (_, response) = exchange(&upstreams, &server).await;
            assert_eq!(read(response).await, "ok");
            // The end of the connection may reach us now or with the next request.
            server.until(|server| server.closed.get() == round).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_request_that_may_have_been_processed_is_not_sent_again() {
    on_worker(async {
        let server = Server::start(|_, request| if request == 0 { OK } else { Act::Close }).await;
        let upstreams = upstreams();
        read(exchange(&upstreams, &server).await.1).await;
        let connection = upstreams.plain(server.address).http(Carry::Http1).await.unwrap();
        let error = get(connection).await.unwrap_err();
        assert!(!error.not_processed && error.body.is_none(), "{error:?}");
        assert!(error.reused, "for the caller to decide");
        assert_eq!(server.accepted.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_connection_without_a_request_goes_back() {
    on_worker(async {
        let server = Server::start(|_, _| OK).await;
        let upstreams = upstreams();
        drop(upstreams.plain(server.address).http(Carry::Http1).await.unwrap());
        server.until(|server| server.accepted.get() == 1).await;
        let (reused, response) = exchange(&upstreams, &server).await;
        assert!(reused);
        read(response).await;
        assert_eq!(server.accepted.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn connections_go_when_their_endpoint_does() {
    on_worker(async {
        let server = Server::start(|_, _| OK).await;
        let (upstreams, backend) = (upstreams(), backend(&[server.address]));
        let pick = upstreams.pick(&backend, &[], |_| None).await.unwrap();
        let response = get(pick.http(Carry::Http1).await.unwrap()).await.unwrap();
        read(response).await;
        backend.publish(set(&[nobody().await]));
        drop(upstreams.pick(&backend, &[], |_| None).await.unwrap());
        server.until(|server| server.closed.get() == 1).await;

        let late = pick.http(Carry::Http1).await.unwrap();
        read(get(late).await.unwrap()).await;
        server.until(|server| server.closed.get() == 2).await;
    })
    .await;
}

#[tokio::test]
async fn idle_connections_are_swept() {
    on_worker(async {
        let server = Server::start(|_, _| OK).await;
        let upstreams = upstreams();
        read(exchange(&upstreams, &server).await.1).await;
        let pool = Rc::clone(&upstreams.plain(server.address).local.pool);
        assert_eq!(pool.len(), 1);
        pool.sweep(Instant::now() + limits::POOL_IDLE - Duration::from_millis(100));
        assert_eq!(pool.len(), 1);
        pool.sweep(Instant::now() + limits::POOL_IDLE);
        assert_eq!(pool.len(), 0);
        server.until(|server| server.closed.get() == 1).await;
    })
    .await;
}

#[tokio::test]
async fn upgrades_pass() {
    on_worker(async {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        tokio::task::spawn_local(async move {
            let (mut stream, _) = server.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut head).await.unwrap();
            }
            let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nfirst";
            stream.write_all(answer.as_bytes()).await.unwrap();
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.unwrap();
        });
        let upstreams = upstreams();
        let pick = upstreams.plain(address);
        let mut head = RequestHead::new(http::Version::HTTP_11, http::Method::GET, "/");
        head.set_authority("cart");
        head.fields = [("connection", "upgrade"), ("upgrade", "echo")].into_iter().collect();
        let connection = pick.http(Carry::Alone).await.unwrap();
        let reply = connection.send(&head, Body::empty(), Extras::default()).await.unwrap();
        assert_eq!(reply.head.status, 101);
        let Some(Upgraded::Hyper(upgraded)) = reply.upgraded else { panic!("no upgrade") };
        let upgraded = upgraded.await.unwrap();
        let mut io = hyper_util::rt::TokioIo::new(upgraded);
        io.write_all(b"second").await.unwrap();
        let mut echoed = [0; 11];
        io.read_exact(&mut echoed).await.unwrap();
        assert_eq!(&echoed, b"firstsecond");
        assert_eq!(pick.local.pool.len(), 0);
    })
    .await;
}

type Results = Rc<RefCell<Vec<Result<(), SendError>>>>;

/// Requests over HTTP/2, all at once; each keeps its stream until it was answered.
fn http2_requests(upstreams: &Rc<crate::upstream::Upstreams>, server: &Http2Server, count: usize) -> Results {
    let results = Results::default();
    for _ in 0..count {
        let (upstreams, results, address) = (Rc::clone(upstreams), Rc::clone(&results), server.address);
        tokio::task::spawn_local(async move {
            let pick = upstreams.plain(address);
            let result = get(pick.http(Carry::Http2).await.unwrap()).await;
            let result = match result {
                Ok(reply) => {
                    read(reply).await;
                    Ok(())
                }
                Err(error) => Err(error),
            };
            results.borrow_mut().push(result);
        });
    }
    results
}

async fn until_ended(results: &Results, count: usize) {
    while results.borrow().len() < count {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn requests_share_an_http2_connection_and_wait_for_its_handshake() {
    on_worker(async {
        let server = Http2Server::start(1000).await;
        let upstreams = Rc::new(upstreams());
        let results = http2_requests(&upstreams, &server, limits::STREAMS_BEFORE_NEXT);
        server.until_open(limits::STREAMS_BEFORE_NEXT).await;
        assert_eq!(server.accepted.get(), 1);
        server.answer();
        until_ended(&results, limits::STREAMS_BEFORE_NEXT).await;
        assert!(results.borrow().iter().all(Result::is_ok));
    })
    .await;
}

#[tokio::test]
async fn many_streams_open_more_connections() {
    on_worker(async {
        let server = Http2Server::start(1000).await;
        let upstreams = Rc::new(upstreams());
        let count = limits::STREAMS_BEFORE_NEXT * 3;
        let results = http2_requests(&upstreams, &server, count);
        server.until_open(count).await;
        let accepted = server.accepted.get();
        assert!((2..=4).contains(&accepted), "{accepted} connections");
        server.answer();
        until_ended(&results, count).await;
        assert!(results.borrow().iter().all(Result::is_ok));
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_takes_few_streams_gets_more_connections() {
    on_worker(async {
        let server = Http2Server::start(10).await;
        let upstreams = Rc::new(upstreams());
        let first = http2_requests(&upstreams, &server, 1);
        server.until_open(1).await;
        server.answer();
        until_ended(&first, 1).await;
        let results = http2_requests(&upstreams, &server, 30);
        server.until_open(30).await;
        assert!(server.accepted.get() >= 3);
        server.answer();
        until_ended(&results, 30).await;
        assert!(results.borrow().iter().all(Result::is_ok), "{:?}", results.borrow());
    })
    .await;
}

#[tokio::test]
async fn a_server_that_takes_no_streams_is_not_flooded_with_connections() {
    on_worker(async {
        let server = Http2Server::start(0).await;
        let upstreams = upstreams();
        for _ in 0..30 {
            if let Ok(connection) = upstreams.plain(server.address).http(Carry::Http2).await {
                assert!(get(connection).await.is_err());
            }
        }
        assert!(server.accepted.get() <= 4, "{} connections", server.accepted.get());
    })
    .await;
}

#[tokio::test]
async fn connections_without_streams_are_passed_over() {
    on_worker(async {
        let server = Http2Server::start_each(|number| if number == 0 { 0 } else { 1000 }).await;
        let upstreams = Rc::new(upstreams());
        let first = upstreams.plain(server.address).http(Carry::Http2).await.unwrap();
        assert!(get(first).await.is_err());
        for _ in 0..3 {
            let results = http2_requests(&upstreams, &server, 20);
            server.until_open(20).await;
            server.answer();
            until_ended(&results, 20).await;
            assert!(results.borrow().iter().all(Result::is_ok), "{:?}", results.borrow());
        }
        assert_eq!(server.accepted.get(), 2);
    })
    .await;
}

/// As one that sheds load does.
#[tokio::test]
async fn a_server_that_takes_streams_on_old_connections_alone_is_asked_for_few_new_ones() {
    on_worker(async {
        let server = Http2Server::start_each(|number| if number == 0 { 1000 } else { 0 }).await;
        let upstreams = Rc::new(upstreams());
        let many = limits::STREAMS_BEFORE_NEXT;
        let held = http2_requests(&upstreams, &server, many);
        server.until_open(many).await;
        // Some are refused where they are sent before it is known that nothing is taken there.
        let mut answered = 0;
        for _ in 0..30 {
            let connection = upstreams.plain(server.address).http(Carry::Http2).await.unwrap();
            let open = server.streams.borrow().len();
            let answer = get(connection);
            tokio::pin!(answer);
            tokio::select! {
                refused = &mut answer => assert!(refused.is_err()),
                () = server.until_open(open + 1) => answered += 1,
            }
        }
        assert!(answered >= 25, "{answered} of 30 were taken");
        assert!(server.accepted.get() <= 4, "{} connections", server.accepted.get());
        assert!(held.borrow().is_empty());
    })
    .await;
}

#[tokio::test]
async fn goaway_finishes_what_is_open_and_fails_nothing_new() {
    on_worker(async {
        let server = Http2Server::start(1000).await;
        let upstreams = Rc::new(upstreams());
        let first = http2_requests(&upstreams, &server, 3);
        server.until_open(3).await;
        server.shut_down_first();
        // Before, while and after GOAWAY arrives.
        let mut later = Vec::new();
        for _ in 0..50 {
            later.push(http2_requests(&upstreams, &server, 1));
            tokio::task::yield_now().await;
        }
        server.until_open(53).await;
        assert_eq!(server.accepted.get(), 2);
        server.answer();
        until_ended(&first, 3).await;
        assert!(first.borrow().iter().all(Result::is_ok), "{:?}", first.borrow());
        for results in later {
            until_ended(&results, 1).await;
            assert!(results.borrow().iter().all(Result::is_ok), "{:?}", results.borrow());
        }
    })
    .await;
}

#[tokio::test]
async fn refused_streams_were_not_processed_and_others_may_have_been() {
    on_worker(async {
        let server = Http2Server::start(1000).await;
        let upstreams = Rc::new(upstreams());
        for (reason, not_processed) in [
            (h2::Reason::REFUSED_STREAM, true),
            (h2::Reason::INTERNAL_ERROR, false),
            (h2::Reason::CANCEL, false),
            (h2::Reason::NO_ERROR, false),
        ] {
            let results = http2_requests(&upstreams, &server, 1);
            server.until_open(1).await;
            for (_, mut respond) in server.streams.take() {
                respond.send_reset(reason);
            }
            until_ended(&results, 1).await;
            let results = results.take();
            let error = results[0].as_ref().unwrap_err();
            assert_eq!(error.not_processed, not_processed, "{reason:?}: {error:?}");
            assert!(error.body.is_none());
        }
    })
    .await;
}

#[tokio::test]
async fn streams_above_goaway_were_not_processed() {
    on_worker(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::task::spawn_local(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            // SETTINGS; then, after the requests (streams 1 and 3) have come, GOAWAY with last stream 1, and the end.
            stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
            let mut seen = Vec::new();
            let headers_of = |seen: &[u8], id: u8| seen.windows(6).any(|w| w[0] == 1 && w[2..] == [0, 0, 0, id]);
            while !(headers_of(&seen, 1) && headers_of(&seen, 3)) {
                assert!(stream.read_buf(&mut seen).await.unwrap() > 0);
            }
            stream.write_all(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]).await.unwrap();
        });
        let upstreams = upstreams();
        let (one, three) = (upstreams.plain(address), upstreams.plain(address));
        let (one, three) = (one.http(Carry::Http2).await.unwrap(), three.http(Carry::Http2).await.unwrap());
        let (one, three) = tokio::join!(get(one), get(three));
        let (one, three) = (one.unwrap_err(), three.unwrap_err());
        assert!(!one.not_processed, "{one:?}");
        assert!(three.not_processed, "{three:?}");
    })
    .await;
}

#[tokio::test]
async fn waiting_requests_learn_that_the_handshake_failed() {
    on_worker(async {
        let (upstreams, backend) = (Rc::new(upstreams()), backend(&[nobody().await]));
        let failed: Vec<_> = (0..20)
            .map(|_| {
                let (upstreams, backend) = (Rc::clone(&upstreams), Arc::clone(&backend));
                tokio::task::spawn_local(async move {
                    let pick = upstreams.pick(&backend, &[], |_| None).await.unwrap();
                    pick.http(Carry::Http2).await.err().unwrap().reason()
                })
            })
            .collect();
        for failed in failed {
            assert_eq!(failed.await.unwrap().as_str(), "connect");
        }
    })
    .await;
}

#[tokio::test]
async fn leaving_early_resets_the_stream_and_gives_its_place_back() {
    on_worker(async {
        let server = Http2Server::start(1000).await;
        let upstreams = Rc::new(upstreams());
        let pick = upstreams.plain(server.address);
        {
            let connection = pick.http(Carry::Http2).await.unwrap();
            let sent = get(connection);
            tokio::pin!(sent);
            tokio::select! {
                _ = &mut sent => unreachable!(),
                () = server.until_open(1) => {}
            }
        }
        let (_, mut respond) = server.streams.borrow_mut().pop().unwrap();
        let reset = poll_fn(|cx| respond.poll_reset(cx)).await.unwrap();
        assert_eq!(reset, h2::Reason::CANCEL);
        pick.report(Outcome::Neutral, Instant::now());
        drop(pick);
        let results = http2_requests(&upstreams, &server, 1);
        server.until_open(1).await;
        server.answer();
        until_ended(&results, 1).await;
        assert_eq!(server.accepted.get(), 1, "the connection goes on");
    })
    .await;
}
