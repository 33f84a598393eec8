//! Snapshots of PostgreSQL: which transactions had committed at a moment.

use std::str::FromStr;

/// As `pg_snapshot` prints it: `xmin:xmax:xip,xip`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// Everything below had ended.
    xmin: u64,
    /// Nothing from here on had ended.
    xmax: u64,
    /// Between the two, what had not ended; in order.
    running: Vec<u64>,
}

impl Snapshot {
    /// Whether a committed transaction had committed by then.
    pub(crate) fn sees(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && self.running.binary_search(&xid).is_err())
    }
}

impl FromStr for Snapshot {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.splitn(3, ':');
        let mut next = || parts.next().ok_or(());
        let number = |text: &str| text.parse::<u64>().map_err(|_| ());
        let (xmin, xmax, running) = (number(next()?)?, number(next()?)?, next()?);
        let running = running.split(',').filter(|xid| !xid.is_empty()).map(number).collect::<Result<Vec<_>, ()>>()?;
        if xmin > xmax || !running.is_sorted() || running.iter().any(|xid| !(xmin..xmax).contains(xid)) {
            return Err(());
        }
        Ok(Self { xmin, xmax, running })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_had_committed_is_seen() {
        let snapshot: Snapshot = "10:20:12,15".parse().expect("a snapshot");
        for (xid, seen) in [(9, true), (10, true), (12, false), (13, true), (15, false), (19, true), (20, false)] {
            assert_eq!(snapshot.sees(xid), seen, "{xid}");
        }
        assert_eq!("5:5:".parse::<Snapshot>().map(|snapshot| snapshot.sees(5)), Ok(false));
        for wrong in ["", "1", "1:2", "2:1:", "1:5:7", "1:5:3,2", "a:b:", "1:5:x"] {
            assert_eq!(wrong.parse::<Snapshot>(), Err(()), "{wrong}");
        }
    }
}
