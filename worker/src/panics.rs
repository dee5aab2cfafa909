//! What a panic says: where, never what. A library's panic message may quote the text that it choked on.

/// Replaces the default hook, which prints the message, by one that logs the place.
pub fn say_only_where() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        tracing::error!(place, thread, "panic");
    }));
}
