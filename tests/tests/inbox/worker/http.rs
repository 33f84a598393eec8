//! Messages posted to a real HTTP server.

use std::fs;
use std::time::Duration;

use postbox_tests::{wait_until, wait_until_async};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{Desk, PATIENCE};
use crate::http::{DONE, Server};

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_decides() {
    let desk = Desk::open(", max_retries => 1, backoff_initial => '1 millisecond', backoff_max => '2 milliseconds'");
    let server = Server::start(None, |post| {
        let again = post.headers["postbox-attempt"] != "1";
        match post.headers["postbox-event-id"].as_str() {
            "busy" if !again => "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n",
            "down" if !again => "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n",
            "wrong" => "HTTP/1.1 422 Unprocessable\r\nContent-Length: 10\r\n\r\nno such ad",
            "moved" => "HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n",
            _ => DONE,
        }
    })
    .await;
    desk.psql(
        "INSERT INTO box (event_id, event_type, payload, headers) VALUES
             ('a \"é\"', 'order.paid', '{\"n\": 1.10}', '{\"traceparent\": \"00-1-2-01\", \"secret\": \"x\"}');
         INSERT INTO box (event_id) VALUES ('busy'), ('down'), ('wrong'), ('moved')",
    );
    fs::write(desk.path("headers"), "Authorization: Bearer token\n").expect("a file");
    let url = format!("http://127.0.0.1:{}/in?x=1", server.port);
    let worker = desk.work(&["--http", &url, "--header", "@{dir}/headers", "--header", "X-Shop: 7"]);
    wait_until("one message waits for two seconds, the others are done", PATIENCE, || {
        let left = "SELECT string_agg(b.event_ids::text, ' '), bool_and(b.ready_at > b.last_failed_at + interval '1.9 seconds') FROM postbox.inbox_batch b";
        (desk.psql(left) == "{busy}|t").then_some(())
    });
    desk.wait_until_empty();
    assert_eq!(worker.terminate(), Some(0));

    let [post] = &server.posts("a %22%C3%A9%22")[..] else { panic!("one post") };
    assert_eq!(post.line, "POST /in?x=1 HTTP/1.1");
    for (name, value) in [
        ("content-type", "application/json"),
        ("postbox-inbox", "box"),
        ("postbox-event-type", "order.paid"),
        ("postbox-attempt", "1"),
        ("traceparent", "00-1-2-01"),
        ("authorization", "Bearer token"),
        ("x-shop", "7"),
    ] {
        assert_eq!(post.headers.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(!post.headers.contains_key("secret") && post.body.contains("\"payload\":{\"n\": 1.10}"), "{post:?}");
    assert_eq!((server.posts("busy").len(), server.posts("down").len()), (2, 2));
    assert_eq!(
        desk.dead("event_id, attempts, error"),
        "moved|2|the server answered 301 Moved Permanently\nwrong|2|the server answered 422 Unprocessable Entity: no such ad"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_trusted_by_its_certificate_only() {
    let desk = Desk::open(", backoff_initial => '1 millisecond', backoff_max => '2 milliseconds', max_retries => 1000");
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
    let provider = tokio_rustls::rustls::crypto::ring::default_provider();
    let config = ServerConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .expect("a key that fits");
    let server = Server::start(Some(config), |_| DONE).await;
    desk.receive(&["a"]);
    fs::write(desk.path("root.crt"), cert.pem()).expect("a file");
    let other = generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    fs::write(desk.path("other.crt"), other.cert.pem()).expect("a file");
    let url = |host: &str| format!("https://{host}:{}/", server.port);
    for (file, host) in [("other.crt", "localhost"), ("root.crt", "127.0.0.1")] {
        let mut command = desk.postbox(&["inbox", "work", "box", "--http", &url(host)]);
        let mut process = command.env("SSL_CERT_FILE", desk.path(file)).spawn().expect("postbox starts");
        let failures = async || {
            let text = desk.psql("SELECT error FROM postbox.inbox_batch");
            text.contains("certificate").then_some(())
        };
        wait_until_async("a certificate that is refused", Duration::from_secs(30), failures).await;
        desk.psql("UPDATE postbox.inbox_batch SET error = NULL");
        process.kill().expect("a process");
        process.wait().expect("its end");
        desk.psql("UPDATE postbox.inbox_batch SET lease_until = now() WHERE token IS NOT NULL");
    }
    assert!(server.posts("a").is_empty());
    let mut command = desk.postbox(&["inbox", "work", "box", "--http", &url("localhost"), "--exit-when-idle", "1s"]);
    let status = tokio::task::spawn_blocking({
        let file = desk.path("root.crt");
        move || command.env("SSL_CERT_FILE", file).status()
    });
    assert_eq!(status.await.expect("a thread").expect("postbox runs").code(), Some(0));
    assert_eq!(server.posts("a").len(), 1);
}
