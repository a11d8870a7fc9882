//! Partitions: a number in the subject that is the same for all events of a key, so that several processes can share
//! a stream's events without sharing a key.
//!
//! The number comes after the first word of the topic. A header has it too, together with the number of partitions:
//!
//! | topic | key | partitions | subject | `pillarbox-partition` |
//! |---|---|---|---|---|
//! | `orders.placed` | `42` | 8 | `orders.3.placed` | `3/8` |
//! | `orders` | `42` | 8 | `orders.3` | `3/8` |
//!
//! It comes after the first word and not at the end, because there every filter can be narrowed to one partition, even
//! `orders.>`, and a stream with that subject takes the events as before.
//!
//! The number is the 32-bit [FNV-1a](http://www.isthe.com/chongo/tech/comp/fnv/) hash of the key's bytes, modulo
//! the number of partitions. nats-server computes the same for `{{partition(8,1)}}` in a subject mapping, and it takes
//! four lines in any language. For an event without a key, the id is hashed.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// The largest number of partitions.
pub const MOST: u32 = 1024;

/// One of several partitions. Prints as `3/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition {
    number: u32,
    of: u32,
}

/// A text or number that is not a partition. It must be `number/of`, with `number` less than `of`, and `of` at most
/// [`MOST`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not a partition; it must be number/of, such as 3/8, with of at most 1024")]
pub struct NoPartition;

impl Partition {
    /// The partition with this number, counted from 0, out of `of` partitions.
    ///
    /// # Errors
    /// [`NoPartition`] if `number` is not less than `of`, or `of` is above [`MOST`].
    pub fn new(number: u32, of: u32) -> Result<Self, NoPartition> {
        if number < of && of <= MOST { Ok(Self { number, of }) } else { Err(NoPartition) }
    }

    /// The partition to which a key belongs, out of `of` partitions. 0 counts as 1, and more than [`MOST`] as [`MOST`].
    ///
    /// ```
    /// # use pillarbox_event::partition::Partition;
    /// assert_eq!(Partition::of_key("42", 8).to_string(), "3/8");
    /// ```
    pub fn of_key(key: &str, of: u32) -> Self {
        let of = of.clamp(1, MOST);
        Self { number: fnv1a(key.as_bytes()) % of, of }
    }

    /// Its number, counted from 0.
    pub fn number(self) -> u32 {
        self.number
    }

    /// The number of partitions.
    pub fn of(self) -> u32 {
        self.of
    }

    /// The subject of a topic, or of a filter, in this partition. The filter `>` also matches topics of one word, and
    /// so becomes two filters: see [`filters`](Self::filters).
    pub fn subject(self, topic: &str) -> String {
        let number = self.number;
        match topic.split_once('.') {
            Some((first, rest)) => format!("{first}.{number}.{rest}"),
            None => format!("{topic}.{number}"),
        }
    }

    /// The filters that match those events of this partition that `filter` matches.
    pub fn filters(self, filter: &str) -> Vec<String> {
        match filter {
            ">" => vec![self.subject("*"), self.subject("*.>")],
            filter => vec![self.subject(filter)],
        }
    }

    /// The topic of a subject, or `None` if the subject is not in this partition.
    pub fn topic(self, subject: &str) -> Option<String> {
        let (first, rest) = subject.split_once('.')?;
        let (number, rest) = match rest.split_once('.') {
            Some((number, rest)) => (number, Some(rest)),
            None => (rest, None),
        };
        if number != self.number.to_string() {
            return None;
        }
        Some(rest.map_or_else(|| first.to_owned(), |rest| format!("{first}.{rest}")))
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

impl FromStr for Partition {
    type Err = NoPartition;

    fn from_str(text: &str) -> Result<Self, NoPartition> {
        let (number, of) = text.split_once('/').ok_or(NoPartition)?;
        let read = |digits: &str| digits.parse::<u32>().map_err(|_| NoPartition);
        Self::new(read(number)?, read(of)?)
    }
}

/// The topic of a message, before a partition was put into its subject.
pub(crate) fn topic_of<'a>(subject: &'a str, partition: Option<&str>) -> Cow<'a, str> {
    partition
        .and_then(|text| text.parse::<Partition>().ok())
        .and_then(|partition| partition.topic(subject))
        .map_or(Cow::Borrowed(subject), Cow::Owned)
}

fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_the_published_vectors() {
        // From the FNV reference code, test_fnv.c.
        for (text, hash) in [
            ("", 0x811c_9dc5),
            ("a", 0xe40c_292c),
            ("b", 0xe70c_2de5),
            ("foo", 0xa9f3_7ed7),
            ("foobar", 0xbf9c_f968),
            ("chongo was here!\n", 0xd499_30d5),
        ] {
            assert_eq!(fnv1a(text.as_bytes()), hash, "{text:?}");
        }
    }

    #[test]
    fn a_topic_gets_its_number_behind_the_first_word_and_comes_back() {
        let partition = Partition::new(3, 8).unwrap();
        for (topic, subject) in [
            ("orders", "orders.3"),
            ("orders.placed", "orders.3.placed"),
            ("orders.3.placed", "orders.3.3.placed"),
        ] {
            assert_eq!(partition.subject(topic), subject);
            assert_eq!(partition.topic(subject).as_deref(), Some(topic));
        }
        for other in ["orders", "orders.placed", "orders.30.placed", "orders.03", "orders.placed.3"]
        {
            assert_eq!(partition.topic(other), None, "{other}");
        }
    }

    #[test]
    fn every_filter_is_narrowed_to_what_it_takes_of_a_partition() {
        let partition = Partition::new(3, 8).unwrap();
        for (filter, narrowed) in [
            ("orders.placed", vec!["orders.3.placed"]),
            ("orders.*", vec!["orders.3.*"]),
            ("orders.>", vec!["orders.3.>"]),
            ("*", vec!["*.3"]),
            ("*.placed", vec!["*.3.placed"]),
            (">", vec!["*.3", "*.3.>"]),
        ] {
            assert_eq!(partition.filters(filter), narrowed, "{filter}");
        }
    }

    #[test]
    fn what_is_no_partition_is_refused() {
        assert_eq!("5/8".parse(), Partition::new(5, 8));
        for text in ["", "5", "8/8", "a/8", "5/", "5/8/9", "-1/8", "0/0", "0/2000"] {
            assert_eq!(text.parse::<Partition>(), Err(NoPartition), "{text:?}");
        }
    }
}
