//! What is fuzzed: a function for each kind of bytes that others write. A function panics where a property fails; the bytes may be refused,
//! but nothing may panic, run without end, or be read in two ways. Tests replay the corpus through the same functions.

mod disks;
mod files;
mod guest;
mod http;
mod oci;
mod server;

/// A target's function.
pub type Target = fn(&[u8]);

/// The targets by name.
pub const TARGETS: [(&str, Target); 19] = [
    ("archive", files::archive),
    ("catalog", disks::catalog),
    ("certificate", files::certificate),
    ("client_hello", server::client_hello),
    ("config", guest::config),
    ("dhcp", guest::dhcp),
    ("disk", disks::disk),
    ("elf", files::elf),
    ("http1", server::http1),
    ("http2", server::http2),
    ("kernel", files::kernel),
    ("layout", disks::layout),
    ("list", files::list),
    ("log", files::log),
    ("manifest", oci::manifest),
    ("module_tree", files::module_tree),
    ("netlink", guest::netlink),
    ("range", http::range),
    ("request", http::request),
];
