//! `vecmill-local`: the whole pipeline in one process, for a first look.

fn main() -> std::process::ExitCode {
    vecmill_worker::local::main()
}
