//! The files that make the disk an image layout and a disk of this program: `oci-layout`, `index.json`, the catalog. Pure.

use oci_spec::OciSpecError;
use oci_spec::image::OciLayoutBuilder;

use super::image_set::Contents;
use super::index;
use crate::disk::catalog;

/// The files: path and content.
///
/// # Errors
/// When a field is missing or no JSON.
pub fn files(contents: &Contents) -> Result<[(&'static str, Vec<u8>); 3], OciSpecError> {
    let layout = OciLayoutBuilder::default().image_layout_version("1.0.0").build()?.to_string()?;
    let index = index::json(contents)?;
    Ok([("index.json", index), (catalog::PATH, contents.catalog.encode()), ("oci-layout", layout.into_bytes())])
}
