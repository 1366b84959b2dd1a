//! Writes the counters in the OpenMetrics text format (version 1.0.0). Endpoints and statuses without requests are omitted.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::{HandshakeFailure, Metrics, OTHER_STATUS, TLS_VERSIONS, load, statuses};
use crate::registry::api::route::Endpoint;
use crate::registry::faults::{Faults, Totals};
use crate::registry::telemetry::events::Events;

/// Media type of the text.
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Maximum size of the text in bytes: 350 for each of 1,000 repositories (a name has up to 255), and some kilobytes.
pub const MAX_BYTES: usize = 512 << 10;
const PREFIX: &str = "localregistry";
/// Label for all repositories without a counter of their own. It is not a valid repository name.
const OTHER_REPOSITORIES: &str = "(other)";

/// Label for all rules of faults without a series of their own. It is not a valid id.
const OTHER_RULES: &str = "(other)";

/// The registry of collectors.
#[derive(Debug)]
pub struct Exposition(pub(crate) Registry);

/// Collects the counters of one server.
#[derive(Debug)]
struct ServerCollector {
    metrics: Arc<Metrics>,
    events: Events,
    faults: Arc<Faults>,
}

impl Exposition {
    /// An exposition of `metrics` and of the events dropped by `events`.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>, events: Events, faults: Arc<Faults>) -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register_collector(Box::new(ServerCollector { metrics, events, faults }));
        Self(registry)
    }

    /// The current text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        if text::encode(&mut text, &self.0).is_err() {
            // Writing to a string cannot fail.
            tracing::warn!("the metrics are truncated");
        }
        text
    }
}

impl Collector for ServerCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.requests(&mut encoder)?;
        self.bytes(&mut encoder)?;
        self.durations(&mut encoder)?;
        self.repositories(&mut encoder)?;
        self.connections(&mut encoder)?;
        self.errors(&mut encoder)?;
        self.fault_hits(&mut encoder)
    }
}

/// Starts a family of counters.
fn counters<'a>(
    encoder: &'a mut DescriptorEncoder<'_>,
    name: &'a str,
    help: &str,
    unit: Option<&'a Unit>,
) -> Result<MetricEncoder<'a>, fmt::Error> {
    encoder.encode_descriptor(name, help, unit, MetricType::Counter)
}

fn add<const N: usize>(family: &mut MetricEncoder<'_>, labels: &[(&str, &str); N], value: u64) -> fmt::Result {
    family.encode_family(labels)?.encode_counter::<NoLabelSet, u64, f64>(&value, None)
}

impl ServerCollector {
    fn requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Completed requests; status 0 if a request ended before its response started";
        let mut family = counters(encoder, "requests", help, None)?;
        let names: Vec<String> = statuses().map(|status| status.to_string()).chain([OTHER_STATUS.to_owned()]).collect();
        for (endpoint, traffic) in Endpoint::all().zip(&self.metrics.traffic) {
            for (status, counter) in names.iter().zip(&traffic.statuses) {
                if load(counter) > 0 {
                    add(&mut family, &[("endpoint", endpoint.name()), ("status", status)], load(counter))?;
                }
            }
        }
        let help = "Requests in progress";
        let mut gauge = encoder.encode_descriptor("requests_in_flight", help, None, MetricType::Gauge)?;
        gauge.encode_gauge(&load(&self.metrics.in_flight.0))
    }

    fn bytes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Bytes of response bodies written to connections";
        let mut family = counters(encoder, "sent", help, Some(&Unit::Bytes))?;
        for (endpoint, traffic) in Endpoint::all().zip(&self.metrics.traffic) {
            if load(&traffic.bytes) > 0 {
                add(&mut family, &[("endpoint", endpoint.name())], load(&traffic.bytes))?;
            }
        }
        Ok(())
    }

    fn durations(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Time from the head of a request to the end of its response";
        let mut family = encoder.encode_descriptor("request_duration", help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for (endpoint, traffic) in Endpoint::all().zip(&self.metrics.traffic) {
            let (buckets, sum) = traffic.duration.read();
            let count = buckets.iter().map(|(_, count)| count).sum();
            if count > 0 {
                let labels = [("endpoint", endpoint.name())];
                family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
            }
        }
        Ok(())
    }

    fn repositories(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Bytes of blobs handed to connections, by repository";
        let mut family = counters(encoder, "blob_sent", help, Some(&Unit::Bytes))?;
        for (repository, bytes) in self.metrics.repositories.read() {
            add(&mut family, &[("repository", &repository)], bytes)?;
        }
        match self.metrics.repositories.shared() {
            0 => Ok(()),
            bytes => add(&mut family, &[("repository", OTHER_REPOSITORIES)], bytes),
        }
    }

    fn connections(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauge = encoder.encode_descriptor("connections", "Open connections", None, MetricType::Gauge)?;
        gauge.encode_gauge(&load(&self.metrics.connections.0))?;
        let help = "Accepted connections";
        let mut accepted = counters(encoder, "connections_accepted", help, None)?;
        accepted.encode_counter::<NoLabelSet, u64, f64>(&load(&self.metrics.accepted), None)?;
        let mut family = counters(encoder, "tls_handshakes", "Completed TLS handshakes", None)?;
        for (version, counter) in TLS_VERSIONS.iter().zip(&self.metrics.handshakes) {
            add(&mut family, &[("version", version)], load(counter))?;
        }
        let mut family = counters(encoder, "tls_handshake_failures", "Failed TLS handshakes by reason", None)?;
        for (failure, counter) in HandshakeFailure::ALL.iter().zip(&self.metrics.handshake_failures) {
            add(&mut family, &[("reason", failure.name())], load(counter))?;
        }
        Ok(())
    }

    /// Rules without a hit are omitted, and so is all of it without any.
    fn fault_hits(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Totals { by_rule, others } = self.faults.totals();
        if by_rule.is_empty() {
            return Ok(());
        }
        let help = "Requests and connections that a rule of the plan of faults acted on";
        let mut family = counters(encoder, "fault_hits", help, None)?;
        for (rule, hits) in by_rule {
            add(&mut family, &[("rule", &rule)], hits)?;
        }
        if others > 0 { add(&mut family, &[("rule", OTHER_RULES)], others) } else { Ok(()) }
    }

    fn errors(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Events dropped because their reader was too slow";
        let mut dropped = counters(encoder, "events_dropped", help, None)?;
        dropped.encode_counter::<NoLabelSet, u64, f64>(&self.events.dropped(), None)?;
        let help = "Blobs that a disk failed to return, by reason";
        let mut family = counters(encoder, "disk_errors", help, None)?;
        for (kind, count) in self.metrics.disk_errors.counts() {
            add(&mut family, &[("reason", &kind.code().to_ascii_lowercase())], count)?;
        }
        let help = "Panics during requests";
        let mut panics = counters(encoder, "request_panics", help, None)?;
        panics.encode_counter::<NoLabelSet, u64, f64>(&load(&self.metrics.panics), None)
    }
}
