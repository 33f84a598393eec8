//! A message as it was handed out.

use bytestring::ByteString;
use tokio_postgres::Row;

use crate::error::Result;

/// A message of an inbox, handed out to this worker.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct InboxMessage {
    /// The id by which duplicates are known.
    pub event_id: ByteString,
    /// What proves that the message is this worker's.
    pub token: i64,
    /// What happened, if the sender says.
    pub event_type: Option<ByteString>,
    /// Messages of one aggregate have an order, if the inbox has.
    pub aggregate_id: Option<ByteString>,
    /// The place in that order.
    pub sequence_num: Option<i64>,
    /// A JSON document.
    pub payload: Option<ByteString>,
    /// A JSON document.
    pub headers: Option<ByteString>,
    /// Which attempt this is, counted from 1.
    pub attempt: u32,
}

impl InboxMessage {
    /// The columns that [`from_row`](Self::from_row) takes.
    pub(super) const COLUMNS: &str =
        "event_id, token, event_type, aggregate_id, sequence_num, payload::text, headers::text, attempts";

    pub(super) fn from_row(row: &Row) -> Result<Self> {
        let text = |index| row.try_get::<_, Option<&str>>(index).map(|text| text.map(ByteString::from));
        Ok(Self {
            event_id: row.try_get::<_, &str>(0)?.into(),
            token: row.try_get(1)?,
            event_type: text(2)?,
            aggregate_id: text(3)?,
            sequence_num: row.try_get(4)?,
            payload: text(5)?,
            headers: text(6)?,
            attempt: row.try_get::<_, i32>(7)?.unsigned_abs(),
        })
    }

    /// The message as one line of JSON, without a newline: `inbox`, `event_id`, `event_type`, `aggregate_id`, `sequence_num`,
    /// `headers`, `payload`, `attempt`.
    pub fn to_json(&self, inbox: &str) -> String {
        let text = |text: Option<&str>| serde_json::Value::from(text).to_string();
        // As the server wrote them: no number passes through a float.
        let json = |json: &Option<ByteString>| json.as_deref().unwrap_or("null").to_owned();
        let number = self.sequence_num.map_or("null".to_owned(), |number| number.to_string());
        let members = [
            ("inbox", text(Some(inbox))),
            ("event_id", text(Some(&self.event_id))),
            ("event_type", text(self.event_type.as_deref())),
            ("aggregate_id", text(self.aggregate_id.as_deref())),
            ("sequence_num", number),
            ("headers", json(&self.headers)),
            ("payload", json(&self.payload)),
            ("attempt", self.attempt.to_string()),
        ];
        let members = members.map(|(name, value)| format!("\"{name}\":{value}"));
        format!("{{{}}}", members.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_one_line_and_keeps_what_the_server_wrote() {
        let message = InboxMessage {
            event_id: "a\"\n".into(),
            token: 7,
            event_type: None,
            aggregate_id: Some("é".into()),
            sequence_num: Some(9),
            payload: Some("{\"n\": 0.10000000000000000000001}".into()),
            headers: None,
            attempt: 2,
        };
        assert_eq!(
            message.to_json("box"),
            "{\"inbox\":\"box\",\"event_id\":\"a\\\"\\n\",\"event_type\":null,\"aggregate_id\":\"é\",\"sequence_num\":9,\
             \"headers\":null,\"payload\":{\"n\": 0.10000000000000000000001},\"attempt\":2}"
        );
    }
}
