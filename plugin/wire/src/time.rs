//! Points in time as PostgreSQL keeps them.

use core::fmt;

/// Microseconds since 2000-01-01 00:00:00 UTC, PostgreSQL's epoch. Printed as RFC 3339 in UTC with microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PgMicros(pub i64);

/// Seconds between 1970-01-01 and 2000-01-01.
const EPOCH_SECONDS: i64 = 946_684_800;
/// Days between 0000-03-01 and 2000-01-01, in the proleptic Gregorian calendar.
const DAYS_FROM_MARCH_0: i64 = 730_425;

impl PgMicros {
    /// No known moment: what PostgreSQL takes for `-infinity`, and no clock shows. Only frames of stored rows have it.
    pub const UNKNOWN: Self = Self(i64::MIN);

    /// From microseconds since 1970-01-01 UTC; `None` if out of range.
    pub fn from_unix_micros(micros: i64) -> Option<Self> {
        micros.checked_sub(EPOCH_SECONDS * 1_000_000).map(Self)
    }

    /// Microseconds since 1970-01-01 UTC, saturating.
    pub fn unix_micros(self) -> i64 {
        self.0.saturating_add(EPOCH_SECONDS * 1_000_000)
    }
}

/// A moment as the calendar and the clock show it, in UTC.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Civil {
    pub(crate) year: i64,
    pub(crate) month: i64,
    pub(crate) day: i64,
    pub(crate) hour: i64,
    pub(crate) minute: i64,
    pub(crate) second: i64,
    pub(crate) micros: i64,
}

impl PgMicros {
    pub(crate) fn civil(self) -> Civil {
        const DAY: i64 = 86_400_000_000;
        let (days, micros) = (self.0.div_euclid(DAY), self.0.rem_euclid(DAY));
        // Howard Hinnant's `civil_from_days` (chrono-compatible date algorithms), counted from 0000-03-01.
        let days = days + DAYS_FROM_MARCH_0;
        let era = days.div_euclid(146_097);
        let day_of_era = days.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let seconds = micros / 1_000_000;
        Civil {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month,
            day: day_of_year - (153 * month_from_march + 2) / 5 + 1,
            hour: seconds / 3600,
            minute: seconds / 60 % 60,
            second: seconds % 60,
            micros: micros % 1_000_000,
        }
    }
}

impl fmt::Display for PgMicros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Civil { year, month, day, hour, minute, second, micros } = self.civil();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn known_days() {
        for (micros, text) in [
            (0, "2000-01-01T00:00:00.000000Z"),
            (-1, "1999-12-31T23:59:59.999999Z"),
            (5_097_599_999_999, "2000-02-28T23:59:59.999999Z"),
            (5_097_600_000_000, "2000-02-29T00:00:00.000000Z"),
            (820_540_800_000_000, "2026-01-01T00:00:00.000000Z"),
            (-EPOCH_SECONDS * 1_000_000, "1970-01-01T00:00:00.000000Z"),
        ] {
            assert_eq!(PgMicros(micros).to_string(), text);
        }
        assert_eq!(PgMicros(0).unix_micros(), 946_684_800_000_000);
    }
}
