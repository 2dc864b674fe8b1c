//! The `ferry` program; see the library for everything.

fn main() -> std::process::ExitCode {
    vmm::cli::main()
}
