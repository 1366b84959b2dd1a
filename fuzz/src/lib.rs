//! The fuzz targets of localregistry, by name.

pub mod targets;

/// Runs the target `name` on `data`.
///
/// # Panics
/// If there is no such target, or a property fails.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = targets::TARGETS.iter().find(|(known, _)| *known == name).expect("a name of TARGETS");
    target(data);
}
