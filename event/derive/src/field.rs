//! A field, found by its path: `order`, `0`, or `order.id`.

use proc_macro2::{Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::parse::{Parse, ParseStream};
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Error, Field, Member, Result, Token, Type};

/// The path of a field, as it is written in an attribute.
pub(crate) struct FieldPath {
    first: Member,
    rest: Vec<Member>,
}

impl Parse for FieldPath {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let first = input.parse()?;
        let mut rest = Vec::new();
        while input.peek(Token![.]) {
            input.parse::<Token![.]>()?;
            rest.push(input.parse()?);
        }
        Ok(Self { first, rest })
    }
}

impl FieldPath {
    /// The field of this struct. Errors point at `place`.
    pub(crate) fn of<'i>(&'i self, input: &'i DeriveInput, place: Span) -> Result<Found<'i>> {
        let Data::Struct(data) = &input.data else {
            let error = "only a struct has fields that this can name; implement `Event` by hand";
            return Err(Error::new(place, error));
        };
        let members: Vec<(Member, &Field)> = data.fields.members().zip(&data.fields).collect();
        match members.iter().find(|(member, _)| *member == self.first) {
            Some((_, field)) => Ok(Found { path: self, field, place }),
            None => {
                let names = members.iter().map(|(member, _)| format!("`{}`", name(member)));
                let names = names.collect::<Vec<_>>().join(", ");
                let has = if names.is_empty() { "no field".to_owned() } else { names };
                let error =
                    format!("`{}` has no field `{}`; it has {has}", input.ident, name(&self.first));
                Err(Error::new(place, error))
            }
        }
    }

    pub(crate) fn span(&self) -> Span {
        self.first.span()
    }
}

fn name(member: &Member) -> String {
    match member {
        Member::Named(name) => name.to_string(),
        Member::Unnamed(index) => index.index.to_string(),
    }
}

/// A field that exists.
pub(crate) struct Found<'i> {
    path: &'i FieldPath,
    field: &'i Field,
    place: Span,
}

impl Found<'_> {
    /// An `Option<Cow<str>>` of it: nothing, if it is an `Option` without a value.
    pub(crate) fn key(&self) -> TokenStream {
        let (value, span) = (self.value(), self.span());
        let ty = (self.path.rest.is_empty()).then_some(&self.field.ty);
        match ty.map(Kind::of) {
            Some(Kind::Text) => quote_spanned! {span=>
                ::core::option::Option::Some(::std::borrow::Cow::Borrowed(#value.as_str()))
            },
            Some(Kind::OptionalText) => quote_spanned! {span=>
                #value.as_deref().map(::std::borrow::Cow::Borrowed)
            },
            Some(Kind::Optional) => quote_spanned! {span=>
                #value.as_ref().map(|key| {
                    ::std::borrow::Cow::Owned(::std::string::ToString::to_string(key))
                })
            },
            Some(Kind::Other) | None => quote_spanned! {span=>
                ::core::option::Option::Some({
                    let key = &#value;
                    ::std::borrow::Cow::Owned(::std::string::ToString::to_string(key))
                })
            },
        }
    }

    /// Something that `format!` takes.
    pub(crate) fn word(&self) -> TokenStream {
        let (value, span) = (self.value(), self.span());
        quote_spanned! {span=> &#value}
    }

    fn value(&self) -> TokenStream {
        let FieldPath { first, rest } = self.path;
        // Found also where a macro writes the attribute.
        let this = quote!(self);
        let span = self.place;
        quote_spanned! {span=> #this.#first #(.#rest)*}
    }

    /// Where a type that cannot be shown is reported: at the field's type.
    fn span(&self) -> Span {
        if self.path.rest.is_empty() { self.field.ty.span() } else { self.place }
    }
}

/// What matters of a field's type, as far as its name tells.
enum Kind {
    Text,
    OptionalText,
    Optional,
    Other,
}

impl Kind {
    fn of(ty: &Type) -> Self {
        let Type::Path(path) = ty else { return Self::Other };
        let Some(last) = path.path.segments.last() else { return Self::Other };
        match last.ident.to_string().as_str() {
            "String" => Self::Text,
            "Option" => match &last.arguments {
                syn::PathArguments::AngleBracketed(of) => match of.args.first() {
                    Some(syn::GenericArgument::Type(of)) if matches!(Self::of(of), Self::Text) => {
                        Self::OptionalText
                    }
                    _ => Self::Optional,
                },
                _ => Self::Optional,
            },
            _ => Self::Other,
        }
    }
}
