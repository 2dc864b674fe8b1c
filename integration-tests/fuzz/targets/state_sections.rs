//! Sections of state, as a source sends them. What must hold is said in `integration_tests::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| integration_tests::fuzzing::run("state_sections", input));
