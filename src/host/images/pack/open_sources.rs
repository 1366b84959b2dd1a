//! Opens all requested sources: local ones first, so that blobs they have need not be pulled, then those in registries.

use std::path::Path;

use super::args::PackArgs;
use super::request::{Origin, Request};
use super::source::Source;
use super::{PackError, not_written};
use crate::host::images::platforms::PlatformChoice;
use crate::host::images::pull::{ImageReference, PullError, PulledLayout};
use crate::host::images::work_dir;
use crate::host::support::interrupt::Interrupt;
use crate::host::support::report::Report;

/// Opens every source. With `--replace` the order given is kept. Otherwise sources are sorted and deduplicated, so that neither
/// messages nor the source of a shared blob depend on the order given.
///
/// # Errors
/// Fails with the first source that cannot be opened.
pub fn open_all(
    args: &PackArgs,
    mut requests: Vec<Request>,
    folder: &Path,
    report: Report,
    interrupt: &Interrupt,
) -> Result<Vec<Source>, PackError> {
    if !args.replace {
        requests.sort_by_cached_key(|request| (request.label(), format!("{request:?}")));
        requests.dedup();
    }
    let open = |request: &Request, pulled: Option<PulledLayout>| {
        let opened = Source::open(request, pulled, args.allow_missing, folder, interrupt);
        opened.map_err(|source| PackError::Source { label: request.label(), source })
    };
    let only_reads = interrupt.end_at_once(not_written(&args.output));
    let mut here = Vec::with_capacity(requests.len());
    for request in requests.iter().filter(|request| reference(request).is_none()) {
        report.step(format!("reading {}", request.label()));
        here.push(open(request, None)?);
    }
    drop(only_reads);
    let mut pulled = pull(args, &requests, &here, folder, report, interrupt)?.into_iter();
    let _only_reads = interrupt.end_at_once(not_written(&args.output));
    let mut here = here.into_iter();
    let mut sources = Vec::with_capacity(requests.len());
    for request in &requests {
        match reference(request) {
            None => sources.extend(here.next()),
            Some(_) => sources.push(open(request, pulled.next())?),
        }
    }
    Ok(sources)
}

/// The image that a request pulls.
fn reference(request: &Request) -> Option<&ImageReference> {
    if let Origin::Pull(reference) = &request.origin { Some(reference) } else { None }
}

/// Pulls all requested images, one pull for each choice of platforms. The result is in the order of the pulling requests.
fn pull(
    args: &PackArgs,
    requests: &[Request],
    here: &[Source],
    folder: &Path,
    report: Report,
    interrupt: &Interrupt,
) -> Result<Vec<PulledLayout>, PullError> {
    let local: Vec<_> = here.iter().map(|source| source.tree.as_ref()).collect();
    let wanted: Vec<(&ImageReference, &PlatformChoice)> =
        requests.iter().filter_map(|request| Some((reference(request)?, &request.platforms))).collect();
    let mut found: Vec<(&PlatformChoice, ImageReference, PulledLayout)> = Vec::new();
    for (_, platforms) in &wanted {
        if found.iter().any(|(known, ..)| known == platforms) {
            continue;
        }
        let alike = wanted.iter().filter(|(_, other)| other == platforms).map(|(reference, _)| (*reference).clone()).collect();
        let place = (folder, &*work_dir::prefix(&args.output));
        let pulled = args.pulling.run(alike, platforms, &local, place, report, interrupt)?;
        found.extend(pulled.into_iter().map(|(reference, pulled)| (*platforms, reference, pulled)));
    }
    let of = |(reference, platforms): &(&ImageReference, &PlatformChoice)| {
        let one = found.iter().find(|(known, of, _)| known == platforms && of == *reference);
        one.map(|(.., pulled)| pulled.clone())
    };
    Ok(wanted.iter().filter_map(of).collect())
}
