//! Values of flags, environment and file, and names of destinations.
#![no_main]

use leno_proxy::{config::values, policy::DestinationKey};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = (values::duration(text), values::share(text), values::mark(text), values::workers(text));
    let _ = (values::inbound(text), values::otlp_endpoint(text));
    if let Ok(listener) = values::outbound(text) {
        assert_eq!(values::host_port(&listener.destination).as_deref(), Ok(&*listener.destination));
    }
    if let Ok(name) = values::host_port(text) {
        assert_eq!(values::host_port(&name).as_deref(), Ok(&*name), "as it is written it is read");
    }
    let key = DestinationKey::from(text);
    assert_eq!(DestinationKey::from(&*key.to_string()), key);
});
