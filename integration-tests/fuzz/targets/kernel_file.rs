#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| integration_tests::fuzzing::run("kernel_file", input));
