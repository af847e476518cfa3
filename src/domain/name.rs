//! The rules that a name or surname must meet.

use std::fmt;

use icu_normalizer::ComposingNormalizerBorrowed;
use icu_properties::props::{BidiControl, DefaultIgnorableCodePoint, GeneralCategory};
use icu_properties::{CodePointMapData, CodePointSetData};

use super::violation::{Rule, Violation};

/// Longest name or surname, in characters, as it is stored.
pub(crate) const NAME_MAX_CHARS: usize = 255;
/// Longest raw text, in characters, before trimming and composition, which can turn four characters
/// into one.
pub(crate) const NAME_MAX_RAW_CHARS: usize = 1_024;

/// A name or surname: trimmed, in Unicode's normal form C, 1 to 255 characters, at least one of
/// them visible, no control characters, bidirectional ones included. `Debug` does not show it,
/// because it is personal data.
#[derive(Clone, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// # Errors
    /// The first of these rules that it breaks: at most 1,024 characters, blank, control character,
    /// bidirectional control, at most 255 characters.
    pub fn parse(raw: &str) -> Result<Self, Violation> {
        let too_long = || {
            let detail = format!("Must be at most {NAME_MAX_CHARS} characters long.");
            Violation::new(Rule::TooLong, detail)
        };
        if raw.chars().nth(NAME_MAX_RAW_CHARS).is_some() {
            return Err(too_long());
        }
        let name = ComposingNormalizerBorrowed::new_nfc().normalize(raw.trim());
        let turns_text = |letter| CodePointSetData::new::<BidiControl>().contains(letter);
        if !name.chars().any(is_visible_or_control) {
            let detail = "Must contain at least one visible character.";
            Err(Violation::new(Rule::Blank, detail))
        } else if name.chars().any(char::is_control) {
            let detail = "Must not contain control characters.";
            Err(Violation::new(Rule::ControlCharacter, detail))
        } else if name.chars().any(turns_text) {
            let detail = "Must not contain bidirectional control characters.";
            Err(Violation::new(Rule::BidiControl, detail))
        } else if name.chars().nth(NAME_MAX_CHARS).is_some() {
            Err(too_long())
        } else {
            Ok(Self(name.into_owned()))
        }
    }

    /// A name from the database: it was parsed when it was written.
    pub const fn stored(name: String) -> Self {
        Self(name)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether the character is visible, or a control character other than white space, which is
/// refused for a more precise reason.
fn is_visible_or_control(letter: char) -> bool {
    use GeneralCategory::{Format, PrivateUse, Unassigned};
    let category = CodePointMapData::<GeneralCategory>::new().get(letter);
    let is_ignorable = || CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(letter);
    !letter.is_whitespace()
        && !matches!(category, Format | PrivateUse | Unassigned)
        && !is_ignorable()
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Name(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::{Name, Rule};

    fn broken(raw: &str) -> Rule {
        Name::parse(raw).unwrap_err().rule
    }

    #[test]
    fn a_name_is_trimmed_and_counted_in_characters() {
        assert_eq!(Name::parse("  Иван\u{3000}\n").unwrap().as_str(), "Иван");
        assert!(Name::parse(&"я".repeat(255)).is_ok());
        assert_eq!(broken(&"я".repeat(256)), Rule::TooLong);
        assert!(Name::parse(&format!("{:1024}", "Иван")).is_ok());
        assert_eq!(broken(&" ".repeat(1_025)), Rule::TooLong);
        for raw in ["a\0b", "a\nb", "\u{85}a\u{7f}", "a\u{9f}b"] {
            assert_eq!(broken(raw), Rule::ControlCharacter, "{raw:?}");
        }
    }

    #[test]
    fn a_name_without_visible_characters_is_blank() {
        for raw in [
            "",
            " \u{a0}\t",
            "\u{200b}\u{200d}",
            "\u{feff}",
            "\u{ad}",
            "\u{202e}",
            "\u{fe0f}",
            "\u{3164}",
            "\u{e000}",
            "\u{f0000}",
            "\u{378} \u{10ffff}",
        ] {
            assert_eq!(broken(raw), Rule::Blank, "{raw:?}");
        }
    }

    #[test]
    fn invisible_characters_within_a_visible_name_stay() {
        for raw in [
            "می\u{200c}خواهم",
            "👩\u{200d}🚀",
            "❤\u{fe0f}",
            "क्\u{200d}ष",
            "a\u{e000}",
        ] {
            assert_eq!(Name::parse(raw).unwrap().as_str(), raw);
        }
    }

    #[test]
    fn bidirectional_control_characters_are_refused() {
        for raw in ["a\u{202e}b", "\u{2066}a\u{2069}", "a\u{200f}", "\u{61c}a"] {
            assert_eq!(broken(raw), Rule::BidiControl, "{raw:?}");
        }
        assert!(Name::parse("אברהם").is_ok());
    }

    #[test]
    fn a_name_is_normalized_to_nfc_before_it_is_measured() {
        assert_eq!(
            Name::parse("И\u{306}оханн e\u{301}").unwrap().as_str(),
            "Йоханн é"
        );
        assert!(Name::parse(&"e\u{301}".repeat(255)).is_ok());
    }
}
