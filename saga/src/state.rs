//! What is kept of an instance for the service.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What the state of a saga must be: it can be written as JSON and read again, and a new instance begins with its
/// default. It is implemented for all that fit.
///
/// The state is read with the type of the program that runs. So a new version of the program must be able to read what
/// the old one has written: give new fields `#[serde(default)]`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the state of a saga",
    label = "this cannot be a saga's state",
    note = "put `#[derive(Default, serde::Serialize, serde::Deserialize)]` on it"
)]
pub trait State: Default + Serialize + DeserializeOwned + Send + Sync + 'static {}

impl<S: Default + Serialize + DeserializeOwned + Send + Sync + 'static> State for S {}
