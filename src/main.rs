//! The service's binary; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    user_management_api::main()
}
