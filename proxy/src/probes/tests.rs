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

#[test]
fn statuses_are_judged_as_a_kubelet_does() {
    crate::testing::run(async {
        for (line, well) in
            [("200 OK", true), ("204 No Content", true), ("399 ?", true), ("400 Bad", false), ("503 No", false)]
        {
            let (port, seen) = server(vec![status(line)]).await;
            let said = ask::ask(&question(&format!(r#""httpGet":{{"path":"/h?a=b","port":{port}}}"#)), &caller()).await;
            assert_eq!(said.is_ok(), well, "{line}: {said:?}");
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
        assert_eq!(said, Err("the application answered 500 Internal Server Error".to_owned()));
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
        assert_eq!(ask::ask(&question, &caller()).await, Ok(()));
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
        assert_eq!(ask::ask(&question, &caller()).await, Ok(()));
    });
}

#[test]
fn who_asks_the_same_at_the_same_time_gets_the_same_answer() {
    crate::testing::run(async {
        let (port, seen) = server(vec![status("200 OK")]).await;
        let probes = crate::config::args::parse(
            [
                "--control-plane=a:1".to_owned(),
                "--trust-bundle=/b".to_owned(),
                format!(r#"--probes=[{{"path":"/p","httpGet":{{"port":{port}}}}}]"#),
            ]
            .map(Into::into)
            .into(),
        );
        let asker = Rc::new(Asker { probes: probes.unwrap().probes, mark: None, asking: RefCell::default() });
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
