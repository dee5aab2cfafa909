//! `vecmill-worker`: takes chunks from the lanes, embeds them, writes the vectors.

fn main() -> std::process::ExitCode {
    vecmill_worker::cli::main()
}
