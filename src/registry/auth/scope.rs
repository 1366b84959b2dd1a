//! The scopes of tokens (distribution token protocol, "Token Scope Documentation").

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::oci::Repository;
use crate::registry::http::error::RegistryError;
use crate::registry::limits::SCOPES;

/// The scope that a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope<'a> {
    /// Any valid token.
    Any,
    /// Listing the repositories.
    Catalog,
    /// Pulling from this repository, named as in the request's path.
    Pull(&'a Repository),
}

impl Scope<'_> {
    /// The scope as a challenge states it.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        match self {
            Self::Any => None,
            Self::Catalog => Some("registry:catalog:*".into()),
            Self::Pull(name) => Some(format!("repository:{name}:pull")),
        }
    }
}

/// What a token permits.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Grants {
    /// Repositories to pull from.
    pub pull: BTreeSet<String>,
    /// Listing the repositories.
    pub catalog: bool,
}

impl Grants {
    /// The grants for the scopes of a token request: pulling and listing. A repository need not exist. Other actions are dropped, as the
    /// protocol demands.
    ///
    /// # Errors
    /// 400 for more than [`SCOPES`] scopes.
    pub fn for_scopes(requested: &[String]) -> Result<Self, RegistryError> {
        let mut grants = Self::default();
        let scopes = requested.iter().flat_map(|value| value.split(' ')).filter(|scope| !scope.is_empty());
        for (count, scope) in scopes.enumerate() {
            if count == SCOPES {
                return Err(RegistryError::BadRequest("too many scopes for one token; at most 32 are expected"));
            }
            match parse(scope) {
                Some(("repository", name, actions)) if allows_pull(actions) => {
                    grants.pull.extend(Repository::requested(name).map(|name| name.to_string()));
                }
                Some(("registry", "catalog", _)) => grants.catalog = true,
                _ => {}
            }
        }
        Ok(grants)
    }

    /// Whether they include `scope`.
    #[must_use]
    pub fn cover(&self, scope: Scope<'_>) -> bool {
        match scope {
            Scope::Any => true,
            Scope::Catalog => self.catalog,
            Scope::Pull(name) => self.pull.contains(name.as_str()),
        }
    }
}

/// Type, name and actions. A name may contain colons (a host's port). A type may have a class in parentheses.
fn parse(scope: &str) -> Option<(&str, &str, &str)> {
    let (kind, rest) = scope.split_once(':')?;
    let (name, actions) = rest.rsplit_once(':')?;
    Some((kind.split('(').next().unwrap_or(kind), name, actions))
}

fn allows_pull(actions: &str) -> bool {
    actions.split(',').any(|action| matches!(action, "pull" | "*"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pulls(scopes: &[&str]) -> Vec<String> {
        let scopes: Vec<String> = scopes.iter().map(ToString::to_string).collect();
        Grants::for_scopes(&scopes).unwrap().pull.into_iter().collect()
    }

    #[test]
    fn only_pulling_is_granted() {
        assert_eq!(pulls(&["repository:test/hello:pull"]), ["test/hello"]);
        assert_eq!(pulls(&["repository:b:pull,push repository:a:*", "repository:c:push,pull"]), ["a", "b", "c"]);
        assert_eq!(pulls(&["repository:localhost:5000/x:pull"]), ["localhost:5000/x"], "a name with a port");
        assert_eq!(pulls(&["repository(plugin):x:pull"]), ["x"]);
        // As the path of a request is parsed.
        assert_eq!(pulls(&["repository:index.docker.io/x:pull"]), ["docker.io/library/x"]);
        assert_eq!(pulls(&["repository:a.test_5000/x:pull"]), ["a.test:5000/x"]);
        for none in ["", " ", "repository:x:push", "repository:x:", "repository:X:pull", "x", "repository:pull", "other:x:pull"] {
            assert_eq!(pulls(&[none]), [""; 0], "{none:?}");
        }
    }

    #[test]
    fn grants_cover_their_scopes_only() {
        let (x, y): (Repository, Repository) = ("x".parse().unwrap(), "y".parse().unwrap());
        let grants = Grants::for_scopes(&["repository:x:pull".into()]).unwrap();
        assert!(grants.cover(Scope::Any) && grants.cover(Scope::Pull(&x)));
        assert!(!grants.cover(Scope::Pull(&y)) && !grants.cover(Scope::Catalog));
        assert!(Grants::for_scopes(&["registry:catalog:*".into()]).unwrap().cover(Scope::Catalog));
    }

    #[test]
    fn number_of_scopes_is_limited() {
        let many = |count: usize| Grants::for_scopes(&[vec!["repository:x:pull"; count].join(" ")]);
        assert!(many(SCOPES).is_ok());
        let refused = many(SCOPES + 1).unwrap_err();
        assert_eq!(refused, RegistryError::BadRequest("too many scopes for one token; at most 32 are expected"));
        assert_eq!(SCOPES, 32);
    }
}
