//! The derive macro of `Event`. Use it through `pillarbox_event::Event`, or `pillarbox::Event`, which also document its
//! attribute.
//!
//! | module | concept |
//! |---|---|
//! | `attribute` | what `#[event(…)]` says |
//! | `topic` | the topic: a subject, or a template with fields |
//! | `field` | a field, found by its path, as a key or as a word of a topic |
//! | `expand` | the implementation that comes out |

mod attribute;
mod expand;
mod field;
mod topic;

use proc_macro::TokenStream;
use quote::quote;

/// Implements `pillarbox_event::Event`.
#[proc_macro_derive(Event, attributes(event))]
pub fn event(input: TokenStream) -> TokenStream {
    expand::expand(input.into(), &quote!(::pillarbox_event)).into()
}

/// The same for users of the facade `pillarbox`, which need no dependency on `pillarbox-event`.
#[proc_macro_derive(FacadeEvent, attributes(event))]
pub fn facade_event(input: TokenStream) -> TokenStream {
    expand::expand(input.into(), &quote!(::pillarbox::event)).into()
}
