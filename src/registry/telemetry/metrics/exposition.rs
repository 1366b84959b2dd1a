//! The counts as text, in the OpenMetrics format (version 1.0.0). Endpoints and statuses that did not occur yet are left out.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::{HandshakeFailure, Metrics, OTHER_STATUS, STATUSES, TLS_VERSIONS, load};
use crate::registry::api::route::Endpoint;
use crate::registry::telemetry::events::Events;

/// Media type of the text.
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Longest text, in bytes: a line of 350 for each of a thousand repositories (their names have 255), and some kilobytes.
pub const LONGEST: usize = 512 << 10;
/// What every name starts with.
const PREFIX: &str = "localregistry";
/// Stands for all repositories without a line of their own. No repository has such a name.
const OTHER_REPOSITORIES: &str = "(other)";

/// Where the numbers come from.
#[derive(Debug)]
pub struct Exposition(pub(crate) Registry);

#[derive(Debug)]
struct Source {
    metrics: Arc<Metrics>,
    events: Events,
}

impl Exposition {
    /// The text of these counts.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>, events: Events) -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register_collector(Box::new(Source { metrics, events }));
        Self(registry)
    }

    /// The text at present.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        if text::encode(&mut text, &self.0).is_err() {
            // A string takes whatever is written to it: there is nothing else that could fail.
            tracing::warn!("the metrics are cut");
        }
        text
    }
}

impl Collector for Source {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.requests(&mut encoder)?;
        self.bytes(&mut encoder)?;
        self.durations(&mut encoder)?;
        self.repositories(&mut encoder)?;
        self.connections(&mut encoder)?;
        self.faults(&mut encoder)
    }
}

/// A counter's family.
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

impl Source {
    fn requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Requests that are over; status 0 for those that ended before there was a status";
        let mut family = counters(encoder, "requests", help, None)?;
        let names: Vec<String> = STATUSES.iter().map(ToString::to_string).chain([OTHER_STATUS.to_owned()]).collect();
        for (endpoint, traffic) in Endpoint::ALL.iter().zip(&self.metrics.traffic) {
            for (status, counter) in names.iter().zip(&traffic.statuses) {
                if load(counter) > 0 {
                    add(&mut family, &[("endpoint", endpoint.name()), ("status", status)], load(counter))?;
                }
            }
        }
        let help = "Requests under way";
        let mut gauge = encoder.encode_descriptor("requests_in_flight", help, None, MetricType::Gauge)?;
        gauge.encode_gauge(&load(&self.metrics.in_flight.0))
    }

    fn bytes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Bytes of response bodies handed to connections";
        let mut family = counters(encoder, "sent", help, Some(&Unit::Bytes))?;
        for (endpoint, traffic) in Endpoint::ALL.iter().zip(&self.metrics.traffic) {
            if load(&traffic.bytes) > 0 {
                add(&mut family, &[("endpoint", endpoint.name())], load(&traffic.bytes))?;
            }
        }
        Ok(())
    }

    fn durations(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Time from a request's head to the end of its response";
        let mut family = encoder.encode_descriptor("request_duration", help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for (endpoint, traffic) in Endpoint::ALL.iter().zip(&self.metrics.traffic) {
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
        let help = "Connections that were accepted";
        let mut accepted = counters(encoder, "connections_accepted", help, None)?;
        accepted.encode_counter::<NoLabelSet, u64, f64>(&load(&self.metrics.accepted), None)?;
        let mut family = counters(encoder, "tls_handshakes", "TLS handshakes that came to their end", None)?;
        for (version, counter) in TLS_VERSIONS.iter().zip(&self.metrics.handshakes) {
            add(&mut family, &[("version", version)], load(counter))?;
        }
        let mut family = counters(encoder, "tls_handshake_failures", "TLS handshakes that did not, by reason", None)?;
        for (failure, counter) in HandshakeFailure::ALL.iter().zip(&self.metrics.handshake_failures) {
            add(&mut family, &[("reason", failure.name())], load(counter))?;
        }
        Ok(())
    }

    fn faults(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Events that their reader was too slow for";
        let mut dropped = counters(encoder, "events_dropped", help, None)?;
        dropped.encode_counter::<NoLabelSet, u64, f64>(&self.events.dropped(), None)?;
        let help = "Blobs that a disk did not give as its catalog says, by reason";
        let mut family = counters(encoder, "disk_errors", help, None)?;
        for (reason, count) in self.metrics.faults.read() {
            add(&mut family, &[("reason", &reason.code().to_ascii_lowercase())], count)?;
        }
        let help = "Panics, each of which ended one request";
        let mut panics = counters(encoder, "request_panics", help, None)?;
        panics.encode_counter::<NoLabelSet, u64, f64>(&load(&self.metrics.panics), None)
    }
}
