//! Every source that is asked for, opened: those that are here, then those that are pulled, so that what is here need not be pulled.
//! What enters are requests; what leaves are sources, in the order of the requests.

use std::path::Path;

use super::args::Args;
use super::request::{Origin, Request};
use super::source::Source;
use super::{PackError, work_dir};
use crate::host::images::pull::{PullError, Pulled, Reference};
use crate::host::support::interrupt::Interrupt;
use crate::host::support::report::Report;
use crate::oci::Platform;

/// Opens every source, in the order given where that matters, else in one order whatever the one given: of messages, and of which source
/// a shared blob is read from.
///
/// # Errors
/// [`PackError`], of the first that cannot be opened.
pub fn all(
    args: &Args,
    mut requests: Vec<Request>,
    folder: &Path,
    report: Report,
    interrupt: &Interrupt,
) -> Result<Vec<Source>, PackError> {
    if !args.replace {
        requests.sort_by_cached_key(|request| (request.label(), format!("{request:?}")));
        requests.dedup();
    }
    let open = |request: &Request, pulled: Option<Pulled>| {
        let opened = Source::open(request, pulled, args.allow_missing, folder, interrupt);
        opened.map_err(|source| PackError::Source { label: request.label(), source })
    };
    let mut here = Vec::with_capacity(requests.len());
    for request in requests.iter().filter(|request| reference(request).is_none()) {
        report.step(format!("reading {}", request.label()));
        here.push(open(request, None)?);
    }
    let mut pulled = pull(args, &requests, &here, folder, report, interrupt)?.into_iter();
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

/// What a request pulls.
fn reference(request: &Request) -> Option<&Reference> {
    if let Origin::Pull(reference) = &request.origin { Some(reference) } else { None }
}

/// Pulls what is asked for, all that is for one platform at once: in the order of the requests that pull.
fn pull(
    args: &Args,
    requests: &[Request],
    here: &[Source],
    folder: &Path,
    report: Report,
    interrupt: &Interrupt,
) -> Result<Vec<Pulled>, PullError> {
    let near: Vec<_> = here.iter().map(|source| source.tree.as_ref()).collect();
    let wanted: Vec<(&Reference, Option<&Platform>)> =
        requests.iter().filter_map(|request| Some((reference(request)?, request.platform.as_ref()))).collect();
    let mut found: Vec<(Option<&Platform>, Reference, Pulled)> = Vec::new();
    for (_, platform) in &wanted {
        if found.iter().any(|(known, ..)| known == platform) {
            continue;
        }
        let alike = wanted.iter().filter(|(_, other)| other == platform).map(|(reference, _)| (*reference).clone()).collect();
        let place = (folder, &*work_dir::prefix(&args.output));
        let pulled = args.pulling.run(alike, *platform, &near, place, report, interrupt)?;
        found.extend(pulled.into_iter().map(|(reference, pulled)| (*platform, reference, pulled)));
    }
    let of = |(reference, platform): &(&Reference, Option<&Platform>)| {
        let one = found.iter().find(|(known, of, _)| known == platform && of == *reference);
        one.map(|(.., pulled)| pulled.clone())
    };
    Ok(wanted.iter().filter_map(of).collect())
}
