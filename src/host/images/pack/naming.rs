//! Determines the final names of a source's images: their own, or those requested.

use std::collections::BTreeSet;

use super::request::{Naming, Tags};
use crate::disk::layout::Image;
use crate::oci::upstreams::LOCALHOST;
use crate::oci::{Digest, Host, ImageName, NameError, Repository, Tag};

/// Why images cannot have the requested names.
#[derive(Debug, thiserror::Error)]
pub enum NamingError {
    #[error("{name}: it holds {} images ({}); one image, or one without a name, is expected; give each a layout of its own", images.len(), images.join(", "))]
    Several { name: String, images: Vec<String> },
    #[error(
        "{name}: it holds {} images without a name ({}); one is expected: `skopeo copy docker-archive:FILE:@N oci:LAYOUT` takes out the one \
         at place N of manifest.json, counted from 0", configs.len(), configs.join(", ")
    )]
    SeveralSaved { name: String, configs: Vec<String> },
    #[error("image {image} cannot be filed under {upstream}")]
    Upstream { image: String, upstream: String, source: NameError },
}

/// Names the images of a source as requested. `from_file` says whether the request is from a `--spec` file, for messages.
///
/// A requested repository applies to the images that have none, or else to all images if they are of one repository. Their tags stay,
/// and their referrers and signatures follow them. A requested tag applies to one image.
///
/// # Errors
/// Fails if it is ambiguous which image is meant.
pub fn name_images(
    images: Vec<Image>,
    naming: &Naming,
    upstream: Option<&Host>,
    from_file: bool,
) -> Result<Vec<Image>, NamingError> {
    let mut images = match &naming.repository {
        Some(repository) => named(images, repository, &naming.tags, from_file)?,
        None => tagged(images, &naming.tags),
    };
    if let Some(upstream) = upstream {
        images.iter_mut().try_for_each(|image| add_host(image, upstream))?;
    }
    Ok(images)
}

impl NamingError {
    /// Names the images of a `docker save` archive by their configs, which `config` finds. Their digests are in no file.
    pub fn of_archive(self, config: impl Fn(&Digest) -> Option<String>) -> Self {
        let Self::Several { name, images } = self else { return self };
        let configs: Option<Vec<String>> = images.iter().map(|image| config(&image.parse().ok()?)).collect();
        match configs {
            Some(configs) => Self::SeveralSaved { name, configs },
            None => Self::Several { name, images },
        }
    }
}

fn named(images: Vec<Image>, repository: &Repository, tags: &Tags, from_file: bool) -> Result<Vec<Image>, NamingError> {
    let (mut companions, heads): (Vec<Image>, Vec<Image>) = images.into_iter().partition(|image| image.is_companion);
    let any_unnamed = heads.iter().any(|image| !image.is_named);
    let (mut meant, others): (Vec<Image>, Vec<Image>) = heads.into_iter().partition(|image| image.is_named != any_unnamed);
    let one = meant.iter().map(|image| image.digest).collect::<BTreeSet<_>>().len() <= 1;
    let own = matches!(tags, Tags::Own | Tags::OwnOrNone);
    let each_tagged = any_unnamed && meant.iter().all(|image| image.tag.is_some());
    let one_repository = !any_unnamed && meant.iter().map(|image| &image.repository).collect::<BTreeSet<_>>().len() == 1;
    if !(one || own && (each_tagged || one_repository)) {
        let label = |image: &Image| if image.is_named { image.name() } else { label(image) };
        let images = meant.iter().map(label).collect();
        let tag = if let Tags::One(tag) = tags { Some(tag.clone()) } else { None };
        let name = ImageName { repository: repository.clone(), tag, digest: None };
        return Err(NamingError::Several { name: format!("{} {name}", if from_file { "name" } else { "--name" }), images });
    }
    for image in &mut meant {
        image.repository = repository.clone();
        tag(image, if one { tags } else { &Tags::OwnOrNone });
    }
    if others.is_empty() {
        companions.iter_mut().for_each(|companion| companion.repository = repository.clone());
    }
    Ok([meant, companions, others].concat())
}

/// The images by their own names, with the requested tags.
fn tagged(mut images: Vec<Image>, tags: &Tags) -> Vec<Image> {
    if *tags != Tags::Own {
        images.iter_mut().filter(|image| !image.is_companion).for_each(|image| tag(image, tags));
    }
    images
}

fn tag(image: &mut Image, tags: &Tags) {
    image.every_tag |= *tags == Tags::Every;
    image.tag = match tags {
        Tags::One(tag) => Some(tag.clone()),
        Tags::OwnOrNone => image.tag.take(),
        // Tag lists, and tools that do not know the every-tag annotation, show at least this tag.
        Tags::Own | Tags::Every => Some(image.tag.take().unwrap_or_else(Tag::latest)),
    };
    if matches!(tags, Tags::One(_)) {
        image.every_tag = false;
    }
}

/// Name in messages of an image without a repository: its tag, or else its digest.
fn label(image: &Image) -> String {
    image.tag.as_ref().map_or_else(|| image.digest.to_string(), Tag::to_string)
}

/// Adds a host to an image name without one. podman and buildah write `localhost/` before names without a host, so that counts as no
/// host.
fn add_host(image: &mut Image, upstream: &Host) -> Result<(), NamingError> {
    if image.repository.host().is_some_and(|host| host != LOCALHOST) {
        return Ok(());
    }
    let failed = |source| NamingError::Upstream { image: image.name(), upstream: upstream.to_string(), source };
    image.repository = Repository::under(upstream, image.repository.path()).map_err(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str, named: bool, content: &str) -> Image {
        let ImageName { repository, tag, .. } = name.parse().unwrap();
        let digest = Digest::sha256_of(content.as_bytes());
        let is_companion = tag.as_ref().is_some_and(Tag::is_attachment);
        let (blobs, left_out) = ([].into(), [].into());
        Image { repository, tag, every_tag: false, is_named: named, is_companion, digest, blobs, left_out }
    }

    fn naming(name: &str, tags: Option<Tags>) -> Naming {
        let ImageName { repository, tag, .. } = name.parse().unwrap();
        Naming { repository: Some(repository), tags: tags.unwrap_or_else(|| tag.map_or(Tags::Own, Tags::One)) }
    }

    fn names(images: Vec<Image>, naming: &Naming, upstream: Option<&str>) -> Result<Vec<String>, String> {
        let upstream: Option<Host> = upstream.map(|host| host.parse().unwrap());
        let named = name_images(images, naming, upstream.as_ref(), false).map_err(|error| error.to_string())?;
        Ok(named.iter().map(|image| format!("{}{}", image.name(), if image.every_tag { "*" } else { "" })).collect())
    }

    #[test]
    fn requested_name_applies_to_the_unnamed_or_only_image() {
        let unnamed = || image("x/y", false, "1");
        let tagged = |tag: &str, content: &str| image(&format!("x/y:{tag}"), false, content);
        let other = || image("o/o:1", true, "2");
        let bare = format!("x/y@{}", Digest::sha256_of(b"3"));
        let signature = format!("x/y:sha256-{}.sig", "0".repeat(64));
        for (images, name, expected) in [
            (vec![unnamed()], "x/y", vec!["x/y:latest"]),
            (vec![unnamed()], "x/y:2", vec!["x/y:2"]),
            (vec![tagged("v1", "1")], "x/y", vec!["x/y:v1"]),
            (vec![tagged("v1", "1")], "x/y:2", vec!["x/y:2"]),
            (vec![tagged("v1", "1"), tagged("v2", "2")], "x/y", vec!["x/y:v1", "x/y:v2"]),
            (vec![unnamed(), other()], "x/y", vec!["x/y:latest", "o/o:1"]),
            (vec![other()], "docker.io/x/y:3", vec!["docker.io/x/y:3"]),
            (vec![other()], "x/y", vec!["x/y:1"]),
            (vec![other(), image("o/o:2", true, "3")], "x/y", vec!["x/y:1", "x/y:2"]),
            (vec![other(), image("o/o", true, "3")], "x/y", vec!["x/y:1", &bare]),
            (vec![tagged("v1", "1"), image(&signature, false, "3")], "x/y:2", vec!["x/y:2", &signature]),
        ] {
            let expected: Vec<String> = expected.into_iter().map(str::to_owned).collect();
            assert_eq!(names(images, &naming(name, None), None), Ok(expected), "{name}");
        }
    }

    #[test]
    fn tag_mode_selects_the_tags_of_images() {
        let one = |tags| names(vec![image("x/y", false, "1")], &naming("x/y", Some(tags)), None).unwrap();
        assert_eq!(one(Tags::Every), ["x/y:latest*"]);
        assert_eq!(one(Tags::OwnOrNone), [format!("x/y@{}", Digest::sha256_of(b"1"))]);
        let naming = Naming { repository: None, tags: Tags::One("v9".parse().unwrap()) };
        assert_eq!(names(vec![image("a/a:1", true, "1"), image("b/b", true, "2")], &naming, None).unwrap(), ["a/a:v9", "b/b:v9"]);
    }

    #[test]
    fn ambiguous_name_is_rejected() {
        let two = || vec![image("a/a:1", true, "1"), image("b/b:1", true, "2")];
        assert_eq!(
            names(two(), &naming("x/y", None), None).unwrap_err(),
            "--name x/y: it holds 2 images (a/a:1, b/b:1); one image, or one without a name, is expected; give each a layout of its own"
        );
        let bare = || vec![image("x/y:v1", false, "1"), image("x/y:v2", false, "2")];
        assert_eq!(
            names(bare(), &naming("x/y:3", None), None).unwrap_err(),
            "--name x/y:3: it holds 2 images (v1, v2); one image, or one without a name, is expected; give each a layout of its own"
        );
        assert_eq!(
            names(bare(), &naming("x/y", Some(Tags::Every)), None).unwrap_err(),
            "--name x/y: it holds 2 images (v1, v2); one image, or one without a name, is expected; give each a layout of its own"
        );
    }

    #[test]
    fn host_is_added_to_names_that_lack_it() {
        for (name, upstream, expected) in [
            ("busybox:1", "docker.io", "docker.io/library/busybox:1"),
            ("x/y:1", "docker.io", "docker.io/x/y:1"),
            ("busybox:1", "index.docker.io", "docker.io/library/busybox:1"),
            ("busybox:1", "localhost:5000", "localhost:5000/busybox:1"),
            ("quay.io/x/y:1", "docker.io", "quay.io/x/y:1"),
            ("localhost/app:1", "quay.io", "quay.io/app:1"),
            ("localhost/app:1", "docker.io", "docker.io/library/app:1"),
            ("localhost:5000/app:1", "quay.io", "localhost:5000/app:1"),
        ] {
            let images = vec![image(name, true, "1")];
            assert_eq!(names(images, &Naming::default(), Some(upstream)), Ok(vec![expected.to_owned()]));
        }
        let long = format!("{}:1", "a".repeat(250));
        assert_eq!(
            names(vec![image(&long, true, "1")], &Naming::default(), Some("docker.io")).unwrap_err(),
            format!("image {long} cannot be filed under docker.io")
        );
    }
}
