//! `vecmill`: submit a corpus, watch it, fetch the vectors.

fn main() -> std::process::ExitCode {
    vecmill_producer::cli::main()
}
