//! The cache folder, which holds downloads and files made from them. Its content may be deleted at any time.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Why there is no cache folder.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// No environment variable names a folder.
    #[error("no folder for downloads: none of LOCALREGISTRY_CACHE, XDG_CACHE_HOME and HOME is set; set LOCALREGISTRY_CACHE")]
    Nowhere,
    /// The folder cannot be made.
    #[error("cannot create the cache folder {} (set LOCALREGISTRY_CACHE to use another)", path.display())]
    Create {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Returns the absolute path of the cache's folder `name`, and creates it if it is missing. The cache is `$LOCALREGISTRY_CACHE`,
/// else `$XDG_CACHE_HOME/localregistry`, else `~/.cache/localregistry`.
///
/// # Errors
/// Fails if no variable is set, or if the folder cannot be created.
pub fn folder(name: impl AsRef<Path>) -> Result<PathBuf, CacheError> {
    let path = root(|variable| std::env::var_os(variable)).ok_or(CacheError::Nowhere)?.join(name);
    let made = fs::create_dir_all(&path).and_then(|()| std::path::absolute(&path));
    made.map_err(|source| CacheError::Create { path, source })
}

/// The cache's root. A relative `XDG_CACHE_HOME` is ignored (XDG base directory specification, "Basics").
fn root(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let below = |base: PathBuf| base.join("localregistry");
    set("LOCALREGISTRY_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").filter(|path| path.is_absolute()).map(below))
        .or_else(|| set("HOME").map(|home| below(home.join(".cache"))))
}

/// Whether `path` is a regular file.
pub(crate) fn is_file(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_folder_follows_the_environment() {
        type Variables = &'static [(&'static str, &'static str)];
        let cases: [(Variables, Option<&str>); 6] = [
            (&[("LOCALREGISTRY_CACHE", "/a"), ("XDG_CACHE_HOME", "/b"), ("HOME", "/c")], Some("/a")),
            (&[("LOCALREGISTRY_CACHE", ""), ("XDG_CACHE_HOME", "/b"), ("HOME", "/c")], Some("/b/localregistry")),
            (&[("XDG_CACHE_HOME", "b"), ("HOME", "/c")], Some("/c/.cache/localregistry")),
            (&[("HOME", "/c")], Some("/c/.cache/localregistry")),
            (&[("HOME", "")], None),
            (&[], None),
        ];
        for (variables, expected) in cases {
            let found = root(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()));
            assert_eq!(found, expected.map(PathBuf::from), "{variables:?}");
        }
    }

    #[test]
    fn unset_environment_is_reported() {
        assert_eq!(
            CacheError::Nowhere.to_string(),
            "no folder for downloads: none of LOCALREGISTRY_CACHE, XDG_CACHE_HOME and HOME is set; set LOCALREGISTRY_CACHE"
        );
    }
}
