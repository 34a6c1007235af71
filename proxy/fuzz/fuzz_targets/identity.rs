//! Names and certificates that peers and the control plane present.
#![no_main]

use leno_proto::spiffe::SpiffeId;
use leno_proxy::tls::{FirstContact, TrustBundle};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(id) = std::str::from_utf8(bytes).unwrap_or_default().parse::<SpiffeId>() {
        let again = SpiffeId::new(id.trust_domain(), id.namespace(), id.service_account()).expect("its own parts");
        assert_eq!(again, id);
        assert_eq!(again.as_str().as_bytes(), bytes);
    }
    let _ = TrustBundle::new("cluster.local", &[bytes]);
    let _ = FirstContact::from_pem(bytes);
});
