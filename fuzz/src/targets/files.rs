//! What the commands read: archives, lists, certificates, kernels, logs.

use std::fs;
use std::io::Write;
use std::path::Path;

use clap::Parser;
use localregistry::host::boot::decompress::Compression;
use localregistry::host::boot::elf::Elf;
use localregistry::host::boot::{kernel, modules};
use localregistry::host::images::pack::PackArgs;
use localregistry::host::images::pack::source::Source;
use localregistry::host::runs::pull_log::PullTracker;
use localregistry::host::support::interrupt::Interrupt;
use localregistry::proto::{Event, event};
use localregistry::registry::auth::client_certificate::{ClientCa, Presence};
use localregistry::registry::tls;
use tempfile::NamedTempFile;

/// Largest decompressed content, in bytes.
const LIMIT: usize = 1 << 20;

/// A file with this content.
pub fn file(data: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("a temporary file");
    file.write_all(data).expect("space");
    file
}

#[derive(Parser)]
struct Pack {
    #[command(flatten)]
    args: PackArgs,
}

fn pack(flag: &[&str], path: &Path) -> Option<PackArgs> {
    let given = ["pack", "-o", "disk"].iter().chain(flag).map(Into::into).chain([path.into()]);
    Pack::try_parse_from(given.collect::<Vec<std::ffi::OsString>>()).ok().map(|pack| pack.args)
}

/// An archive, plain or compressed, of any kind that `pack` reads; or a chart.
pub fn archive(data: &[u8]) {
    let file = file(data);
    let folder = tempfile::tempdir().expect("a folder");
    for flag in [&[][..], &["--chart"]] {
        let Some(args) = pack(flag, file.path()) else { continue };
        let requests = args.requests().expect("no list");
        for request in &requests {
            for lenient in [false, true] {
                let Ok(source) = Source::open(request, None, lenient, folder.path(), &Interrupt::default()) else { continue };
                for blob in source.images.iter().flat_map(|image| image.blobs.iter()) {
                    let opened = source.tree.open(&blob.digest.blob_path());
                    assert!(lenient || opened.is_ok(), "{}: {:?}", blob.digest, opened.err());
                }
            }
        }
    }
}

/// A list of images, in prototext.
pub fn list(data: &[u8]) {
    let file = file(data);
    let Some(args) = pack(&["--spec"], file.path()) else { return };
    let Err(error) = args.requests() else { return };
    // A position in the list, and no end of the text.
    let message = error.to_string();
    let lines = 1 + data.iter().filter(|byte| **byte == b'\n').count();
    if let Some(rest) = message.strip_prefix(&format!("{}:", file.path().display())) {
        let line = rest.split(':').next().and_then(|line| line.parse::<usize>().ok());
        assert!(line.is_some_and(|line| (1..=lines).contains(&line)), "{message} of {lines} lines");
    }
}

/// Certificates and keys, in PEM.
pub fn certificate(data: &[u8]) {
    let middle = data.windows(2).position(|two| two == b"\0\0").unwrap_or(data.len());
    let (chain, key) = data.split_at(middle);
    let _ = tls::certificates(chain);
    let _ = tls::uncovered_name(chain, &["registry.test".to_owned()]);
    let _ = tls::provided::authority(chain, key, None);
    let _ = tls::Identity::provided(chain, key, None, None);
    let _ = ClientCa::parse(chain, Presence::Required);
}

/// A program, or a kernel in it.
pub fn elf(data: &[u8]) {
    if let Ok(elf) = Elf::parse(data) {
        let _ = (elf.interpreter(), elf.has_note("Xen", 18));
    }
    for compression in [Compression::Gzip, Compression::Xz, Compression::Zstd, Compression::Lz4] {
        if let Ok(plain) = compression.decompress(data, LIMIT) {
            assert!(plain.len() <= LIMIT);
        }
    }
}

/// A kernel: bzImage or ELF.
pub fn kernel(data: &[u8]) {
    let file = file(data);
    let _ = kernel::is_kernel(file.path());
    let _ = kernel::options_of(file.path());
}

/// The lists in a folder of modules: `modules.dep`, two zeros, `modules.builtin`.
pub fn module_tree(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let middle = data.windows(2).position(|two| two == b"\0\0").unwrap_or(data.len());
    let (dependencies, builtin) = data.split_at(middle);
    fs::write(folder.path().join("modules.dep"), dependencies).expect("space");
    fs::write(folder.path().join("modules.builtin"), builtin).expect("space");
    let _ = modules::collect(folder.path());
}

/// A log of events.
pub fn log(data: &[u8]) {
    let mut tracker = PullTracker::default();
    for line in data.split(|byte| *byte == b'\n') {
        let Ok(Event { event: Some(event::Event::Request(request)), time }) = serde_json::from_slice(line) else { continue };
        if let Some(pull) = tracker.track(time, &request) {
            let row = pull.to_string();
            assert!(!row.contains(char::is_control), "{row:?}");
        }
    }
}
