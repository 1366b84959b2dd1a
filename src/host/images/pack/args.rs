//! The command line of `pack`, turned into requests in the order given. Only `--spec` files are read here.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{ArgMatches, FromArgMatches};

use super::mkfs::Format;
use super::request::{Origin, Request, Tags};
use super::spec::{self, SpecError};
use crate::disk::label::Label;
use crate::host::images::platforms::PlatformChoice;
use crate::host::images::pull::PullArgs;
use crate::oci::{Host, Platform, Tag};

/// Pack container images into a disk
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A SOURCE is an OCI image layout (a folder, or a tar archive of one) or a docker save archive. Archives may be \
    compressed with gzip or zstd. Archives with hard links, devices, or names that lead out of the archive are refused. Image names are \
    used as the source gives them: busybox:latest is the repository busybox, docker.io/library/busybox:latest is the repository \
    library/busybox of docker.io. An image that podman or buildah named localhost/app is served as REGISTRY/app, unless the disk also \
    has app or docker.io/app with the same tag.

The FILE of --spec is prototext: a list of entries in these forms (proto/localregistry/v1/images.proto has all fields):
  images { name: \"a/b\" config { file_path: \"…\" digest_path: \"…\" } layers { file_path: \"…\" digest_path: \"…\" } }
  images { name: \"a/b\" path: \"SOURCE\" }                     like the form above, the image answers to every tag
  images { repository: \"a/b\" tag: \"v1\" path: \"SOURCE\" }
  images { name: \"a/b\" tag: \"v1\" artifact { file_path: \"…\" media_type: \"…\" } }
  images { chart: \"CHART.tgz\" }
Relative paths start from the folder of FILE, or from --base. A list that Bazel wrote has paths below the runfiles folder of the \
main repository: use --base \"$RUNFILES_DIR/_main\".

Examples:
  localregistry pack images/ -o disk.erofs
  localregistry pack web.tar db.tar.gz -o disk.erofs --json
  localregistry pack --name test/app:v1=build/app-layout -o disk.erofs
  localregistry pack --artifact test/chart:1=chart.tgz:application/vnd.test.chart -o disk.erofs
  localregistry pack --chart web-1.2.3.tgz --chart charts/db=db-4.5.6.tgz -o disk.erofs
  localregistry pack --spec images.textproto --platform linux/amd64,linux/arm64 -o disk.erofs"
)]
struct Flags {
    /// An OCI image layout or a docker save archive to pack
    #[arg(value_name = "SOURCE", required_unless_present_any = ["name", "artifact", "chart", "spec", "pull"], value_parser = OsStringValueParser::new().map(Request::source))]
    sources: Vec<Request>,

    /// Pack SOURCE and name its image REF: repository[:tag]. Without a tag in REF, files all tags that have no repository under REF, or
    /// else all images of the only repository; an image without a tag gets latest. With a tag, names the only image. Repeatable
    #[arg(long, value_name = "REF=SOURCE", value_parser = Request::named)]
    name: Vec<Request>,

    /// Pack FILE, of any kind, as an OCI artifact named REF. The text after the last colon is its media type if it looks like one
    /// (a/b). If FILE's own name ends like that, or with a colon, add another colon. Repeatable
    #[arg(long, value_name = "REF=FILE[:media/type]", value_parser = Request::artifact)]
    artifact: Vec<Request>,

    /// Pack the Helm chart in FILE, as helm package writes it, like helm push: its tag is its version, with _ for +, and its repository is
    /// its name, unless REPOSITORY is given. FILE.prov is packed with it if it exists. If FILE's name has a =, write ./FILE. Repeatable
    #[arg(long, value_name = "[REPOSITORY=]FILE", value_parser = Request::chart)]
    chart: Vec<Request>,

    /// Pack the images listed in FILE, see below. Repeatable
    #[arg(long, value_name = "FILE")]
    spec: Vec<PathBuf>,

    /// Folder that relative paths in the --spec FILE start from. Default: the folder of FILE
    #[arg(long, value_name = "DIR", requires = "spec")]
    base: Option<PathBuf>,

    /// Give every image except charts the tag TAG in place of its own tags, unless --name, --artifact or the --spec entry gives a tag
    #[arg(long, value_name = "TAG")]
    tag: Option<Tag>,

    /// Put HOST before image names without a host, or with the host localhost: with docker.io, busybox becomes docker.io/library/busybox
    #[arg(long, value_name = "HOST")]
    upstream: Option<Host>,

    /// Keep these platforms of each index, os/architecture[/variant], with their attestations. The index stays with its digest, so
    /// that it can be pulled by tag and by digest; its manifests for other platforms, their attestations and their referrers are left
    /// out, and the registry answers 404 for them. Commas between several; repeatable. Default: keep all
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    platform: Vec<Platform>,

    /// With one --platform: put the platform's manifest in the place of the index, as skopeo copy and docker pull do. The digest of the
    /// index, its signatures and its attestations are left out
    #[arg(long, requires = "platform")]
    flatten: bool,

    /// If sources have different images of the same name, keep the one of the source given last. Default: fail
    #[arg(long)]
    replace: bool,

    /// Pack images that lack layers, and indexes that lack manifests, without them. The registry then answers 404 for the missing
    /// content. For non-distributable layers and partial copies. Works for image layouts, not for docker save archives
    #[arg(long)]
    allow_missing: bool,

    #[command(flatten)]
    pulling: PullArgs,

    /// The disk to write
    #[arg(long, short, value_name = "DISK")]
    output: PathBuf,

    /// The disk's file system
    #[arg(long, value_enum, default_value_t = Format::Erofs)]
    fs: Format,

    /// Label of the file system, for guests whose config selects disks by label
    #[arg(long, value_name = "NAME")]
    label: Option<Label>,

    /// Store verified blobs in the folder DIR and reuse them, so that packing again reads only new blobs. DIR is created if missing,
    /// may be shared by concurrent packs, and may be deleted at any time
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

/// The parsed command line of `pack`.
#[derive(Debug)]
pub struct PackArgs {
    inputs: Vec<Input>,
    base: Option<PathBuf>,
    tag: Option<Tag>,
    upstream: Option<Host>,
    platforms: PlatformChoice,
    /// Whether an image of a later source replaces one of the same name.
    pub replace: bool,
    /// Whether images may lack blobs.
    pub allow_missing: bool,
    /// How images are pulled.
    pub pulling: PullArgs,
    /// Path of the disk to write.
    pub output: PathBuf,
    /// File system of the disk.
    pub format: Format,
    /// Label of the file system.
    pub label: Option<Label>,
    /// Folder of the blob cache.
    pub cache: Option<PathBuf>,
}

#[derive(Debug)]
enum Input {
    Request(Box<Request>),
    Spec(PathBuf),
}

impl PackArgs {
    /// The `--spec` files.
    pub fn specs(&self) -> impl Iterator<Item = &PathBuf> {
        self.inputs.iter().filter_map(|input| if let Input::Spec(path) = input { Some(path) } else { None })
    }

    /// All requested sources, in the order given.
    ///
    /// # Errors
    /// Fails if a `--spec` file cannot be used.
    pub fn requests(&self) -> Result<Vec<Request>, SpecError> {
        let mut requests = Vec::new();
        for input in &self.inputs {
            match input {
                Input::Request(request) => requests.push(request.as_ref().clone()),
                Input::Spec(path) => requests.extend(spec::read(path, self.base.as_deref())?),
            }
        }
        for request in &mut requests {
            // Helm looks for a chart by its version.
            let keeps = matches!(request.naming.tags, Tags::One(_)) || matches!(request.origin, Origin::Chart { .. });
            if let Some(tag) = self.tag.as_ref().filter(|_| !keeps) {
                request.naming.tags = Tags::One(tag.clone());
            }
            request.upstream = request.upstream.take().or_else(|| self.upstream.clone());
            if request.platforms.wanted.is_empty() {
                request.platforms = self.platforms.clone();
            }
        }
        Ok(requests)
    }
}

const LABELLED_SQUASHFS: &str = "the argument '--label <NAME>' cannot be used with '--fs squashfs': squashfs has no label\n";

const FLATTENED_PLATFORMS: &str = "the argument '--flatten' cannot be used with several platforms: one manifest takes the place of an \
index; give one --platform, or leave --flatten out\n";

impl FromArgMatches for PackArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let flags = Flags::from_arg_matches(matches)?;
        if flags.label.is_some() && flags.fs == Format::Squashfs {
            return Err(clap::Error::raw(clap::error::ErrorKind::ArgumentConflict, LABELLED_SQUASHFS));
        }
        if flags.flatten && flags.platform.len() > 1 {
            return Err(clap::Error::raw(clap::error::ErrorKind::ArgumentConflict, FLATTENED_PLATFORMS));
        }
        let requests = |requests: Vec<Request>| requests.into_iter().map(Box::new).map(Input::Request).collect();
        let pulls = flags.pulling.references().iter().cloned().map(Origin::Pull).map(Request::of).collect();
        let given: [(&str, Vec<Input>); 6] = [
            ("sources", requests(flags.sources)),
            ("name", requests(flags.name)),
            ("artifact", requests(flags.artifact)),
            ("chart", requests(flags.chart)),
            ("pull", requests(pulls)),
            ("spec", flags.spec.into_iter().map(Input::Spec).collect()),
        ];
        let indexed = given.into_iter().flat_map(|(id, inputs)| matches.indices_of(id).into_iter().flatten().zip(inputs));
        let mut inputs: Vec<(usize, Input)> = indexed.collect();
        inputs.sort_by_key(|(index, _)| *index);
        Ok(Self {
            inputs: inputs.into_iter().map(|(_, input)| input).collect(),
            base: flags.base,
            tag: flags.tag,
            upstream: flags.upstream,
            platforms: PlatformChoice { wanted: flags.platform, flatten: flags.flatten },
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

impl clap::Args for PackArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        Flags::augment_args(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Flags::augment_args_for_update(command)
    }
}
