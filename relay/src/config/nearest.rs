//! Suggests the name that a misspelt one was meant to be.

/// The name in `names` that is most similar to `wrong`, if it is similar enough: at most a third of its letters may be
/// wrong, missing, added or swapped.
pub fn nearest<'n>(wrong: &str, names: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    names
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(wrong, name), name))
        // At most a third of the letters may differ.
        .filter(|(distance, name)| *distance <= name.len().max(wrong.len()) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}
