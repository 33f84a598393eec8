#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| postbox_fuzz::emitted(bytes));
