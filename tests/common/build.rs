//! Sets `PROGRAM` to the path of the program under test, in the profile's folder of the target folder in use.

use std::env::var;
use std::path::Path;

fn main() {
    let out = var("OUT_DIR").unwrap_or_default();
    let profile = Path::new(&out).ancestors().nth(3).unwrap_or(Path::new(""));
    println!("cargo:rustc-env=PROGRAM={}", profile.join("localregistry").display());
    println!("cargo:rerun-if-changed=build.rs");
}
