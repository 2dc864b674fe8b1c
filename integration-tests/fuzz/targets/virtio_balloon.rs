//! An entropy device whose driver means harm. What must hold is said in `integration_tests::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| integration_tests::fuzzing::run("virtio_balloon", input));
