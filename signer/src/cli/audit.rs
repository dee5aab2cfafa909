//! `vecmill-signer audit`.

use clap::{Args, value_parser};

use super::table::{moment, table};
use super::{Context, Output};
use crate::claims::TenantId;
use crate::server::AUDIT_LIMIT_DEFAULT;
use crate::store::{AuditFilter, EVENTS_MAX};

#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    /// Only what concerns this tenant
    #[arg(long, env = "VECMILL_SIGNER_TENANT", value_name = "NAME")]
    tenant: Option<TenantId>,
    /// How many events, newest first
    #[arg(long, env = "VECMILL_SIGNER_LIMIT", value_name = "N", default_value_t = AUDIT_LIMIT_DEFAULT, value_parser = value_parser!(u32).range(1..=i64::from(EVENTS_MAX)))]
    limit: u32,
    /// Only events before this number: where the last list ended
    #[arg(long, env = "VECMILL_SIGNER_BEFORE", value_name = "NUMBER")]
    before: Option<u64>,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(context: &Context, args: AuditArgs) -> anyhow::Result<()> {
    let filter = AuditFilter { tenant: args.tenant, before_seq: args.before, limit: args.limit };
    let events = context.store().await?.audit(&filter).await?;
    args.output.print(&events, || {
        let rows = events.iter().map(|event| {
            let tenant = event.tenant.clone().unwrap_or_else(|| "-".to_owned());
            let change = match (&event.before, &event.after) {
                (None, None) => String::new(),
                (None, Some(after)) => after.to_string(),
                (Some(before), None) => format!("was {before}"),
                (Some(before), Some(after)) => differing(before, after),
            };
            let [actor, subject] = [event.actor.clone(), event.subject.clone()];
            [event.seq.to_string(), moment(event.at_s), actor, event.action.clone(), tenant, subject, change]
        });
        table(["number", "when", "who", "what", "tenant", "of", "change"], rows)
    })
}

/// What is not the same in both, leaf by leaf: a tenant has fourteen settings, and one changes.
fn differing(before: &serde_json::Value, after: &serde_json::Value) -> String {
    fn walk(path: &str, before: &serde_json::Value, after: &serde_json::Value, changes: &mut Vec<String>) {
        let (Some(old), Some(new)) = (before.as_object(), after.as_object()) else {
            if before != after {
                changes.push(format!("{path}: {before} -> {after}"));
            }
            return;
        };
        let names: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).collect();
        for name in names {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let [old, new] = [old, new].map(|object| object.get(name).unwrap_or(&serde_json::Value::Null));
            walk(&path, old, new, changes);
        }
    }
    let mut changes = Vec::new();
    walk("", before, after, &mut changes);
    changes.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_changed_is_shown() {
        let (before, after) = (json!({"a": {"b": 1, "c": [1]}, "d": null}), json!({"a": {"b": 2, "c": [1]}, "e": "x"}));
        assert_eq!(differing(&before, &after), "a.b: 1 -> 2, e: null -> \"x\"");
        assert_eq!(differing(&before, &before), "");
    }
}
