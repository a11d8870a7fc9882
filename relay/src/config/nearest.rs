//! What somebody meant who misspelt a name.

/// The one of `names` that is nearest to `wrong`, if one is near enough to be what was meant: at most a third of its
/// letters are wrong, missing, too many or swapped.
pub fn nearest<'n>(wrong: &str, names: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    names
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(wrong, name), name))
        // As many wrong letters as still leave most of the word.
        .filter(|(distance, name)| *distance <= name.len().max(wrong.len()) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}
