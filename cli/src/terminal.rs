//! What may be shown on a terminal. The rule is that of [`pillarbox_store::shown`], which the console's pages follow
//! too.

pub(crate) use pillarbox_store::shown::{harmless, harmless_json};
