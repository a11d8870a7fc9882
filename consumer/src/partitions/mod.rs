//! What a process reads: everything, or its share of the partitions.
//!
//! | file | concept |
//! |---|---|
//! | `membership` | this process among the processes of its consumer, and which partitions it has |
//! | `assignment` | reads what it has, and hands over what is beyond its share |
//! | `messages` | opens the durables of what it reads, and opens them again after failures |
//! | `unassigned` | looks out for events that are in no partition |
//! | `repartition` | makes the durables of another number of partitions |

pub(crate) mod assignment;
pub(crate) mod membership;
pub(crate) mod messages;
pub(crate) mod repartition;
pub(crate) mod unassigned;
