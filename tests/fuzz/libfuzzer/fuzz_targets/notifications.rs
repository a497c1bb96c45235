#![no_main]

use weft_fuzz::targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    (targets::netlink::NOTIFICATIONS.run)(bytes);
});
