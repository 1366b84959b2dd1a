//! The command line of `pack`: flags become requests, in the order that they are given in. Only lists of images are read here.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{ArgMatches, FromArgMatches};

use super::mkfs::Format;
use super::request::{Origin, Request, Tags};
use super::spec::{self, SpecError};
use crate::disk::label::Label;
use crate::host::images::pull::Pulling;
use crate::oci::{Host, Platform, Tag};

/// Pack container images into a disk
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A SOURCE is an OCI image layout (a folder, or a tar archive of one) or what docker save writes. Archives may be \
compressed with gzip or zstd; hard links, devices and names that lead out of an archive are refused. Names are taken as the source \
gives them: busybox:latest is the repository busybox, docker.io/library/busybox:latest the repository library/busybox of docker.io. \
What podman and buildah name localhost/app is found as REGISTRY/app, unless the disk has app or docker.io/app with that tag too.

A FILE of --spec is prototext, a list of entries of one of these forms (proto/localregistry/v1/images.proto has all fields):
  images { name: \"a/b\" config { file_path: \"…\" digest_path: \"…\" } layers { file_path: \"…\" digest_path: \"…\" } }
  images { name: \"a/b\" path: \"SOURCE\" }                     the image answers to every tag, as that of the form above does
  images { repository: \"a/b\" tag: \"v1\" path: \"SOURCE\" }
  images { name: \"a/b\" tag: \"v1\" artifact { file_path: \"…\" media_type: \"…\" } }
Relative paths in it start from the folder that it is in, or from --base. A manifest that Bazel wrote has paths below the runfiles' \
folder of the main repository: --base \"$RUNFILES_DIR/_main\".

Examples:
  localregistry pack images/ -o disk.erofs
  localregistry pack web.tar db.tar.gz -o disk.erofs --json
  localregistry pack --name test/app:v1=build/app-layout -o disk.erofs
  localregistry pack --artifact test/chart:1=chart.tgz:application/vnd.test.chart -o disk.erofs
  localregistry pack --spec images.textproto --platform linux/amd64 -o disk.erofs"
)]
struct Flags {
    /// What to pack: an OCI image layout or a docker save archive
    #[arg(value_name = "SOURCE", required_unless_present_any = ["name", "artifact", "spec", "pull"], value_parser = OsStringValueParser::new().map(Request::source))]
    sources: Vec<Request>,

    /// Pack SOURCE, and give its image the name REF: repository[:tag]. For an image without a name, or in place of the only one.
    /// Without a tag, the image keeps its own, or gets latest. May be given several times
    #[arg(long, value_name = "REF=SOURCE", value_parser = Request::named)]
    name: Vec<Request>,

    /// Pack FILE, whatever it is, as an OCI artifact of the name REF. What follows the last colon is its media type where it looks like
    /// one (a/b); a FILE whose own name ends so, or with a colon, is given with another colon at its end. May be given several times
    #[arg(long, value_name = "REF=FILE[:media/type]", value_parser = Request::artifact)]
    artifact: Vec<Request>,

    /// Pack the images that FILE lists, see below. May be given several times
    #[arg(long, value_name = "FILE")]
    spec: Vec<PathBuf>,

    /// Where relative paths in FILE of --spec start. Default: the folder that FILE is in
    #[arg(long, value_name = "DIR", requires = "spec")]
    base: Option<PathBuf>,

    /// Tag every image with TAG, in place of its own tags, where --name, --artifact or the entry of --spec gives none
    #[arg(long, value_name = "TAG")]
    tag: Option<Tag>,

    /// File images whose name has no host, or localhost, under HOST: with docker.io, busybox becomes docker.io/library/busybox
    #[arg(long, value_name = "HOST")]
    upstream: Option<Host>,

    /// Keep one platform of each index, os/architecture[/variant]: the image then is that platform's manifest, as skopeo copy and
    /// docker pull have it. The index is left out, with its other manifests, its attestations, and what refers to them without a name.
    /// Default: keep all
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,

    /// Where sources give one name to different images, take that of the source given last. Without, that is an error
    #[arg(long)]
    replace: bool,

    /// Pack images that lack layers, or indexes that lack manifests, without them: the registry does not know these then. For
    /// non-distributable layers and partial copies. Of image layouts; an archive of docker save says too little of what it lacks
    #[arg(long)]
    allow_missing: bool,

    #[command(flatten)]
    pulling: Pulling,

    /// The disk to write
    #[arg(long, short, value_name = "DISK")]
    output: PathBuf,

    /// The disk's file system
    #[arg(long, value_enum, default_value_t = Format::Erofs)]
    fs: Format,

    /// Label of that file system, for a guest whose config chooses its disks by label
    #[arg(long, value_name = "NAME")]
    label: Option<Label>,

    /// Keep verified blobs in the folder DIR, and read those that are there from there: packing again reads what is new. Made where
    /// it is missing; any number of packs may share it; remove it at will
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

/// What is asked for on the command line.
#[derive(Debug)]
pub struct Args {
    asked: Vec<Asked>,
    base: Option<PathBuf>,
    tag: Option<Tag>,
    upstream: Option<Host>,
    platform: Option<Platform>,
    /// Whether a later source's images replace those of an earlier one by name.
    pub replace: bool,
    /// Whether images may lack layers.
    pub allow_missing: bool,
    /// How images are pulled.
    pub pulling: Pulling,
    /// The disk to write.
    pub output: PathBuf,
    /// Its file system.
    pub format: Format,
    /// The label of that.
    pub label: Option<Label>,
    /// The folder of verified blobs.
    pub cache: Option<PathBuf>,
}

#[derive(Debug)]
enum Asked {
    Request(Box<Request>),
    Spec(PathBuf),
}

impl Args {
    /// The lists of images that are given.
    pub fn specs(&self) -> impl Iterator<Item = &PathBuf> {
        self.asked.iter().filter_map(|asked| if let Asked::Spec(path) = asked { Some(path) } else { None })
    }

    /// Everything that is asked for, in the order that it is given in.
    ///
    /// # Errors
    /// `SpecError`, of a list of images.
    pub fn requests(&self) -> Result<Vec<Request>, SpecError> {
        let mut requests = Vec::new();
        for asked in &self.asked {
            match asked {
                Asked::Request(request) => requests.push(request.as_ref().clone()),
                Asked::Spec(path) => requests.extend(spec::read(path, self.base.as_deref())?),
            }
        }
        for request in &mut requests {
            if let Some(tag) = self.tag.as_ref().filter(|_| !matches!(request.naming.tags, Tags::One(_))) {
                request.naming.tags = Tags::One(tag.clone());
            }
            request.upstream = request.upstream.take().or_else(|| self.upstream.clone());
            request.platform = request.platform.take().or_else(|| self.platform.clone());
        }
        Ok(requests)
    }
}

/// Why a label does not go with squashfs.
const LABELLED_SQUASHFS: &str = "the argument '--label <NAME>' cannot be used with '--fs squashfs': squashfs has no label\n";

impl FromArgMatches for Args {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let flags = Flags::from_arg_matches(matches)?;
        if flags.label.is_some() && flags.fs == Format::Squashfs {
            return Err(clap::Error::raw(clap::error::ErrorKind::ArgumentConflict, LABELLED_SQUASHFS));
        }
        let requests = |requests: Vec<Request>| requests.into_iter().map(Box::new).map(Asked::Request).collect();
        let pulls = flags.pulling.references().iter().cloned().map(Origin::Pull).map(Request::of).collect();
        let given: [(&str, Vec<Asked>); 5] = [
            ("sources", requests(flags.sources)),
            ("name", requests(flags.name)),
            ("artifact", requests(flags.artifact)),
            ("pull", requests(pulls)),
            ("spec", flags.spec.into_iter().map(Asked::Spec).collect()),
        ];
        let indexed = given.into_iter().flat_map(|(id, asked)| matches.indices_of(id).into_iter().flatten().zip(asked));
        let mut asked: Vec<(usize, Asked)> = indexed.collect();
        asked.sort_by_key(|(index, _)| *index);
        Ok(Self {
            asked: asked.into_iter().map(|(_, asked)| asked).collect(),
            base: flags.base,
            tag: flags.tag,
            upstream: flags.upstream,
            platform: flags.platform,
            replace: flags.replace,
            allow_missing: flags.allow_missing,
            pulling: flags.pulling,
            output: flags.output,
            format: flags.fs,
            label: flags.label,
            cache: flags.cache,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for Args {
    fn augment_args(command: clap::Command) -> clap::Command {
        Flags::augment_args(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Flags::augment_args_for_update(command)
    }
}
