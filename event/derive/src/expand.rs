//! The implementation that comes out.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{DeriveInput, Result, Type};

use crate::attribute::Attribute;
use crate::topic::Topic;

/// Implements the `Event` of the crate at `event` for this type, or says what is wrong with it.
pub(crate) fn expand(input: TokenStream, event: &TokenStream) -> TokenStream {
    syn::parse2(input)
        .and_then(|input| implementation(&input, event))
        .unwrap_or_else(|error| error.into_compile_error())
}

fn implementation(input: &DeriveInput, event: &TokenStream) -> Result<TokenStream> {
    let Attribute { event_type, topic, key, version, from } = Attribute::of(input)?;
    let Topic { pattern, body } = Topic::of(&topic, input)?;
    let topic = body.map(|body| {
        quote! {
            fn topic(&self) -> ::std::borrow::Cow<'_, ::core::primitive::str> { #body }
        }
    });
    let key = match key {
        None => None,
        Some(path) => {
            let key = path.of(input, path.span())?.key();
            Some(quote! {
                fn key(&self) -> ::core::option::Option<::std::borrow::Cow<'_, ::core::primitive::str>> {
                    #key
                }
            })
        }
    };
    let version = (version > 1).then(|| quote! { const VERSION: u32 = #version; });
    let from_older = from.as_ref().map(|old| from_older(old, event));
    let name = &input.ident;
    let (generics, of, bounds) = input.generics.split_for_impl();
    let check = from.as_ref().filter(|_| input.generics.params.is_empty()).map(|old| {
        // The call has the place of `old`, and so has its error.
        quote_spanned! {old.span()=>
            const _: () = {
                use #event::typed::check_older as check;
                check::<#old, #name>()
            };
        }
    });
    Ok(quote! {
        #check
        #[automatically_derived]
        impl #generics #event::Event for #name #of #bounds {
            const TYPE: &'static ::core::primitive::str = #event_type;
            const TOPIC: &'static ::core::primitive::str = #pattern;
            #version
            #topic
            #key
            #from_older
        }
    })
}

/// Reads what `old` reads.
fn from_older(old: &Type, event: &TokenStream) -> TokenStream {
    quote_spanned! {old.span()=>
        fn from_older(
            event: &#event::RawEvent,
        ) -> ::core::result::Result<Self, #event::DecodeError> {
            event.decode_older::<#old, Self>()
        }
    }
}
