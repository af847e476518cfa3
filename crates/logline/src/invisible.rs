//! Escapes invisible characters that change how a log line looks, so that logged text cannot forge
//! lines.

use std::borrow::Cow;
use std::fmt::Write;

/// Returns the line with DEL, C1 controls, line separators, tags and bidirectional control
/// characters as `\uXXXX`, which means the same in a JSON string.
pub fn escaped(line: &[u8]) -> Cow<'_, [u8]> {
    // Branch-free, so that the compiler can vectorize it: nearly every line returns here.
    if line.iter().fold(0, |most, byte| most.max(*byte)) < 0x7F {
        return line.into();
    }
    match str::from_utf8(line) {
        Ok(text) if text.contains(is_invisible) => {
            let mut shown = String::with_capacity(line.len() + 64);
            for letter in text.chars() {
                if is_invisible(letter) {
                    for unit in letter.encode_utf16(&mut [0; 2]) {
                        _ = write!(shown, "\\u{unit:04x}");
                    }
                } else {
                    shown.push(letter);
                }
            }
            shown.into_bytes().into()
        }
        _ => line.into(),
    }
}

/// Whether the character is invisible and changes how the text around it looks or is read.
pub fn is_invisible(letter: char) -> bool {
    matches!(
        letter,
        '\u{7F}'..='\u{9F}' | '\u{61C}' | '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{E0000}'..='\u{E007F}'
    )
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::escaped;

    #[test]
    fn characters_that_would_disguise_a_line_are_escaped() {
        let line = "{\"path\":\"a\u{7f}\u{9b}31m\u{202e}b\u{2066}\u{61c}\u{2028}\u{e0041}\"}";
        let shown = String::from_utf8(escaped(line.as_bytes()).into_owned()).unwrap();
        assert_eq!(
            shown,
            r#"{"path":"a\u007f\u009b31m\u202eb\u2066\u061c\u2028\udb40\udc41"}"#
        );
        let read: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(
            read,
            serde_json::from_str::<serde_json::Value>(line).unwrap()
        );
    }

    #[test]
    fn all_other_characters_stay_unchanged() {
        for line in ["{\"name\":\"Иван 😀 e\u{301}\"}\n", "plain\n"] {
            assert!(
                matches!(escaped(line.as_bytes()), Cow::Borrowed(same) if same == line.as_bytes())
            );
        }
        assert!(matches!(escaped(b"\xff\xfe"), Cow::Borrowed(_)));
    }
}
