//! Which inbox the events go into: arguments of `postbox run`.

use clap::Args;

use super::{FormatName, Run, SinkName};
use crate::error::{Error, ErrorKind, Result};
use crate::sink::InboxTarget;

#[derive(Debug, Args)]
pub(super) struct Target {
    /// With --sink inbox: the server and database of the inbox, as --database. Needs --group
    #[arg(long, value_name = "CONNINFO")]
    inbox_url: Option<String>,
    /// With --sink inbox: the inbox, made there with postbox.create_inbox. Position and messages are one transaction: every event is
    /// taken over once
    #[arg(long, value_name = "NAME")]
    inbox: Option<String>,
    /// The header with a message's sequence number, for inboxes that keep an order [default: none]
    #[arg(long, value_name = "HEADER")]
    sequence_header: Option<String>,
    /// The header with a message's priority, for inboxes with tiers [default: none]
    #[arg(long, value_name = "HEADER")]
    priority_header: Option<String>,
}

impl Target {
    /// The inbox, if that is the sink.
    pub(super) fn read(&self, run: &Run) -> Result<Option<InboxTarget>> {
        let usage = |message: &str, hint: &str| Err(Error::new(ErrorKind::Usage, message).with_hint(hint));
        let given = [
            ("--inbox-url", self.inbox_url.is_some()),
            ("--inbox", self.inbox.is_some()),
            ("--sequence-header", self.sequence_header.is_some()),
            ("--priority-header", self.priority_header.is_some()),
        ];
        if run.sink != SinkName::Inbox {
            return match given.iter().find(|(_, given)| *given) {
                Some((name, _)) => usage(&format!("{name} needs --sink inbox"), "Add the one or leave out the other."),
                None => Ok(None),
            };
        }
        let (Some(conninfo), Some(inbox)) = (&self.inbox_url, &self.inbox) else {
            return usage(
                "--sink inbox needs --inbox-url CONNINFO and --inbox NAME",
                "For instance --inbox-url postgres://shop@billing.example/billing --inbox orders.",
            );
        };
        if run.group.is_none() {
            return usage(
                "--sink inbox needs --group: the position that the inbox keeps is that of a group",
                "postbox group create makes one.",
            );
        }
        if run.format != FormatName::Native {
            return usage("--format means nothing to --sink inbox, which has a column for each part", "Leave it out.");
        }
        Ok(Some(InboxTarget {
            conninfo: conninfo.clone(),
            inbox: inbox.clone(),
            source: run.cloudevents_source.clone(),
            sequence_header: self.sequence_header.clone(),
            priority_header: self.priority_header.clone(),
        }))
    }
}
