//! The binary: everything is in the library, so that tests and simulations meet the same code.

use std::process::ExitCode;

/// Faster than the system's for the many small allocations of a request, and it gives memory back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    isle::cli::run()
}
