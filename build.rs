//! Without this cargo does not notice a new migration, and the binary would go without it.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
