//! The topic: a subject such as `orders.placed`, or a template such as `orders.{region}.placed`.

use proc_macro2::{Span, TokenStream};
use quote::quote;
use syn::{DeriveInput, Error, LitStr, Result};

use crate::field::FieldPath;

/// The longest topic, in bytes, as events are checked when they are built.
const LONGEST: usize = 255;

/// A topic, read from its literal.
pub(crate) struct Topic {
    /// A subject, or, with fields, a pattern: each word that holds a field is a `*`.
    pub(crate) pattern: String,
    /// The body of `topic()`, if the topic has fields.
    pub(crate) body: Option<TokenStream>,
}

impl Topic {
    pub(crate) fn of(literal: &LitStr, input: &DeriveInput) -> Result<Self> {
        let (template, place) = (literal.value(), literal.span());
        let fail = |problem: &str| Err(Error::new(place, problem));
        let (mut words, mut format, mut fields) = (Vec::new(), String::new(), Vec::new());
        for part in parts(&template, place)? {
            match part {
                Part::Text(text) => {
                    words.push(text.to_owned());
                    format.push_str(text);
                }
                Part::Field(path) => {
                    // The only character that is no part of a subject, nor of anything that is refused below.
                    words.push(FIELD.to_string());
                    format.push_str("{}");
                    fields.push(path.of(input, place)?.word());
                }
            }
        }
        let subject = words.concat();
        if subject.is_empty() {
            return fail(
                "a topic must not be empty; write a NATS subject such as \"orders.placed\"",
            );
        }
        if subject.len() > LONGEST {
            return fail("a topic has at most 255 bytes; shorten it");
        }
        if subject.contains(['*', '>']) {
            return fail(
                "an event is published to one subject, so a topic has no wildcards; name the field that gives the \
                 word, as in \"orders.{region}\", or implement `Event` by hand",
            );
        }
        if subject.chars().any(|c| c.is_whitespace() || (c.is_control() && c != FIELD)) {
            return fail("a topic has no white space and no control characters; remove them");
        }
        if subject.starts_with('$') {
            return fail("topics that start with \"$\" belong to the server; choose another word");
        }
        if subject.split('.').any(str::is_empty) {
            return fail("a topic has no empty words; remove the dot that is too many");
        }
        let word = |word| if str::contains(word, FIELD) { "*" } else { word };
        let pattern = subject.split('.').map(word).collect::<Vec<_>>().join(".");
        let body = (!fields.is_empty()).then(|| {
            quote! { ::std::borrow::Cow::Owned(::std::format!(#format, #(#fields),*)) }
        });
        Ok(Self { pattern, body })
    }
}

/// Stands for a field in a subject.
const FIELD: char = '\u{1}';

enum Part<'t> {
    Text(&'t str),
    Field(FieldPath),
}

fn parts(template: &str, place: Span) -> Result<Vec<Part<'_>>> {
    let unbalanced = || {
        Error::new(
            place,
            "a field in a topic stands in braces, as in \"orders.{region}\"; correct the braces",
        )
    };
    let (mut parts, mut rest) = (Vec::new(), template);
    while let Some((before, behind)) = rest.split_once('{') {
        let (path, after) = behind.split_once('}').ok_or_else(unbalanced)?;
        if before.contains('}') {
            return Err(unbalanced());
        }
        parts.push(Part::Text(before));
        parts.push(Part::Field(syn::parse_str(path).map_err(|_| unbalanced())?));
        rest = after;
    }
    if rest.contains('}') || template.contains(FIELD) {
        return Err(unbalanced());
    }
    parts.push(Part::Text(rest));
    Ok(parts)
}
