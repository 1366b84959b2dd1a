//! The upstream registries with a meaning of their own: Docker Hub, which has several names, and `localhost`.

/// Docker Hub, which clients mean by a name without a host. It is the upstream of dockerd's `registry-mirrors`; dockerd does not name it
/// when it pulls from a mirror.
pub const DOCKER_HUB: &str = "docker.io";

/// Namespace of Docker Hub's official images. Clients put it before a name of one component: `busybox` is
/// `docker.io/library/busybox` (Docker's package `reference`, `ParseNormalizedNamed`).
pub const LIBRARY: &str = "library";

/// Other hosts of Docker Hub: those that clients connect to, and its former name, which some tools still write.
const HUB_ALIASES: [&str; 2] = ["registry-1.docker.io", "index.docker.io"];

/// podman and buildah name an image that was built as `app` `localhost/app`. A `Host` header of `localhost` names no upstream: it may come
/// from a client on this machine.
pub const LOCALHOST: &str = "localhost";

/// The other hosts of this upstream.
#[must_use]
pub fn aliases(host: &str) -> &'static [&'static str] {
    if host == DOCKER_HUB { &HUB_ALIASES } else { &[] }
}

/// The upstream for which `host` is an alias, or `host` itself.
#[must_use]
pub fn canonical(host: &str) -> &str {
    if HUB_ALIASES.contains(&host) { DOCKER_HUB } else { host }
}
