//! The program `weftd`. All of it is in the library beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    weftd::main()
}
