//! Every input of `fuzz/corpus` through its fuzz target: what once failed, and one for each way through the parsers.

use std::fs;
use std::path::Path;

#[path = "../../fuzz/src/targets/mod.rs"]
mod targets;

#[test]
fn every_input_of_the_corpus_keeps_the_properties_of_its_target() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in targets::TARGETS {
        let mut inputs: Vec<_> = fs::read_dir(corpus.join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
        inputs.sort();
        assert!(!inputs.is_empty(), "{name} has no input");
        for input in inputs {
            // Shown if the target panics.
            eprintln!("{}", input.display());
            target(&fs::read(&input).unwrap());
        }
    }
}
