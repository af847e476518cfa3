//! The walls of the house: which module may import which, and which library lives where.

use std::{collections::BTreeSet, fs, path::Path};

/// A room of `src/`, the rooms of ours that it may import, and itself.
const MAY_IMPORT: [(&str, &[&str]); 15] = [
    ("trace_id", &[]),
    ("backoff", &[]),
    ("password", &[]),
    ("shutdown", &[]),
    ("domain", &["trace_id"]),
    ("telemetry", &["domain"]),
    ("monitoring", &["database", "repository", "domain", "password"]),
    ("database", &["domain", "trace_id"]),
    ("repository", &["database", "domain", "trace_id"]),
    ("service", &["repository", "database", "domain", "password", "trace_id"]),
    ("messaging", &["backoff", "repository", "database", "domain", "monitoring", "trace_id"]),
    ("server", &[]),
    ("http", &["service", "monitoring", "domain", "server", "trace_id"]),
    ("config", &["database", "domain", "http", "messaging", "server", "telemetry"]),
    (
        "cli",
        &[
            "app",
            "config",
            "database",
            "domain",
            "http",
            "messaging",
            "monitoring",
            "repository",
            "shutdown",
            "telemetry",
        ],
    ),
];

/// A word, and the rooms where it may stand.
const LIVES_IN: [(&str, &[&str]); 7] = [
    ("utoipa", &["http"]),
    ("axum", &["http", "app", "cli"]),
    ("lapin::", &["messaging", "telemetry"]), // in `telemetry`, the target of its log lines
    ("sqlx::query", &["repository", "database"]),
    ("StatusCode", &["http", "cli"]),
    ("std::env", &["config"]),
    ("user_events", &["messaging", "http"]), // in `http`, the document's text alone
];

fn source_files(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            source_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
            found.push((name.to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap()));
        }
    }
}

fn files() -> Vec<(String, String)> {
    let mut found = Vec::new();
    source_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    assert!(found.len() > 20, "the sources are not where they were");
    found
}

fn room(file: &str) -> &str {
    file.split(['/', '.']).next().unwrap()
}

/// The rooms that a file names after `crate::`, grouped imports included.
fn imports(source: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    for (place, _) in source.match_indices("crate::") {
        let rest = &source[place + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            rooms.push(identifier(rest));
            continue;
        };
        let mut depth = 0;
        let mut at_name = true;
        for (index, letter) in group.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => at_name = true,
                _ if at_name && depth == 0 && letter.is_alphabetic() => {
                    rooms.push(identifier(&group[index..]));
                    at_name = false;
                }
                _ => {}
            }
        }
    }
    rooms
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

#[test]
fn every_room_imports_only_what_it_may() {
    for (file, source) in files() {
        let room = room(&file);
        if ["main", "lib", "app"].contains(&room) {
            continue;
        }
        let (_, allowed) =
            MAY_IMPORT.iter().find(|(name, _)| *name == room).unwrap_or_else(|| panic!("{file} has no walls"));
        for import in imports(&source) {
            assert!(import == room || allowed.contains(&import.as_str()), "{file} imports {import}");
        }
    }
}

#[test]
fn every_library_lives_where_it_should() {
    for (file, source) in files() {
        let code: String =
            source.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        for (word, rooms) in LIVES_IN {
            assert!(!code.contains(word) || rooms.contains(&room(&file)), "`{word}` in {file}");
        }
    }
}

/// The names after `counter!(`, `gauge!(` and `histogram!(`, or with `mark` in place of `!(`.
fn metrics(source: &str, mark: &str) -> BTreeSet<String> {
    let kinds = ["counter", "gauge", "histogram"].map(|kind| format!("{kind}{mark}"));
    let places = kinds.iter().flat_map(|kind| source.match_indices(kind).map(|(place, _)| place + kind.len()));
    let names = places.filter_map(|place| source[place..].trim_start().strip_prefix('"')?.split('"').next());
    names.map(str::to_owned).collect()
}

#[test]
fn every_metric_is_in_the_catalogue_and_all_of_the_catalogue_is_recorded() {
    let files = files();
    let (_, catalogue) = files.iter().find(|(file, _)| file == "monitoring/catalogue.rs").unwrap();
    let recorded: BTreeSet<String> = files.iter().flat_map(|(_, source)| metrics(source, "!(")).collect();
    assert_eq!(metrics(catalogue, "("), recorded);
}

#[test]
fn grouped_imports_are_understood() {
    let source =
        "use crate::{\n    domain::{a, b::{c}},\n    service::users,\n};\nuse crate::http::x; crate::monitoring::y()";
    assert_eq!(imports(source), ["domain", "service", "http", "monitoring"]);
}
