//! `vecmill submit`.

use indicatif::ProgressBar;
use std::sync::{Arc, Mutex};

use super::{
    connection::Connection,
    door::Door,
    output::{Failure, bar, grouped, print_json, spinner},
    status::wait_for_the_end,
    through_gateway,
};
use crate::{
    contract::{Dtype, JobSpec, Precision, Truncate},
    prepare::{Corpus, Event},
    read::{InputFormat, ReadOptions},
    source::Source,
    split::Cut,
    status::JobState,
    submit::{Submit, Submitted, submit},
    topology::BrokerSettings,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Corpus: a file, `-` for standard input, or s3://bucket/key; gzip and zstd are seen through
    corpus: Source,
    /// How to read it; by default what its name says
    #[arg(long, env = "VECMILL_FORMAT", value_enum)]
    format: Option<InputFormat>,
    /// Field or column of the texts' ids
    #[arg(long, env = "VECMILL_ID_FIELD", value_name = "NAME", default_value = "id")]
    id_field: String,
    /// Field or column of the texts
    #[arg(long, env = "VECMILL_TEXT_FIELD", value_name = "NAME", default_value = "text")]
    text_field: String,
    /// Model to embed with, as the signer's allow-list names it
    #[arg(long, env = "VECMILL_MODEL", value_name = "NAME", default_value = "Qwen/Qwen3-Embedding-4B")]
    model: String,
    /// Length of the vectors: 32 up to the model's hidden size
    #[arg(long, env = "VECMILL_DIMENSIONS", value_name = "N", default_value_t = 1024)]
    dimensions: u32,
    /// Element type of the stored vectors
    #[arg(long, env = "VECMILL_DTYPE", value_enum, default_value_t)]
    dtype: Dtype,
    /// Precision to compute in; left out, that of whichever worker takes a chunk
    #[arg(long, env = "VECMILL_PRECISION", value_enum)]
    precision: Option<Precision>,
    /// Task that the texts are queries for; leave out for documents
    #[arg(long, env = "VECMILL_INSTRUCTION", value_name = "TASK")]
    instruction: Option<String>,
    /// What becomes of a text with more tokens than the model takes
    #[arg(long, env = "VECMILL_TRUNCATE", value_enum, default_value_t)]
    truncate: Truncate,
    #[command(flatten)]
    cut: Cut,
    /// Hours within which the job must be done
    #[arg(long, env = "VECMILL_WINDOW_HOURS", value_name = "H", default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=168))]
    window_hours: u64,
    /// Refuse the whole job when any row is bad
    #[arg(long, env = "VECMILL_STRICT")]
    strict: bool,
    /// Publish a running job's messages again, for a broker that lost its queues
    #[arg(long, env = "VECMILL_REPUBLISH")]
    republish: bool,
    /// Wait until the job has ended
    #[arg(long, env = "VECMILL_WAIT")]
    wait: bool,
    /// Print the result as JSON
    #[arg(long, env = "VECMILL_JSON")]
    json: bool,
    #[command(flatten)]
    broker: BrokerSettings,
    #[command(flatten)]
    connection: Connection,
}

impl Args {
    fn submit(&self) -> Result<Submit, Failure> {
        let named = self.format.or_else(|| InputFormat::from_name(&self.corpus.to_string()));
        let format = match (named, &self.corpus) {
            (Some(format), _) => format,
            (None, Source::Stdin) => InputFormat::Jsonl,
            (None, source) => {
                return Err(Failure::Settings(vec![format!(
                    "{source}: its name does not say how to read it; give --format jsonl, parquet, csv or lines"
                )]));
            }
        };
        let options = ReadOptions {
            id_field: self.id_field.clone(),
            text_field: self.text_field.clone(),
            dimensions: Some(self.dimensions),
            model: Some(self.model.clone()),
            ..ReadOptions::default()
        };
        Ok(Submit {
            spec: JobSpec {
                model: self.model.clone(),
                dimensions: self.dimensions,
                dtype: self.dtype,
                instruction: self.instruction.clone(),
                truncate: self.truncate,
                precision: self.precision,
            },
            corpus: Corpus { source: self.corpus.clone(), format, options, cut: self.cut, strict: self.strict },
            window_s: self.window_hours * 3600,
            republish: self.republish,
        })
    }
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let what = args.submit()?;
    let door = args.connection.door(Some(&args.broker)).await?;
    let reporter = Reporter::new(args.corpus.to_string());
    let submitted = match &door {
        Door::Cluster { store, signer, broker } => {
            let report = {
                let reporter = reporter.clone();
                move |event| reporter.on(event)
            };
            let broker = broker.clone().unwrap_or_else(|| args.broker.clone());
            submit(store, signer, &broker, what, report).await.map_err(Failure::from)
        }
        Door::Gateway(client) => {
            let spooled = match &what.corpus.source {
                // No need to read it first.
                Source::File(_) => None,
                source => {
                    let spooled = source.spool(&args.connection.store().await).await;
                    Some(spooled.map_err(|error| Failure::Input(error.to_string()))?)
                }
            };
            through_gateway::submit(client, &what, args.window_hours, spooled.as_ref(), &reporter).await
        }
    };
    reporter.finish();
    let submitted = submitted?;
    if !args.wait {
        say(&submitted, args.json);
        return Ok(());
    }
    if !args.json {
        say(&submitted, false);
    }
    let watching = door.watch(&submitted.job).await?;
    wait_for_the_end(watching, &submitted.job, args.json).await
}

fn say(submitted: &Submitted, json: bool) {
    if json {
        return print_json(submitted);
    }
    let Submitted { job, rows, rejected, chunks, published, was, .. } = submitted;
    let (rows, chunks) = (grouped(*rows), grouped(u64::from(*chunks)));
    match was {
        JobState::Completed => {
            println!("job {job} is complete already: {rows} texts; fetch them with: vecmill get {job} --out DIR")
        }
        JobState::Queued | JobState::Running | JobState::Finalizing if *published == 0 => {
            println!(
                "job {job} is {was} already: {rows} texts in {chunks} chunks; watch it with: vecmill status {job} --watch"
            );
        }
        JobState::Validating => {
            println!("job {job}: {rows} texts in {chunks} chunks; watch it with: vecmill status {job} --watch");
        }
        was => println!(
            "job {job} was {was}: {published} of {chunks} chunks go on; watch it with: vecmill status {job} --watch"
        ),
    }
    if *rejected > 0 {
        eprintln!("vecmill: {} rows could not be used; the good ones go on", grouped(*rejected));
    }
}

/// Says that a job asks for what nobody has at the moment. It is no error: a worker may be on its way.
pub(super) fn nobody_computes(precision: Precision) {
    eprintln!("vecmill: no worker computes in {precision} now: the job waits for one started with --dtype {precision}");
}

/// Turns events into bars, and every bad row into a line on standard error.
#[derive(Clone)]
pub(super) struct Reporter {
    corpus: String,
    bar: Arc<Mutex<ProgressBar>>,
}

impl Reporter {
    fn new(corpus: String) -> Self {
        Self { corpus, bar: Arc::new(Mutex::new(spinner("uploading"))) }
    }

    pub(super) fn on(&self, event: Event) {
        let mut bar_slot = self.bar.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match event {
            Event::Hashed(_) => {}
            Event::Rejected(bad) => {
                drop(bar_slot);
                self.rejected(bad.line, bad.code, &bad.reason);
            }
            Event::Uploaded(rows) => bar_slot.inc(u64::from(rows)),
            Event::Publishing(messages) => {
                bar_slot.finish_and_clear();
                *bar_slot = bar(u64::from(messages), "chunks").with_message("publishing");
            }
            Event::Published => bar_slot.inc(1),
            Event::NobodyComputes(precision) => bar_slot.suspend(|| nobody_computes(precision)),
        }
    }

    /// A bar of the corpus' bytes on their way to a gateway.
    pub(super) fn sending(&self, bytes: u64) -> ProgressBar {
        let mut bar_slot = self.bar.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        bar_slot.finish_and_clear();
        *bar_slot = bar(bytes, "bytes").with_message("uploading");
        bar_slot.clone()
    }

    /// A row that can't be used.
    pub(super) fn rejected(&self, line: u64, code: &str, reason: &str) {
        let bar_slot = self.bar.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        bar_slot.suspend(|| eprintln!("{}:{line}: {reason} [{code}]", self.corpus));
    }

    fn finish(&self) {
        self.bar.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).finish_and_clear();
    }
}
