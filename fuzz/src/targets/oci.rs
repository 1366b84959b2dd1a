//! Manifests and names.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use localregistry::oci::{Descriptor, Digest, Host, ImageName, Manifest, Platform, Reference, Repository, Tag};

/// A manifest or an index; as text, a name of each kind.
pub fn manifest(data: &[u8]) {
    if let Ok(manifest) = Manifest::parse(data) {
        for entry in manifest.manifests.iter().chain(&manifest.blobs).chain(&manifest.subject) {
            same::<Digest>(&entry.digest.to_string());
        }
    }
    let _ = serde_json::from_slice::<Descriptor>(data);
    let Ok(text) = str::from_utf8(data) else { return };
    same::<Digest>(text);
    same::<Reference>(text);
    same::<Repository>(text);
    same::<Tag>(text);
    same::<Host>(text);
    same::<Platform>(text);
    let _ = (text.parse::<ImageName>(), ImageName::is_image_id(text));
    if let Ok(repository) = Repository::requested(text) {
        // A host without a dot is told from the first component of a name only by what the disks hold.
        let path = repository.to_path();
        let requested = Repository::requested(&path).expect("a path");
        let is_same = requested == repository || requested.with_spelled_host().as_ref() == Some(&repository);
        assert!(is_same, "{text:?} has the path {path:?}, which is {requested:?}");
    }
}

/// A name that is read is written as a name that is read as the same.
fn same<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    if let Ok(name) = text.parse::<T>() {
        let written = name.to_string();
        assert_eq!(written.parse::<T>().ok().as_ref(), Some(&name), "{text:?} is written {written:?}");
    }
}
