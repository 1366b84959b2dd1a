//! What a token is asked for and given for: the scopes of the distribution token protocol ("Token Scope Documentation"). Pure.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::oci::Repository;
use crate::registry::http::error::RegistryError;
use crate::registry::limits::SCOPES;

/// What a request needs of its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope<'a> {
    /// Any token will do.
    Any,
    /// To list the repositories.
    Catalog,
    /// To pull from this repository, named as in the request's path.
    Pull(&'a Repository),
}

impl Scope<'_> {
    /// The scope as a challenge names it.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        match self {
            Self::Any => None,
            Self::Catalog => Some("registry:catalog:*".into()),
            Self::Pull(name) => Some(format!("repository:{name}:pull")),
        }
    }
}

/// What a token is good for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Grants {
    /// Repositories to pull from.
    pub pull: BTreeSet<String>,
    /// Whether the repositories may be listed.
    pub catalog: bool,
}

impl Grants {
    /// What is given for the scopes of a token request: pulling, from whatever repositories were asked for, there or not. Anything
    /// else in them is left out, as the protocol wants it.
    ///
    /// # Errors
    /// 400, for more than [`SCOPES`] scopes.
    pub fn for_scopes(asked: &[String]) -> Result<Self, RegistryError> {
        let mut grants = Self::default();
        let scopes = asked.iter().flat_map(|value| value.split(' ')).filter(|scope| !scope.is_empty());
        for (count, scope) in scopes.enumerate() {
            if count == SCOPES {
                return Err(RegistryError::BadRequest("too many scopes for one token; at most 32 are expected"));
            }
            match parse(scope) {
                Some(("repository", name, actions)) if allows_pull(actions) && name.parse::<Repository>().is_ok() => {
                    grants.pull.insert(name.to_owned());
                }
                Some(("registry", "catalog", _)) => grants.catalog = true,
                _ => {}
            }
        }
        Ok(grants)
    }

    /// Whether a request that needs `scope` may be answered.
    #[must_use]
    pub fn cover(&self, scope: Scope<'_>) -> bool {
        match scope {
            Scope::Any => true,
            Scope::Catalog => self.catalog,
            Scope::Pull(name) => self.pull.contains(name.as_str()),
        }
    }
}

/// Type, name and actions. A name may hold colons (a host's port); a type may have a class in brackets.
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
    fn pulling_is_given_and_nothing_else() {
        assert_eq!(pulls(&["repository:test/hello:pull"]), ["test/hello"]);
        assert_eq!(pulls(&["repository:b:pull,push repository:a:*", "repository:c:push,pull"]), ["a", "b", "c"]);
        assert_eq!(pulls(&["repository:localhost:5000/x:pull"]), ["localhost:5000/x"], "a name with a port");
        assert_eq!(pulls(&["repository(plugin):x:pull"]), ["x"]);
        for none in ["", " ", "repository:x:push", "repository:x:", "repository:X:pull", "x", "repository:pull", "other:x:pull"] {
            assert_eq!(pulls(&[none]), [""; 0], "{none:?}");
        }
    }

    #[test]
    fn a_grant_covers_what_it_names() {
        let (x, y): (Repository, Repository) = ("x".parse().unwrap(), "y".parse().unwrap());
        let grants = Grants::for_scopes(&["repository:x:pull".into()]).unwrap();
        assert!(grants.cover(Scope::Any) && grants.cover(Scope::Pull(&x)));
        assert!(!grants.cover(Scope::Pull(&y)) && !grants.cover(Scope::Catalog));
        assert!(Grants::for_scopes(&["registry:catalog:*".into()]).unwrap().cover(Scope::Catalog));
    }

    #[test]
    fn there_is_an_end_to_scopes() {
        let many = |count: usize| Grants::for_scopes(&[vec!["repository:x:pull"; count].join(" ")]);
        assert!(many(SCOPES).is_ok());
        let refused = many(SCOPES + 1).unwrap_err();
        assert_eq!(refused, RegistryError::BadRequest("too many scopes for one token; at most 32 are expected"));
        assert_eq!(SCOPES, 32);
    }
}
