//! The upstream registries whose images are served, and the other host names that clients use for them.

/// Hosts that clients connect to for `docker.io`.
const ALIASES: [(&str, &str); 2] = [("registry-1.docker.io", DOCKER_HUB), ("index.docker.io", DOCKER_HUB)];

/// The upstream of dockerd's `registry-mirrors`. dockerd does not name it when it pulls from a mirror.
pub const DOCKER_HUB: &str = "docker.io";

/// podman and buildah name an image that was built as `app` `localhost/app`. A `Host` header of `localhost` names no upstream: it may come
/// from a client on this machine.
pub const LOCALHOST: &str = "localhost";

/// All aliases, each with its upstream.
pub fn aliases() -> impl Iterator<Item = (&'static str, &'static str)> {
    ALIASES.into_iter()
}

/// The upstream for which `host` is an alias, or `host` itself.
#[must_use]
pub fn canonical(host: &str) -> &str {
    ALIASES.iter().find(|(alias, _)| *alias == host).map_or(host, |(_, upstream)| upstream)
}
