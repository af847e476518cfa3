//! The service's binary; see [`user_management_api::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    user_management_api::cli::main()
}
