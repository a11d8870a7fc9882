//! What `#[event(…)]` says.

use syn::spanned::Spanned;
use syn::{DeriveInput, Error, LitInt, LitStr, Result, Type};

use crate::field::FieldPath;

/// The longest type, in bytes, as events are checked when they are built.
const LONGEST: usize = 255;

/// An `#[event(…)]` whose names are known and complete.
pub(crate) struct Attribute {
    pub(crate) event_type: LitStr,
    pub(crate) topic: LitStr,
    pub(crate) key: Option<FieldPath>,
    /// From 1.
    pub(crate) version: u32,
    /// The type of an older version.
    pub(crate) from: Option<Type>,
}

impl Attribute {
    /// Reads the `#[event(…)]` of a type. It may be written in several parts.
    pub(crate) fn of(input: &DeriveInput) -> Result<Self> {
        let (mut event_type, mut topic, mut key) = (None, None, None);
        let (mut version, mut from): (Option<LitInt>, Option<Type>) = (None, None);
        let mut place = input.ident.span();
        for attribute in input.attrs.iter().filter(|attribute| attribute.path().is_ident("event")) {
            place = attribute.path().span();
            attribute.parse_nested_meta(|meta| {
                let again = |before: bool| match before {
                    true => Err(meta.error("this stands here twice; remove one")),
                    false => Ok(()),
                };
                if meta.path.is_ident("type") {
                    again(event_type.is_some())?;
                    event_type = Some(meta.value()?.parse()?);
                } else if meta.path.is_ident("topic") {
                    again(topic.is_some())?;
                    topic = Some(meta.value()?.parse()?);
                } else if meta.path.is_ident("key") {
                    again(key.is_some())?;
                    key = Some(meta.value()?.parse()?);
                } else if meta.path.is_ident("version") {
                    again(version.is_some())?;
                    version = Some(meta.value()?.parse()?);
                } else if meta.path.is_ident("from") {
                    again(from.is_some())?;
                    from = Some(meta.value()?.parse()?);
                } else {
                    return Err(meta.error(
                        "an event has `type`, `topic`, `key`, `version` and `from`; use one of them",
                    ));
                }
                Ok(())
            })?;
        }
        let missing = |name: &str, example: &str| {
            Error::new(
                place,
                format!("the event has no `{name}`; add `#[event({name} = {example})]`"),
            )
        };
        let event_type = event_type.ok_or_else(|| missing("type", "\"order.placed\""))?;
        let topic = topic.ok_or_else(|| missing("topic", "\"orders.placed\""))?;
        check_type(&event_type)?;
        let version = number(version.as_ref())?;
        if let (Some(from), 1) = (&from, version) {
            let error = "version 1 has no older version; add `version = 2`, or remove `from`";
            return Err(Error::new(from.span(), error));
        }
        Ok(Self { event_type, topic, key, version, from })
    }
}

fn number(version: Option<&LitInt>) -> Result<u32> {
    let Some(literal) = version else { return Ok(1) };
    match literal.base10_parse() {
        Ok(version) if version > 0 => Ok(version),
        _ => Err(Error::new(
            literal.span(),
            "versions are whole numbers from 1; write `version = 2`",
        )),
    }
}

fn check_type(event_type: &LitStr) -> Result<()> {
    let said = event_type.value();
    if said.is_empty() || said.len() > LONGEST || said.chars().any(char::is_control) {
        let error = "a type is 1 to 255 bytes without control characters, such as \"order.placed\"";
        return Err(Error::new(event_type.span(), error));
    }
    Ok(())
}
