#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| integration_tests::fuzzing::run("wire_session", input));
