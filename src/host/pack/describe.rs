//! The files that make the disk an image layout and a disk of this program: `oci-layout`, `index.json`, the catalog. Pure.

use oci_spec::OciSpecError;
use oci_spec::image::{DescriptorBuilder, ImageIndexBuilder, MediaType, OciLayoutBuilder};

use super::union::Contents;
use crate::registry::catalog;
use crate::registry::layout::REF_NAME;

/// The files: path and content.
///
/// # Errors
/// When a field is missing or no JSON.
pub fn files(contents: &Contents) -> Result<[(&'static str, Vec<u8>); 3], OciSpecError> {
    let layout = OciLayoutBuilder::default().image_layout_version("1.0.0").build()?.to_string()?;
    let index = index(contents)?;
    Ok([("index.json", index.into_bytes()), (catalog::PATH, contents.catalog.encode()), ("oci-layout", layout.into_bytes())])
}

/// `index.json`: one descriptor for each image, in order of their names.
fn index(contents: &Contents) -> Result<String, OciSpecError> {
    let mut manifests = Vec::with_capacity(contents.images.len());
    for (name, image) in &contents.images {
        let catalog = &contents.catalog;
        let repository = catalog.repository(image.repository.as_str());
        let blob = repository.and_then(|repository| catalog.blob_in(repository, &image.digest)).and_then(|id| catalog.blob(id));
        let Some(blob) = blob else { continue };
        let digest: oci_spec::image::Digest = image.digest.to_string().parse()?;
        let descriptor = DescriptorBuilder::default()
            .media_type(MediaType::from(blob.manifest.unwrap_or_default()))
            .digest(digest)
            .size(blob.size)
            .annotations([(REF_NAME.to_owned(), name.clone())])
            .build()?;
        manifests.push(descriptor);
    }
    ImageIndexBuilder::default().schema_version(2_u32).media_type(MediaType::ImageIndex).manifests(manifests).build()?.to_string()
}
