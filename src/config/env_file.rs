//! Reads `.env`. Other tools may share it, so it may hold lines that only they understand.
//! `setup.sh` reads it by the same rules. dotenvy would silently remove `$word` from a password,
//! and reject the whole file because of another tool's line.
//!
//! A line is `NAME=value`, optionally after `export`. A value in single quotes is literal; in
//! double quotes, `\"`, `\\`, `\$` and `\n` are escapes; without quotes, it ends at ` #` or the
//! end of the line, and `\$` is the only escape. `$NAME` and `${NAME}` expand to a variable,
//! except in single quotes; if there is no such variable, they stay as they are.

use std::collections::HashMap;

pub(crate) struct EnvFile {
    pub entries: HashMap<String, String>,
    /// One for each line that was skipped.
    pub warnings: Vec<String>,
}

/// Parses the file. `variable` looks up a variable of the environment; `is_ours` tells whether a
/// name is one of our settings.
///
/// # Errors
/// One for each line that sets one of ours and cannot be read.
pub(crate) fn parse(
    text: &str,
    variable: impl Fn(&str) -> Option<String>,
    is_ours: impl Fn(&str) -> bool,
) -> Result<EnvFile, Vec<String>> {
    let mut file = EnvFile {
        entries: HashMap::new(),
        warnings: Vec::new(),
    };
    let mut faults = Vec::new();
    for (number, line) in (1..).zip(text.trim_start_matches('\u{feff}').lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((name, raw)) = split(line) else {
            file.warnings.push(format!(
                ".env, line {number}: left out, because it is not of the form NAME=value"
            ));
            continue;
        };
        let known = |name: &str| variable(name).or_else(|| file.entries.get(name).cloned());
        match value(raw, known) {
            Ok(value) => _ = file.entries.insert(name.to_owned(), value),
            Err(fault) if is_ours(name) => {
                faults.push(format!(".env, line {number}: {name}: {fault}"));
            }
            Err(fault) => file
                .warnings
                .push(format!(".env, line {number}: {name} is left out: {fault}")),
        }
    }
    if faults.is_empty() {
        Ok(file)
    } else {
        Err(faults)
    }
}

/// The name and what follows the `=`.
fn split(line: &str) -> Option<(&str, &str)> {
    let (name, raw) = line.split_once('=')?;
    let exported = name
        .strip_prefix("export")
        .filter(|rest| rest.starts_with([' ', '\t']));
    let name = exported.unwrap_or(name).trim();
    let is_name = !name.starts_with(|first: char| first.is_ascii_digit())
        && !name.is_empty()
        && name
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || "_.-".contains(letter));
    is_name.then_some((name, raw.trim()))
}

fn value(raw: &str, known: impl Fn(&str) -> Option<String>) -> Result<String, &'static str> {
    match raw.chars().next() {
        Some('\'') => {
            let (text, rest) = raw[1..].split_once('\'').ok_or("its quote is not closed")?;
            nothing_behind(rest).map(|()| text.to_owned())
        }
        Some('"') => {
            let (text, rest) = expand(&raw[1..], true, known);
            nothing_behind(rest.ok_or("its quote is not closed")?).map(|()| text)
        }
        _ => {
            let end = if raw.starts_with('#') { 0 } else { raw.len() };
            let end = raw[..end]
                .find(" #")
                .or_else(|| raw[..end].find("\t#"))
                .unwrap_or(end);
            Ok(expand(raw[..end].trim_end(), false, known).0)
        }
    }
}

fn nothing_behind(rest: &str) -> Result<(), &'static str> {
    let rest = rest.trim_start();
    if rest.is_empty() || rest.starts_with('#') {
        Ok(())
    } else {
        Err("something follows its closing quote")
    }
}

/// Returns the expanded text, and what follows its closing double quote, if there is one.
fn expand(
    text: &str,
    is_quoted: bool,
    known: impl Fn(&str) -> Option<String>,
) -> (String, Option<&str>) {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        let next = rest[letter.len_utf8()..].chars().next();
        match (letter, next) {
            ('"', _) if is_quoted => return (expanded, Some(&rest[1..])),
            ('\\', Some('$')) => {
                expanded.push('$');
                rest = &rest[2..];
            }
            ('\\', Some(escaped @ ('"' | '\\' | 'n'))) if is_quoted => {
                expanded.push(if escaped == 'n' { '\n' } else { escaped });
                rest = &rest[2..];
            }
            ('$', _) if let Some((value, length)) = variable_at(rest, &known) => {
                expanded.push_str(&value);
                rest = &rest[length..];
            }
            _ => {
                expanded.push(letter);
                rest = &rest[letter.len_utf8()..];
            }
        }
    }
    (expanded, None)
}

/// The value of the variable that `text` begins with, and the length of `$NAME` or `${NAME}`.
fn variable_at(text: &str, known: impl Fn(&str) -> Option<String>) -> Option<(String, usize)> {
    let is_braced = text.starts_with("${");
    let start = if is_braced { 2 } else { 1 };
    let end = text[start..]
        .find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
        .map_or(text.len(), |end| start + end);
    let name = &text[start..end];
    if is_braced && !text[end..].starts_with('}')
        || name.starts_with(|first: char| first.is_ascii_digit())
    {
        return None;
    }
    known(name).map(|value| (value, end + usize::from(is_braced)))
}

#[cfg(test)]
mod tests {
    use super::{EnvFile, parse};

    fn read(text: &str) -> Result<EnvFile, Vec<String>> {
        parse(
            text,
            |name| (name == "HOME").then(|| "/home".to_owned()),
            |name| name.starts_with("OUR_"),
        )
    }

    #[test]
    fn env_values_are_parsed_with_quotes_escapes_and_comments() {
        for (line, value) in [
            ("A=plain", "plain"),
            ("A = plain # a comment", "plain"),
            ("export A=x#y", "x#y"),
            ("A=two words", "two words"),
            ("A=", ""),
            ("A=  # default", ""),
            ("export\tA=#", ""),
            (r"A='$HOME \n'", r"$HOME \n"),
            (r#"A="a \"b\" \\ \$HOME" # c"#, r#"a "b" \ $HOME"#),
            ("A=pa$word", "pa$word"),
            ("A=pa$", "pa$"),
            ("A=${word}$1$$", "${word}$1$$"),
            ("A=$HOME/x${HOME}y", "/home/x/homey"),
            (r"A=\$HOME\d", r"$HOME\d"),
            (r#"A="pa$word""#, "pa$word"),
        ] {
            assert_eq!(read(line).unwrap().entries["A"], value, "{line}");
        }
        assert_eq!(read("A=1\nA=$A$A\n").unwrap().entries["A"], "11");
    }

    #[test]
    fn unreadable_lines_are_named_by_number_if_ours_else_skipped() {
        let file =
            read("\u{feff}OUR_A=1\r\nTHEIRS='-----BEGIN\nsecret\n-----END'\n\nOUR_B=2").unwrap();
        assert_eq!(
            (
                file.entries["OUR_A"].as_str(),
                file.entries["OUR_B"].as_str()
            ),
            ("1", "2")
        );
        assert_eq!(file.warnings.len(), 3, "{:?}", file.warnings);
        assert!(
            file.warnings[0].contains("line 2")
                && file
                    .warnings
                    .iter()
                    .all(|warning| !warning.contains("secret"))
        );
        let faults = read("THEIRS='\nOUR_A='secret\nOUR_B=\"secret\" secret")
            .err()
            .unwrap();
        assert_eq!(faults.len(), 2);
        assert!(
            faults[0].contains("line 2: OUR_A") && faults[1].contains("line 3: OUR_B"),
            "{faults:?}"
        );
        assert!(faults.iter().all(|fault| !fault.contains("secret")));
    }
}
