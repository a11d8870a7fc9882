//! The inbox's tables.
//!
//! The migrations are plain SQL. They are recorded in `<schema>.inbox_migration`, a table of their own, so they do not
//! interfere with the service's migrations. It is safe to run them again, and from several processes at once.

use crate::error::InboxError;

pillarbox_store::migrations!(
    "inbox_migration",
    [1 "0001_inbox.sql", 2 "0002_inbox_process.sql", 3 "0003_saga.sql"],
    InboxError
);
