//! `vecmill submit` through a gateway: the corpus goes up as it is, and the gateway does what the command does inside.

use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::{output::Failure, submit::Reporter};
use crate::{
    client::{GatewayClient, RemoteBatch},
    source::{Source, Spooled},
    submit::{Submit, Submitted},
};

/// Between two looks at a batch that is being prepared.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Uploads the corpus and has it submitted. `spooled` is the corpus where it is not a file of its own.
pub(super) async fn submit(
    client: &GatewayClient,
    what: &Submit,
    window_hours: u64,
    spooled: Option<&Spooled>,
    reporter: &Reporter,
) -> Result<Submitted, Failure> {
    let corpus = &what.corpus;
    let path: &Path = match (spooled, &corpus.source) {
        (Some(spooled), _) => &spooled.path,
        (None, Source::File(path)) => path,
        (None, source) => return Err(Failure::Input(format!("{source} is not on this machine's disk"))),
    };
    let unreadable = |error| Failure::Input(format!("{} can't be read: {error}", corpus.source));
    let bar = reporter.sending(tokio::fs::metadata(path).await.map_err(unreadable)?.len());
    let name = corpus.source.to_string();
    let file = client.upload(path, name.rsplit('/').next().unwrap_or(&name), move |bytes| bar.inc(bytes)).await?;
    let spec = &what.spec;
    let mut parameters = json!({
        "input_file_id": file,
        "endpoint": "/v1/embeddings",
        "completion_window": format!("{window_hours}h"),
        "model": spec.model,
        "instruction": spec.instruction,
        "input": {
            "format": corpus.format,
            "id_field": corpus.options.id_field,
            "text_field": corpus.options.text_field,
        },
        "output": {"format": "parquet", "dtype": spec.dtype, "dimensions": spec.dimensions},
        "truncate": spec.truncate,
        "strict": corpus.strict,
        "republish": what.republish,
        "delete_input": true,
        "chunk_rows": corpus.cut.chunk_rows,
        "chunk_bytes": corpus.cut.chunk_bytes,
    });
    if let Some(precision) = spec.precision {
        // Left out where it is not asked for: a gateway from before it would refuse the name.
        parameters["output"]["precision"] = json!(precision);
    }
    let mut batch = client.create_batch(&parameters).await?;
    while batch.status == "validating" {
        tokio::time::sleep(LOOK_EVERY).await;
        batch = client.batch(&batch.id).await?;
    }
    for line in batch.bad_lines() {
        if let Some(number) = line.line {
            reporter.rejected(number, &line.code, &line.message);
        }
    }
    match batch.submitted.take() {
        Some(submitted) => Ok(submitted),
        None => Err(refused(&batch)),
    }
}

/// Why there is no job.
fn refused(batch: &RemoteBatch) -> Failure {
    let whole = batch.bad_lines().iter().find(|line| line.line.is_none());
    let Some(reason) = whole else { return Failure::Input(format!("batch {} is {}", batch.id, batch.status)) };
    let sentence = format!("{} [{}]", reason.message, reason.code);
    match reason.code.as_str() {
        "access_denied" => Failure::Refused(sentence),
        _ => Failure::Input(sentence),
    }
}
