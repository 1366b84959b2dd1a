//! The endpoints beside the distribution specification's: tokens, health, metrics and the CA certificate.

use http::Response;
use http::request::Parts;

use super::handler::Registry;
use super::route::Beside;
use crate::registry::content::body::Body;
use crate::registry::http::error::RegistryError;
use crate::registry::http::reply;
use crate::registry::limits::PROBE;
use crate::registry::listen::client::{Client, Surface};
use crate::registry::telemetry::metrics::exposition;

const JSON: &str = "application/json";
const PEM: &str = "application/x-pem-file";

impl Registry {
    /// Answers for health and for the CA go to anybody: both are asked for before there is anything to be let in with. On a port of
    /// their own the metrics do, too.
    pub(crate) async fn beside(&self, asked: &Beside, head: &Parts, client: &Client) -> Result<Response<Body>, RegistryError> {
        match asked {
            Beside::Token(scopes) => {
                let token = self.auth.issue(scopes, head, client).await?;
                Ok(reply::momentary(JSON, token))
            }
            Beside::Health => {
                let holdings = self.holdings();
                let probed = self.health.check(PROBE, move || holdings.store().probe()).await;
                probed.map_err(|error| {
                    tracing::warn!(error, "the disk cannot be read");
                    RegistryError::Unhealthy
                })?;
                Ok(reply::momentary(JSON, r#"{"status":"ok"}"#))
            }
            Beside::Metrics => {
                if client.surface != Surface::Observability {
                    self.auth.admit_operator(head, client).await?;
                }
                let room = self.documents.room(exposition::LONGEST).await?;
                Ok(reply::momentary(exposition::MEDIA_TYPE, room.hold(self.exposition.text().into())))
            }
            Beside::Ca => {
                let ca_pem = self.ca_pem.clone().ok_or(RegistryError::PathUnknown)?;
                Ok(reply::momentary(PEM, ca_pem))
            }
        }
    }
}
