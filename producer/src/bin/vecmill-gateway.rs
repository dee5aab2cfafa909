//! `vecmill-gateway`: what tenants ask with a stock OpenAI client.

fn main() -> std::process::ExitCode {
    vecmill_producer::gateway::main()
}
