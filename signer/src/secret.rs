//! Secrets come from the environment or from a file, never from an argument: arguments can be seen by every
//! user of the machine.

/// The value of the environment variable `name`, or the first line of the file that `{name}_FILE` names.
/// An empty value counts as none. A file that can't be read counts as none, with a warning.
pub fn secret(name: &str) -> Option<String> {
    let value = std::env::var(name).ok().or_else(|| {
        let path = std::env::var(format!("{name}_FILE")).ok()?;
        match std::fs::read_to_string(&path) {
            Ok(text) => text.lines().next().map(str::to_owned),
            Err(error) => {
                tracing::warn!("{name}_FILE names {path}, which can't be read: {error}");
                None
            }
        }
    });
    value.map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}
