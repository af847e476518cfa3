//! Architecture tests: which module may import which, and where each library may be used.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// A module of `src/`, and the other modules that it may import.
const MAY_IMPORT: [(&str, &[&str]); 17] = [
    ("trace_id", &[]),
    ("backoff", &[]),
    ("error_chain", &[]),
    ("password", &["domain"]),
    ("shutdown", &[]),
    ("server_url", &[]),
    ("domain", &["trace_id"]),
    ("telemetry", &["domain", "monitoring"]),
    (
        "monitoring",
        &["database", "repository", "domain", "password"],
    ),
    ("database", &["server_url"]),
    ("repository", &["database", "domain", "trace_id"]),
    (
        "batching",
        &["repository", "database", "domain", "monitoring"],
    ),
    (
        "service",
        &["batching", "repository", "database", "domain", "password"],
    ),
    (
        "access",
        &[
            "error_chain",
            "monitoring",
            "repository",
            "database",
            "domain",
        ],
    ),
    (
        "messaging",
        &[
            "backoff",
            "error_chain",
            "repository",
            "database",
            "domain",
            "monitoring",
            "server_url",
            "trace_id",
        ],
    ),
    (
        "http",
        &[
            "access",
            "error_chain",
            "service",
            "monitoring",
            "domain",
            "trace_id",
        ],
    ),
    (
        "config",
        &["database", "domain", "http", "messaging", "telemetry"],
    ),
];

/// A word, and the modules where it may appear.
const LIVES_IN: [(&str, &[&str]); 10] = [
    ("counter!(", &["monitoring"]),
    ("gauge!(", &["monitoring"]),
    ("histogram!(", &["monitoring"]),
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
            let name = path
                .strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
                .unwrap();
            found.push((
                name.to_str().unwrap().to_owned(),
                fs::read_to_string(&path).unwrap(),
            ));
        }
    }
}

fn files() -> Vec<(String, String)> {
    let mut found = Vec::new();
    source_files(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut found,
    );
    assert!(found.len() > 20, "the sources are not where they were");
    found
}

fn room(file: &str) -> &str {
    file.split(['/', '.']).next().unwrap()
}

/// The paths of all `use` declarations: `a::b` and `a::c` of `a::{b, c}`.
fn uses(source: &str) -> Vec<String> {
    let trees = source.split(';').filter_map(|text| {
        let (before, tree) = text.rsplit_once("use ")?;
        let line = before.rsplit('\n').next()?.trim();
        (line.is_empty() || line.starts_with("pub")).then_some(tree)
    });
    let paths = trees.flat_map(|tree| {
        let (module, items) = tree
            .trim_end()
            .trim_end_matches('}')
            .split_once('{')
            .unwrap_or(("", tree));
        assert!(
            !items.contains('{'),
            "one `use` for each module, and not {tree}"
        );
        items
            .split(',')
            .map(move |item| format!("{module}{}", item.trim()))
            .collect::<Vec<_>>()
    });
    paths.filter(|path| !path.ends_with("::")).collect()
}

/// The name of a file's module: `a::b` for `a/b.rs` and `a/b/mod.rs`.
fn module(file: &str) -> String {
    let path = file.trim_end_matches(".rs").trim_end_matches("/mod");
    if path == "lib" {
        String::new()
    } else {
        path.replace('/', "::")
    }
}

/// The modules that a file imports.
fn imports(file: &str, source: &str, modules: &BTreeSet<String>) -> BTreeSet<String> {
    let module = module(file);
    let parent = module.rsplit_once("::").map_or("", |(parent, _)| parent);
    // Tests may import anything.
    if file.ends_with("/tests.rs") {
        return BTreeSet::new();
    }
    let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let absolute = uses(code).into_iter().filter_map(|path| {
        let (root, rest) = path.split_once("::")?;
        match root {
            "crate" => Some(rest.to_owned()),
            "self" => Some(format!("{module}::{rest}")),
            "super" => Some(format!("{parent}::{rest}")),
            _ => None,
        }
    });
    // Paths in the code itself.
    let inline = code.match_indices("crate::").map(|(place, root)| {
        code[place + root.len()..]
            .chars()
            .take_while(|it| it.is_alphanumeric() || "_:".contains(*it))
            .collect()
    });
    let mut imports: BTreeSet<String> = absolute
        .chain(inline)
        .filter_map(|path| innermost(&path, modules))
        .collect();
    imports.remove(&module);
    imports
}

/// The innermost module of a path.
fn innermost(path: &str, modules: &BTreeSet<String>) -> Option<String> {
    let path = path.trim_start_matches("::");
    if modules.contains(path) {
        return Some(path.to_owned());
    }
    innermost(path.rsplit_once("::")?.0, modules)
}

fn all_imports() -> BTreeMap<String, BTreeSet<String>> {
    let files = files();
    let modules = files
        .iter()
        .map(|(file, _)| module(file))
        .filter(|module| !module.is_empty())
        .collect();
    files
        .iter()
        .map(|(file, source)| (file.clone(), imports(file, source, &modules)))
        .collect()
}

#[test]
fn every_module_imports_only_what_it_may() {
    for (file, imports) in all_imports() {
        let room = room(&file);
        if ["main", "lib", "cli", "app"].contains(&room) {
            continue;
        }
        let (_, allowed) = MAY_IMPORT
            .iter()
            .find(|(name, _)| *name == room)
            .unwrap_or_else(|| panic!("{file} has no walls"));
        for import in imports {
            let imported = import.split("::").next().unwrap();
            assert!(
                imported == room || allowed.contains(&imported),
                "{file} imports {import}"
            );
        }
    }
}

#[test]
fn every_allowed_import_is_used() {
    let imports = all_imports();
    let is_used = |name: &str, allowed: &str| {
        let of_room = imports.iter().filter(|(file, _)| room(file) == name);
        let mut imported = of_room.flat_map(|(_, imports)| imports);
        imported.any(|import| import.split("::").next() == Some(allowed))
    };
    let grants = MAY_IMPORT
        .iter()
        .flat_map(|(name, allowed)| allowed.iter().map(move |allowed| (*name, *allowed)));
    let unused: Vec<_> = grants
        .filter(|(name, allowed)| !is_used(name, allowed))
        .collect();
    assert_eq!(unused, []);
}

#[test]
fn no_import_is_circular() {
    let imports: BTreeMap<String, BTreeSet<String>> = all_imports()
        .into_iter()
        .map(|(file, imports)| (module(&file), imports))
        .collect();
    for start in imports.keys() {
        let mut reached = BTreeSet::new();
        let mut next = vec![start];
        while let Some(module) = next.pop() {
            let further = imports.get(module).into_iter().flatten();
            next.extend(further.filter(|further| reached.insert(*further)));
        }
        assert!(
            !reached.contains(start),
            "{start} imports itself by way of some of {reached:?}"
        );
    }
}

#[test]
fn every_library_is_used_only_in_its_modules() {
    for (file, source) in files() {
        let code: String = source
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .collect::<Vec<_>>()
            .join("\n");
        for (word, rooms) in LIVES_IN {
            assert!(
                !code.contains(word) || rooms.contains(&room(&file)),
                "`{word}` in {file}"
            );
        }
    }
}

#[test]
fn the_scheduler_does_no_io_and_reads_no_clock() {
    let files = files();
    let schedule = files.iter().filter(|(file, _)| {
        file.starts_with("messaging/schedule/") && !file.contains("simulation")
    });
    for (file, source) in schedule {
        // The rows themselves do no I/O.
        let source = source.replace("repository::outbox_event", "");
        for word in [
            "sqlx",
            "lapin",
            "repository",
            "Instant::now",
            "async",
            "metrics",
            "tracing",
        ] {
            assert!(!source.contains(word), "`{word}` in {file}");
        }
    }
}

#[test]
fn grouped_imports_are_understood() {
    let source = "use crate::domain::{\n    a, b,\n};\nuse crate::domain::b::c;\npub use \
                  crate::http::x;\nuse super::service::{self, d};";
    let modules = ["a", "domain", "domain::b", "service", "http"]
        .map(str::to_owned)
        .into();
    let imported = imports("a/mod.rs", source, &modules);
    assert_eq!(
        imported.into_iter().collect::<Vec<_>>(),
        ["domain", "domain::b", "http", "service"]
    );
}

#[test]
fn every_target_has_a_path_so_the_image_builds_without_tests() {
    for target in include_str!("../Cargo.toml").split("\n[[").skip(1) {
        assert!(
            target.contains("\npath = "),
            "cargo would look for the file of [[{target}"
        );
    }
}
