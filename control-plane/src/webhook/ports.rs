//! Ports and ranges of ports, as annotations and settings write them.

use std::{
    fmt::{self, Display},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A port or a range of ports, both ends included: "8080", "9100-9110".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl From<u16> for PortRange {
    fn from(port: u16) -> Self {
        Self { first: port, last: port }
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port != 0);
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(format!("{:?} is neither a port (1 to 65535) nor a range of ports (8000-8010)", text.trim())),
        }
    }
}

impl Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(i64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(number) => number.to_string().parse(),
            Written::Text(text) => text.parse(),
        }
        .map_err(D::Error::custom)
    }
}

/// Ports, found quickly however many ranges they were written as.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PortSet(
    /// In order, none touching the next.
    Box<[PortRange]>,
);

impl PortSet {
    pub fn contains(&self, port: u16) -> bool {
        let at = self.0.partition_point(|range| range.last < port);
        self.0.get(at).is_some_and(|range| range.first <= port)
    }
}

impl From<Vec<PortRange>> for PortSet {
    fn from(mut ranges: Vec<PortRange>) -> Self {
        ranges.sort_unstable_by_key(|range| range.first);
        ranges.dedup_by(|next, kept| {
            let joins = next.first <= kept.last.saturating_add(1);
            if joins {
                kept.last = kept.last.max(next.last);
            }
            joins
        });
        Self(ranges.into())
    }
}

impl FromStr for PortSet {
    type Err = String;

    /// Ranges separated by commas.
    fn from_str(text: &str) -> Result<Self, String> {
        list::<PortRange>(text).map(Self::from)
    }
}

/// Values separated by commas; spaces and a comma at the end do not count.
pub(super) fn list<T: FromStr>(text: &str) -> Result<Vec<T>, T::Err> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::parse).collect()
}

/// As `leno-proxy redirect` takes lists.
pub(super) fn joined<T: Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_has_the_ports_of_its_ranges_and_no_others(
            ranges in proptest::collection::vec((1..40u16, 0..6u16), 0..8),
            high in any::<bool>(),
        ) {
            let base = if high { u16::MAX - 46 } else { 0 };
            let ranges: Vec<_> = ranges.into_iter().map(|(first, more)| (base + first, base + first + more)).collect();
            let text: Vec<_> = ranges.iter().map(|(first, last)| format!("{first}-{last}")).collect();
            let set: PortSet = text.join(",").parse().unwrap();
            for port in base..=base + 46 {
                prop_assert_eq!(set.contains(port), ranges.iter().any(|(first, last)| (*first..=*last).contains(&port)));
            }
            prop_assert!(set.0.windows(2).all(|pair| pair[0].last + 1 < pair[1].first), "{:?}", set);
        }
    }
}
