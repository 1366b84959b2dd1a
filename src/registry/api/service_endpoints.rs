//! The endpoints that the distribution specification does not define: tokens, health, metrics and the CA certificate.

use http::Response;
use http::request::Parts;

use super::handler::Registry;
use super::route::ServiceEndpoint;
use crate::registry::content::body::Payload;
use crate::registry::http::error::RegistryError;
use crate::registry::http::reply;
use crate::registry::limits::HEALTH_TIMEOUT;
use crate::registry::listen::client::{Client, Surface};
use crate::registry::telemetry::metrics::exposition;

const JSON: &str = "application/json";
const PEM: &str = "application/x-pem-file";

impl Registry {
    /// Health and the CA certificate need no credentials: clients request them before they have any. Metrics need none on a port of
    /// their own.
    pub(crate) async fn serve_service_endpoint(
        &self,
        endpoint: &ServiceEndpoint,
        head: &Parts,
        client: &Client,
    ) -> Result<Response<Payload>, RegistryError> {
        match endpoint {
            ServiceEndpoint::Token(scopes) => {
                let token = self.auth.issue(scopes, head, client).await?;
                Ok(reply::uncached(JSON, token))
            }
            ServiceEndpoint::Health => {
                let snapshot = self.snapshot();
                let probed = self.health.check(HEALTH_TIMEOUT, move || snapshot.store().probe()).await;
                probed.map_err(|error| {
                    tracing::warn!(error, "the health probe of the disk failed");
                    RegistryError::Unhealthy
                })?;
                Ok(reply::uncached(JSON, r#"{"status":"ok"}"#))
            }
            ServiceEndpoint::Metrics => {
                if client.surface != Surface::Observability {
                    self.auth.admit_operator(head, client).await?;
                }
                let permit = self.response_memory.acquire(exposition::MAX_BYTES).await?;
                Ok(reply::uncached(exposition::MEDIA_TYPE, permit.attach(self.exposition.text().into())))
            }
            ServiceEndpoint::Ca => {
                let ca_pem = self.ca_pem.clone().ok_or(RegistryError::PathUnknown)?;
                Ok(reply::uncached(PEM, ca_pem))
            }
        }
    }
}
