//! A command for each message.

use super::work::Outlet;
use super::{Failure, InboxMessage};
use crate::command;

/// `sh -c COMMAND` for each message, which stands on its standard input as one line of JSON. Processed means: exit code 0.
pub(crate) struct Exec(pub(crate) String);

impl Outlet for Exec {
    async fn deliver(&self, inbox: &str, message: &InboxMessage) -> Result<(), Failure> {
        let variables = [
            ("POSTBOX_INBOX", Some(inbox.to_owned())),
            ("POSTBOX_EVENT_ID", Some(message.event_id.to_string())),
            ("POSTBOX_TYPE", message.event_type.as_ref().map(ToString::to_string)),
            ("POSTBOX_KEY", message.aggregate_id.as_ref().map(ToString::to_string)),
            ("POSTBOX_ATTEMPT", Some(message.attempt.to_string())),
        ];
        let line = message.to_json(inbox) + "\n";
        command::run(&self.0, line.into_bytes(), variables).await.map_err(Failure::new)
    }
}
