//! What a worker counts. No label names a tenant or a job: their number has no bound.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use crate::engine::{ComputePath, PassedOver};

/// How a delivery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    /// Embedded and durable.
    Embedded,
    /// Found done.
    AlreadyDone,
    /// Its job is cancelled.
    Cancelled,
    /// Of an earlier run of its job, or of one that was deleted: dropped.
    Superseded,
    /// Over quota, or something needed is away.
    Later,
    /// Not for this worker: its job asks for a precision that the model here does not have.
    Elsewhere,
    /// Failed, to be tried again.
    Retry,
    /// Refused: the message proves no right to be computed.
    Refused,
    /// Given up.
    Dead,
    /// Handed back by a worker that goes away.
    HandedBack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: Outcome,
}

/// How a synchronous request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Answered {
    /// With vectors.
    Embedded,
    /// With a reason.
    Refused,
    /// Its time was over.
    Late,
    /// Its caller went away.
    Abandoned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnsweredLabel {
    answer: Answered,
}

/// How the model computes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ComputeLabels {
    path: &'static str,
    precision: String,
    /// The faster paths, and why each was not taken.
    passed_over: String,
}

/// The worker's counters.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    chunks: Family<OutcomeLabel, Counter>,
    requests: Family<AnsweredLabel, Counter>,
    compute: Family<ComputeLabels, Gauge>,
    /// Synchronous requests being worked on.
    pub requests_in_flight: Gauge,
    /// Seconds from a synchronous request's receipt to its vectors.
    pub request_seconds: Histogram,
    /// Deliveries being worked on.
    pub chunks_in_flight: Gauge,
    /// Rows with a vector.
    pub rows: Counter,
    /// Rows that failed.
    pub rows_failed: Counter,
    /// Rows whose text was cut off.
    pub rows_truncated: Counter,
    /// Exact tokens through the model.
    pub tokens: Counter,
    /// Seconds in which the model computed; its rate is the model's share of time, 1 being never idle.
    pub model_busy: Counter<f64, AtomicU64>,
    /// Tokens in a batch.
    pub batch_tokens: Histogram,
    /// Seconds from receipt to acknowledgement of an embedded chunk.
    pub chunk_seconds: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("vecmill_worker"),
            chunks: Family::default(),
            requests: Family::default(),
            compute: Family::default(),
            requests_in_flight: Gauge::default(),
            request_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            chunks_in_flight: Gauge::default(),
            rows: Counter::default(),
            rows_failed: Counter::default(),
            rows_truncated: Counter::default(),
            tokens: Counter::default(),
            model_busy: Counter::default(),
            batch_tokens: Histogram::new(exponential_buckets(64.0, 2.0, 11)),
            chunk_seconds: Histogram::new(exponential_buckets(0.05, 2.0, 14)),
        };
        let registry = &mut metrics.registry;
        registry.register("chunks", "Deliveries settled, by outcome", metrics.chunks.clone());
        registry.register("requests", "Synchronous requests, by answer", metrics.requests.clone());
        registry.register("compute", "How the model computes, and why not faster; always 1", metrics.compute.clone());
        let in_flight = metrics.requests_in_flight.clone();
        registry.register("requests_in_flight", "Synchronous requests being worked on", in_flight);
        registry.register_with_unit(
            "request",
            "From receipt of a synchronous request to its vectors",
            Unit::Seconds,
            metrics.request_seconds.clone(),
        );
        registry.register("chunks_in_flight", "Deliveries being worked on", metrics.chunks_in_flight.clone());
        registry.register("rows", "Rows with a vector", metrics.rows.clone());
        registry.register("rows_failed", "Rows that failed", metrics.rows_failed.clone());
        registry.register("rows_truncated", "Rows whose text was cut off", metrics.rows_truncated.clone());
        registry.register("tokens", "Exact tokens through the model", metrics.tokens.clone());
        registry.register_with_unit(
            "model_busy",
            "Time in which the model computed",
            Unit::Seconds,
            metrics.model_busy.clone(),
        );
        registry.register("batch_tokens", "Tokens in a batch", metrics.batch_tokens.clone());
        registry.register_with_unit(
            "chunk",
            "From receipt to settlement of an embedded chunk",
            Unit::Seconds,
            metrics.chunk_seconds.clone(),
        );
        metrics
    }
}

impl Metrics {
    /// Counts a settled delivery.
    pub fn settled(&self, outcome: Outcome) {
        self.chunks.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// Counts a synchronous request.
    pub fn answered(&self, answer: Answered) {
        self.requests.get_or_create(&AnsweredLabel { answer }).inc();
    }

    /// Says how the model computes.
    pub fn computes(&self, path: ComputePath, passed_over: &[PassedOver]) {
        let passed_over = passed_over.iter().map(PassedOver::to_string).collect::<Vec<_>>().join("; ");
        let labels = ComputeLabels { path: path.name(), precision: path.precision().to_string(), passed_over };
        self.compute.get_or_create(&labels).set(1);
    }

    /// The counters in the OpenMetrics text format.
    pub fn exposition(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
