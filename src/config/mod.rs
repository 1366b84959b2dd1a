//! The appliance's config. What enters are up to three texts: `localregistry/config.json` on the disk, fw_cfg
//! `opt/localregistry/config`, the kernel command line; what leaves is one [`Settings`]. Later sources win over earlier ones, key
//! by key; a list replaces a list. It never guesses: an unknown key or a bad value in any source is an error that names the key,
//! the value, the source and what is expected, also where a later source would have won.
//!
//! ```text
//! defaults ◀ disk ◀ fw_cfg ◀ kernel command line ─▶ Settings
//! ```

pub mod cmdline;
pub mod disks;
pub mod guest_config;
pub mod kernel_ip;
pub mod keys;
pub mod layer;
pub(crate) mod merge;
pub mod settings;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

pub use layer::Layer;
pub use settings::Settings;

/// Longest text of a source, in bytes.
pub const LARGEST: u64 = 1 << 20;

/// Where fw_cfg's files of this appliance are.
pub const FW_CFG: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/localregistry";

/// Where a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// `localregistry/config.json` on the disk.
    Disk,
    /// QEMU's `-fw_cfg name=opt/localregistry/config`.
    FwCfg,
    /// The kernel command line.
    CommandLine,
    /// All of them, each being right by itself.
    Together,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disk => "localregistry/config.json on the disk",
            Self::FwCfg => "fw_cfg opt/localregistry/config",
            Self::CommandLine => "kernel command line",
            Self::Together => "config from all sources",
        })
    }
}

/// A config that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file of a source could not be read.
    #[error("{origin}: read {path}")]
    Read {
        /// The source.
        origin: Origin,
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The text is longer than [`LARGEST`].
    #[error("{origin}: more than {LARGEST} bytes; expected a config of a few lines")]
    TooLarge {
        /// The source.
        origin: Origin,
    },
    /// The text is not what the source must hold.
    #[error("{origin}: {problem}; expected one JSON object")]
    Syntax {
        /// The source.
        origin: Origin,
        /// What the parser says.
        problem: String,
    },
    /// A key that no config has.
    #[error("{origin}: unknown key {key}; expected one of {}", keys::list())]
    UnknownKey {
        /// The source.
        origin: Origin,
        /// The key, nested keys joined by dots.
        key: String,
    },
    /// A value that its key does not take.
    #[error("{origin}: {key} is {value}; expected {expected}")]
    BadValue {
        /// The source.
        origin: Origin,
        /// The key, nested keys joined by dots.
        key: String,
        /// The value, as JSON, cut where it is long.
        value: String,
        /// What the key takes.
        expected: &'static str,
    },
    /// Two disks have a file, and not the same.
    #[error("{origin}: {one} and {other} have different ones; expected the same on each, or one alone")]
    Disagree {
        /// The source.
        origin: Origin,
        /// The one disk.
        one: String,
        /// The other.
        other: String,
    },
    /// Two keys say which disk to take.
    #[error("{origin}: disk.serial and disks both say which disk to serve; expected one of them")]
    DiskTwice {
        /// The source.
        origin: Origin,
    },
    /// The disk's file says which disk to take.
    #[error("{origin}: {key} chooses the disk that this file is on; expected it in fw_cfg or on the kernel command line")]
    DiskOnDisk {
        /// The source.
        origin: Origin,
        /// The key.
        key: String,
    },
}

/// What was given from outside the disk: fw_cfg, with the kernel command line over it.
///
/// # Errors
/// When either cannot be read or is refused.
pub fn outside() -> Result<Layer, ConfigError> {
    let fw_cfg = match read(Origin::FwCfg, &Path::new(FW_CFG).join("config/raw"))? {
        Some(text) => Layer::from_json(Origin::FwCfg, &text)?,
        None => Layer::default(),
    };
    let line = read(Origin::CommandLine, Path::new("/proc/cmdline"))?.unwrap_or_default();
    Ok(fw_cfg.under(Layer::from_command_line(&String::from_utf8_lossy(&line))?))
}

/// What the disk mounted at `root` says, for everything but which disk that is.
///
/// # Errors
/// When its file cannot be read or is refused.
pub fn on_disk(root: &Path) -> Result<Layer, ConfigError> {
    match read(Origin::Disk, &root.join("localregistry/config.json"))? {
        Some(text) => Layer::from_json(Origin::Disk, &text)?.without_disk(),
        None => Ok(Layer::default()),
    }
}

/// What several disks say, each given as its name and its root.
///
/// # Errors
/// As of [`on_disk`]; where two of them say different things.
pub fn on_disks<'a>(disks: impl IntoIterator<Item = (&'a str, &'a Path)>) -> Result<Layer, ConfigError> {
    let mut said: Option<(&str, Layer)> = None;
    for (name, root) in disks {
        let layer = on_disk(root)?;
        match &said {
            _ if layer == Layer::default() => {}
            None => said = Some((name, layer)),
            Some((_, known)) if *known == layer => {}
            Some((one, _)) => {
                return Err(ConfigError::Disagree { origin: Origin::Disk, one: (*one).to_owned(), other: name.to_owned() });
            }
        }
    }
    Ok(said.map(|(_, layer)| layer).unwrap_or_default())
}

/// The text of `path`, or nothing where there is no such file.
fn read(origin: Origin, path: &Path) -> Result<Option<Vec<u8>>, ConfigError> {
    let failed = |source| ConfigError::Read { origin, path: path.display().to_string(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > LARGEST { Err(ConfigError::TooLarge { origin }) } else { Ok(Some(text)) }
}

#[cfg(test)]
mod tests;
