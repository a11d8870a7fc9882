//! Publishing from transactions of clients for which Pillarbox has no module of its own: copy the function that you
//! need into your service.

pub mod diesel_async;
pub mod sea_orm;
