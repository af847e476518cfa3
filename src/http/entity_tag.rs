//! Entity tags: the tag of a user is its version in quotes.
//! <https://www.rfc-editor.org/rfc/rfc9110#section-8.8.3>

use axum::http::HeaderValue;

use crate::domain::precondition::Versions;
use crate::domain::user::Version;

/// Most tags in one list.
const MOST_TAGS: usize = 32;

/// The tag of a user of this version.
pub(crate) fn entity_tag(version: Version) -> HeaderValue {
    // Digits in quotes are always a header value.
    HeaderValue::try_from(format!("\"{version}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}

/// How a tag that is marked as weak (`W/"3"`) is compared.
/// <https://www.rfc-editor.org/rfc/rfc9110#section-8.8.3.2>
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// It matches nothing.
    Strong,
    /// It matches like any other.
    Weak,
}

/// What is wrong with a list of tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ListError {
    /// It is neither tags separated by commas, nor `*` alone.
    Malformed,
    /// It has more than [`MOST_TAGS`].
    TooLong,
}

/// Reads the lines of `If-Match` or `If-None-Match` as one list. Of tags that no
/// user can have, none matches.
pub(crate) fn read_list<'a>(
    lines: impl Iterator<Item = &'a HeaderValue>,
    comparison: Comparison,
) -> Result<Versions, ListError> {
    let lines: Vec<&[u8]> = lines.map(|line| line.as_bytes().trim_ascii()).collect();
    if lines == [b"*"] {
        return Ok(Versions::All);
    }
    let mut tags = Vec::new();
    for line in lines {
        read_line(line, &mut tags)?;
    }
    match tags.len() {
        0 => return Err(ListError::Malformed),
        1..=MOST_TAGS => {}
        _ => return Err(ListError::TooLong),
    }
    let counts = |tag: &Tag| !tag.is_weak || comparison == Comparison::Weak;
    let version = |tag: &Tag| Version::parse(str::from_utf8(tag.opaque).ok()?);
    let versions = tags.iter().filter(|tag| counts(tag)).filter_map(version);
    Ok(Versions::These(versions.collect()))
}

struct Tag<'a> {
    is_weak: bool,
    /// What is between the quotes.
    opaque: &'a [u8],
}

/// Empty elements are ignored, as RFC 9110 asks of recipients of lists.
fn read_line<'a>(line: &'a [u8], tags: &mut Vec<Tag<'a>>) -> Result<(), ListError> {
    let mut rest = line;
    loop {
        rest = match rest.trim_ascii_start() {
            [] => return Ok(()),
            [b',', rest @ ..] => rest,
            rest => {
                let (tag, rest) = read_tag(rest).ok_or(ListError::Malformed)?;
                tags.push(tag);
                match rest.trim_ascii_start() {
                    [] => return Ok(()),
                    [b',', rest @ ..] => rest,
                    _ => return Err(ListError::Malformed),
                }
            }
        };
    }
}

/// Reads the tag at the start of `text`; returns it and the rest.
fn read_tag(text: &[u8]) -> Option<(Tag<'_>, &[u8])> {
    let strong = text.strip_prefix(b"W/");
    let is_weak = strong.is_some();
    let quoted = strong.unwrap_or(text).strip_prefix(b"\"")?;
    let end = quoted.iter().position(|byte| *byte == b'"')?;
    let (opaque, rest) = quoted.split_at(end);
    let is_visible = |byte: &u8| matches!(byte, b'!'..=b'~' | 0x80..);
    opaque
        .iter()
        .all(is_visible)
        .then_some((Tag { is_weak, opaque }, &rest[1..]))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::{Comparison, ListError, Version, Versions, entity_tag, read_list};

    fn read(lines: &[&[u8]], comparison: Comparison) -> Result<Vec<i64>, ListError> {
        let lines: Vec<_> = lines
            .iter()
            .map(|line| HeaderValue::from_bytes(line).unwrap())
            .collect();
        match read_list(lines.iter(), comparison)? {
            Versions::All => Ok(vec![-1]),
            Versions::These(versions) => Ok(versions.into_iter().map(Version::get).collect()),
        }
    }

    fn strong(line: &str) -> Result<Vec<i64>, ListError> {
        read(&[line.as_bytes()], Comparison::Strong)
    }

    #[test]
    fn a_tag_is_a_version_in_quotes() {
        assert_eq!(
            entity_tag(Version::stored(i64::MAX)),
            "\"9223372036854775807\""
        );
        assert_eq!(strong("\"9223372036854775807\""), Ok(vec![i64::MAX]));
        assert_eq!(strong(" \"3\"\t"), Ok(vec![3]));
    }

    #[test]
    fn a_list_may_have_empty_elements_and_several_lines() {
        assert_eq!(strong("\"3\",\"4\" ,\t\"5\""), Ok(vec![3, 4, 5]));
        assert_eq!(strong(",, \"3\" , ,\"4\","), Ok(vec![3, 4]));
        let lines: [&[u8]; 3] = [b"\"3\"", b"", b"\"4\", \"5\""];
        assert_eq!(read(&lines, Comparison::Strong), Ok(vec![3, 4, 5]));
    }

    #[test]
    fn an_asterisk_stands_for_every_version_and_stands_alone() {
        assert_eq!(strong(" * "), Ok(vec![-1]));
        for line in ["*, \"3\"", "\"3\", *", "*,", "**", "*, *", "W/*"] {
            assert_eq!(strong(line), Err(ListError::Malformed), "{line}");
        }
        let lines: [&[u8]; 2] = [b"*", b"*"];
        assert_eq!(read(&lines, Comparison::Strong), Err(ListError::Malformed));
    }

    #[test]
    fn weak_tags_match_in_the_weak_comparison_only() {
        let line: &[u8] = b"W/\"3\", \"4\"";
        assert_eq!(read(&[line], Comparison::Strong), Ok(vec![4]));
        assert_eq!(read(&[line], Comparison::Weak), Ok(vec![3, 4]));
        assert_eq!(strong("W/\"3\""), Ok(vec![]));
    }

    #[test]
    fn a_tag_that_no_user_can_have_matches_nothing() {
        for line in [
            "\"\"",
            "\"0\"",
            "\"03\"",
            "\"+3\"",
            "\"-3\"",
            "\"abc\"",
            "\"a,b\"",
            "\"9223372036854775808\"",
            "\"ж\"",
            r#""3\""#,
        ] {
            assert_eq!(strong(line), Ok(vec![]), "{line}");
        }
        assert_eq!(read(&[b"\"\xff\", \"3\""], Comparison::Weak), Ok(vec![3]));
    }

    #[test]
    fn what_is_no_list_of_tags_is_refused() {
        for line in [
            "",
            ",",
            " , ,",
            "3",
            "\"3",
            "3\"",
            "w/\"3\"",
            "W/3",
            "W/ \"3\"",
            "W\"3\"",
            "\"3\" \"4\"",
            "\"3\"; \"4\"",
            "\"3\"x",
            "\"3 4\"",
            "\"3\", 4",
            "'3'",
            "\"\t\"",
        ] {
            assert_eq!(strong(line), Err(ListError::Malformed), "{line}");
        }
    }

    #[test]
    fn a_list_has_32_tags_at_most() {
        assert_eq!(strong(&vec!["\"3\""; 32].join(",")), Ok(vec![3; 32]));
        assert_eq!(
            strong(&vec!["\"3\""; 33].join(",")),
            Err(ListError::TooLong)
        );
        assert_eq!(
            strong(&vec!["\"x\""; 33].join(",")),
            Err(ListError::TooLong)
        );
    }
}
