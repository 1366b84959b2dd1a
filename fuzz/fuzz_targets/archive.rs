#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| localregistry_fuzz::run("archive", data));
