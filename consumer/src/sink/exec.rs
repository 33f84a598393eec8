//! A command for each event.

use std::sync::Arc;

use super::EventSink;
use crate::command;
use crate::event::Event;
use crate::format::Format;

/// `sh -c COMMAND` for each event, which stands on its standard input as one line of JSON. Delivered means: exit code 0.
#[derive(Clone, Debug)]
pub(crate) struct Exec {
    command: Arc<str>,
    format: Format,
}

impl Exec {
    pub(crate) fn new(command: &str, format: Format) -> Self {
        Self { command: command.into(), format }
    }

    async fn run(self, event: Event, attempt: u32) -> Result<(), String> {
        let mut line = Vec::new();
        self.format.write(&event, &mut line);
        line.push(b'\n');
        let variables = [
            ("POSTBOX_EVENT_ID", event.id.as_ref().map(ToString::to_string)),
            ("POSTBOX_TYPE", Some(event.event_type.to_string()).filter(|name| !name.is_empty())),
            ("POSTBOX_KEY", event.key.as_ref().map(ToString::to_string)),
            ("POSTBOX_OUTBOX", Some(event.outbox.to_string())),
            ("POSTBOX_ATTEMPT", Some(attempt.to_string())),
        ];
        drop(event);
        command::run(&self.command, line, variables).await
    }
}

impl EventSink for Exec {
    fn deliver(&self, event: Event, attempt: u32) -> impl Future<Output = Result<(), String>> + Send + 'static {
        self.clone().run(event, attempt)
    }
}
