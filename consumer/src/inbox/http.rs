//! A POST for each message.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::Value;
use tokio::time::timeout;

use super::work::Outlet;
use super::{Failure, InboxMessage};
use crate::error::{Error, ErrorKind, Result};
use crate::transport::trusted_by_system;

/// How long a connection may take to be made.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// How long the rest of an answer may take that has begun.
const BODY_PATIENCE: Duration = Duration::from_secs(1);

/// So much of an answer is read, and so much of it is kept as the error.
const BODY_BYTES: usize = 64 << 10;
const ERROR_BYTES: usize = 1 << 10;

/// The longest wait that an answer may ask for.
const RETRY_AFTER_MOST: Duration = Duration::from_secs(86_400);

/// What cannot stand in a header as it is.
const ENCODED: &AsciiSet = &CONTROLS.add(b'%').add(b'"');

/// Posts messages to a URL. Processed means: an answer of 2xx.
pub(crate) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    url: Uri,
    headers: HeaderMap,
}

impl Http {
    /// With further headers, as `Name: value`.
    pub(crate) fn new(url: &str, headers: &[String]) -> Result<Self> {
        let wrong = |what: &str| {
            Error::new(ErrorKind::Usage, format!("--http {what}"))
                .with_hint("For instance --http https://shop.example/messages; --header gives credentials.")
        };
        let url: Uri = url.parse().map_err(|_| wrong(&format!("\"{}\" is not a URL", url.escape_debug())))?;
        if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none_or(str::is_empty) {
            return Err(wrong("needs a URL with http or https and a host"));
        }
        if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(wrong("takes no user and password in the URL"));
        }
        let mut all = HeaderMap::new();
        all.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        all.insert(USER_AGENT, HeaderValue::from_static(concat!("postbox/", env!("CARGO_PKG_VERSION"))));
        for header in headers {
            let parsed = header.split_once(':').and_then(|(name, value)| {
                let mut value = HeaderValue::from_str(value.trim()).ok()?;
                value.set_sensitive(true);
                Some((name.trim().parse::<HeaderName>().ok()?, value))
            });
            // It may hold a secret, so it is not repeated.
            let (name, value) = parsed.ok_or_else(|| {
                Error::new(ErrorKind::Usage, "a --header is not of the form \"Name: value\"")
                    .with_hint("For instance --header \"Authorization: Bearer $TOKEN\".")
            })?;
            all.insert(name, value);
        }
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(CONNECT_PATIENCE));
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        let authorities = if url.scheme_str() == Some("https") { trusted_by_system()? } else { Vec::new() };
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(authorities);
        let provider = rustls::crypto::ring::default_provider();
        let tls = rustls::ClientConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::new(ErrorKind::Tls, "TLS cannot be set up").with_source(error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(connector), url, headers: all })
    }

    fn request(&self, inbox: &str, message: &InboxMessage) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(message.to_json(inbox).into()));
        *request.method_mut() = hyper::Method::POST;
        *request.uri_mut() = self.url.clone();
        let headers = request.headers_mut();
        let mut set = |name: &'static str, value: &str| {
            let value = utf8_percent_encode(value, ENCODED).to_string();
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        set("postbox-inbox", inbox);
        set("postbox-event-id", &message.event_id);
        if let Some(event_type) = &message.event_type {
            set("postbox-event-type", event_type);
        }
        set("postbox-attempt", &message.attempt.to_string());
        let carried = message.headers.as_deref().and_then(|json| serde_json::from_str::<Value>(json).ok());
        for name in ["traceparent", "tracestate"] {
            if let Some(value) = carried.as_ref().and_then(|headers| headers.get(name)?.as_str()) {
                set(name, value);
            }
        }
        headers.extend(self.headers.clone());
        request
    }
}

impl Outlet for Http {
    async fn deliver(&self, inbox: &str, message: &InboxMessage) -> Result<(), Failure> {
        let answer = self.client.request(self.request(inbox, message)).await?;
        let status = answer.status();
        let again = retry_after(status, answer.headers().get(RETRY_AFTER), SystemTime::now());
        // Read to the end, the connection serves for the next message.
        let body = timeout(BODY_PATIENCE, Limited::new(answer.into_body(), BODY_BYTES).collect()).await;
        if status.is_success() {
            return Ok(());
        }
        let body = body.ok().and_then(|body| body.ok()).map(|body| body.to_bytes()).unwrap_or_default();
        let text = String::from_utf8_lossy(&body[..body.len().min(ERROR_BYTES)]);
        let failure = Failure::new(match text.trim() {
            "" => format!("the server answered {status}"),
            text => format!("the server answered {status}: {text}"),
        });
        Err(match again {
            Some(wait) => failure.retry_after(wait),
            None => failure,
        })
    }
}

/// What the answer says about the next attempt: seconds, or a date.
fn retry_after(status: StatusCode, header: Option<&HeaderValue>, now: SystemTime) -> Option<Duration> {
    if !matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        return None;
    }
    let text = header?.to_str().ok()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(RETRY_AFTER_MOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_when_to_come_again() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let wait = |status: u16, text: &'static str| {
            let header = HeaderValue::from_static(text);
            retry_after(StatusCode::from_u16(status).expect("a status"), Some(&header), now).map(|wait| wait.as_secs())
        };
        assert_eq!(wait(429, "7"), Some(7));
        assert_eq!(wait(503, "Sun, 06 Nov 1994 08:50:37 GMT"), Some(60));
        assert_eq!(wait(503, "Sun, 06 Nov 1994 08:49:00 GMT"), Some(0));
        assert_eq!(wait(429, "99999999"), Some(86_400));
        for (status, text) in [(500, "7"), (429, "soon"), (429, "-1"), (503, "")] {
            assert_eq!(wait(status, text), None, "{status} {text}");
        }
    }

    #[test]
    fn what_cannot_be_posted_to_is_refused() {
        for url in ["", "shop.example/x", "ftp://shop.example", "http://", "http://u:p@shop.example/", "http://a b/"] {
            assert_eq!(Http::new(url, &[]).err().map(|error| error.kind()), Some(ErrorKind::Usage), "{url}");
        }
        let error = Http::new("http://localhost", &["Authorization=secret".to_owned()]).err().expect("no header");
        assert!(!error.chain().contains("secret"));
    }
}
