//! How an event is written.

mod cloudevents;

use postbox_wire::json::Output;

pub(crate) use cloudevents::CloudEvents;

use crate::event::Event;

/// A format: one JSON object an event.
#[derive(Clone, Debug)]
pub(crate) enum Format {
    /// Postbox's own, of which the wire format's README has the members.
    Native,
    /// CloudEvents 1.0.
    CloudEvents(CloudEvents),
}

impl Format {
    /// Writes the event, without a newline.
    pub(crate) fn write(&self, event: &Event, out: &mut impl Output) {
        match self {
            Self::Native => event.write_json(out),
            Self::CloudEvents(format) => format.write(event, out),
        }
    }
}
