//! The disk's files other than blobs: `oci-layout`, `index.json` and the catalog.

use oci_spec::OciSpecError;
use oci_spec::image::OciLayoutBuilder;

use super::image_set::ImageSet;
use super::index;
use crate::disk::catalog;

/// Path and content of each file.
///
/// # Errors
/// Fails only if serialization fails, which it does not for these types.
pub fn layout_files(set: &ImageSet) -> Result<[(&'static str, Vec<u8>); 3], OciSpecError> {
    let layout = OciLayoutBuilder::default().image_layout_version("1.0.0").build()?.to_string()?;
    let index = index::json(set)?;
    Ok([("index.json", index), (catalog::PATH, set.catalog.encode()), ("oci-layout", layout.into_bytes())])
}
