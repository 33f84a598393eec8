//! A real HTTP server that keeps what is posted to it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

#[derive(Clone, Debug)]
pub(crate) struct Post {
    pub(crate) line: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

/// Answers each post with what `answer` says of it, and keeps it.
pub(crate) struct Server {
    pub(crate) port: u16,
    posts: Arc<Mutex<Vec<Post>>>,
}

impl Server {
    pub(crate) async fn start(tls: Option<ServerConfig>, answer: fn(&Post) -> &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (port, posts) = (listener.local_addr().expect("its address").port(), Arc::new(Mutex::new(Vec::new())));
        let (kept, acceptor) = (Arc::clone(&posts), tls.map(|tls| TlsAcceptor::from(Arc::new(tls))));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (kept, acceptor) = (Arc::clone(&kept), acceptor.clone());
                tokio::spawn(async move {
                    match acceptor {
                        None => serve(stream, &kept, answer).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                serve(stream, &kept, answer).await;
                            }
                        }
                    }
                });
            }
        });
        Self { port, posts }
    }

    pub(crate) fn posts(&self, id: &str) -> Vec<Post> {
        let posts = self.posts.lock().unwrap();
        posts.iter().filter(|post| post.headers.get("postbox-event-id").is_some_and(|own| own == id)).cloned().collect()
    }
}

/// Requests of one connection, until it ends.
async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    posts: &Mutex<Vec<Post>>,
    answer: fn(&Post) -> &'static str,
) {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut line, mut headers) = (String::new(), HashMap::new());
        if !matches!(stream.read_line(&mut line).await, Ok(1..)) {
            return;
        }
        loop {
            let mut header = String::new();
            stream.read_line(&mut header).await.expect("a header");
            let Some((name, value)) = header.trim().split_once(": ") else { break };
            headers.insert(name.to_lowercase(), value.to_owned());
        }
        let mut body = vec![0; headers["content-length"].parse().expect("a length")];
        stream.read_exact(&mut body).await.expect("a body");
        let post = Post { line: line.trim().to_owned(), headers, body: String::from_utf8(body).expect("text") };
        let answer = answer(&post);
        posts.lock().unwrap().push(post);
        stream.write_all(answer.as_bytes()).await.expect("somebody who listens");
    }
}

pub(crate) const DONE: &str = "HTTP/1.1 204 No Content\r\n\r\n";
