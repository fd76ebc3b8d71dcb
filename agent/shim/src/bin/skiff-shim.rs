//! The shim's role alone, for tests and measurements; nodes run it as `skiff-agent shim`.

use std::process::ExitCode;

fn main() -> ExitCode {
    skiff_shim::main(std::env::args_os().skip(1))
}
