use std::{cell::Cell, net::IpAddr};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::*;
use crate::config::probes::Question;

const LOCALHOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn question(json: &str) -> Question {
    let probe: Probe = serde_json::from_str(&format!(r#"{{"path":"/p",{json}}}"#)).unwrap();
    probe.question
}

fn caller() -> ask::Caller {
    ask::Caller { ip: LOCALHOST, mark: None, agent: None }
}

/// A server that gives each connection the next of these answers, and tells of the requests.
async fn server(answers: Vec<String>) -> (u16, Rc<RefCell<Vec<String>>>) {
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Rc::new(RefCell::new(Vec::new()));
    let heard = Rc::clone(&seen);
    tokio::task::spawn_local(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let head = head(&mut stream).await;
            heard.borrow_mut().push(head);
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (port, seen)
}

async fn head(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") && stream.read_buf(&mut bytes).await.unwrap() > 0 {}
    String::from_utf8(bytes).unwrap()
}

fn status(line: &str) -> String {
    format!("HTTP/1.1 {line}\r\ncontent-length: 0\r\n\r\n")
}

/// Asks at `path` of the application's `port`.
async fn asked_at(path: &str, port: u16) -> String {
    let asker = asker(&format!(r#"[{{"path":"{path}","httpGet":{{"path":"/h?a=b","port":{port}}}}}]"#));
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let limits = Limits { what: "test", connection: limits::PROBE_TIMEOUT, silence: limits::PROBE_SILENCE };
    tokio::task::spawn_local(small_server::serve(listener, limits, async move |request: Request<Incoming>, local| {
        asker.ask(0, local, request.headers()).await
    }));
    let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    crate::testing::talk(address, request.as_bytes()).await
}

fn asker(probes: &str) -> Rc<Asker> {
    let probes = format!("--probes={probes}");
    let arguments = ["--control-plane=a:1", "--trust-bundle=/b", probes.as_str()];
    let config = crate::config::args::parse(arguments.map(Into::into).into()).unwrap();
    Rc::new(Asker { probes: config.probes, mark: None, asking: RefCell::default() })
}

#[test]
fn a_hook_fails_only_where_nobody_answers() {
    crate::testing::run(async {
        for line in ["200 OK", "204 No Content", "302 Found", "404 Not Found", "500 Internal Server Error"] {
            let (port, _) = server(vec![status(line)]).await;
            let answer = asked_at("/hook/n0nce/cart/preStop", port).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {line}\r\n")), "{answer}");
        }
        // A kubelet takes 503 for done; a connection that is closed without an answer is a failure to it.
        let (port, _) = server(vec![String::new()]).await;
        assert_eq!(asked_at("/hook/n0nce/cart/preStop", port).await, "");
        let nobody = TcpListener::bind((LOCALHOST, 0)).await.unwrap().local_addr().unwrap().port();
        assert_eq!(asked_at("/hook/n0nce/cart/postStart", nobody).await, "");
        let probed = asked_at("/probe/cart/liveness", nobody).await;
        assert!(probed.starts_with("HTTP/1.1 503 "), "{probed}");
    });
}

#[test]
fn statuses_are_judged_as_a_kubelet_does() {
    crate::testing::run(async {
        for (line, well) in
            [("200 OK", true), ("204 No Content", true), ("399 ?", true), ("400 Bad", false), ("503 No", false)]
        {
            let (port, seen) = server(vec![status(line)]).await;
            let said = asked_at("/probe/cart/liveness", port).await;
            assert_eq!(said.starts_with("HTTP/1.1 200 "), well, "{line}: {said}");
            let seen = seen.borrow();
            assert!(seen[0].starts_with("GET /h?a=b HTTP/1.1\r\n"), "{seen:?}");
            assert!(seen[0].contains(&format!("host: 127.0.0.1:{port}\r\n")), "{seen:?}");
        }
    });
}

#[test]
fn redirects_are_followed_to_their_end() {
    crate::testing::run(async {
        let to = |location: &str| format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
        let (port, seen) = server(vec![to("/second"), status("500 Oh")]).await;
        let said = ask::ask(&question(&format!(r#""httpGet":{{"path":"/first","port":{port}}}"#)), &caller()).await;
        assert_eq!(said, Ok(StatusCode::INTERNAL_SERVER_ERROR));
        assert!(seen.borrow()[1].starts_with("GET /second "));
        let (port, _) = server(vec![to("/again"); limits::PROBE_REDIRECTS + 1]).await;
        let said = ask::ask(&question(&format!(r#""httpGet":{{"port":{port}}}"#)), &caller()).await;
        assert!(said.unwrap_err().contains("redirects"));
    });
}

#[test]
fn a_port_is_well_if_somebody_listens() {
    crate::testing::run(async {
        let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let question = question(&format!(r#""tcpSocket":{{"port":{port}}}"#));
        assert_eq!(ask::ask(&question, &caller()).await, Ok(StatusCode::OK));
        drop(listener);
        assert!(ask::ask(&question, &caller()).await.unwrap_err().contains("cannot connect"));
    });
}

#[test]
fn a_certificate_that_nobody_vouches_for_is_taken() {
    crate::testing::run(async {
        let made = rcgen::generate_simple_self_signed(["nobody.example".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::task::spawn_local(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = acceptor.accept(stream).await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.unwrap() > 0 {}
            stream.write_all(status("200 OK").as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
        });
        let question = question(&format!(r#""httpGet":{{"port":{port},"scheme":"HTTPS"}}"#));
        assert_eq!(ask::ask(&question, &caller()).await, Ok(StatusCode::OK));
    });
}

#[test]
fn who_asks_the_same_at_the_same_time_gets_the_same_answer() {
    crate::testing::run(async {
        let (port, seen) = server(vec![status("200 OK")]).await;
        let asker = asker(&format!(r#"[{{"path":"/p","httpGet":{{"port":{port}}}}}]"#));
        let (local, headers) = (SocketAddr::new(LOCALHOST, 1), HeaderMap::new());
        let (one, other) = tokio::join!(asker.ask(0, local, &headers), asker.ask(0, local, &headers));
        assert_eq!((one.status(), other.status()), (StatusCode::OK, StatusCode::OK));
        assert_eq!(seen.borrow().len(), 1);
        assert!(asker.asking.borrow().is_empty());
    });
}

#[test]
fn metrics_are_made_once_for_all_who_ask_within_a_second() {
    let (metrics, now) = (Metrics::default(), Instant::now());
    let made = Cell::new(0);
    let ask = |at: Instant| {
        metrics.answer(at, || {
            made.set(made.get() + 1);
            "page".to_owned()
        })
    };
    for at in [now, now + limits::METRICS_PACE / 2, now, now + limits::METRICS_PACE] {
        assert_eq!(ask(at).status(), StatusCode::OK);
    }
    assert_eq!(made.get(), 2);
}
