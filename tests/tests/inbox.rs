//! Inboxes: what comes in, what is handed out, and what becomes of it.

mod circle;
mod stream;
