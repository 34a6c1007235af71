//! Verification of a peer: chain to the trust bundle (webpki), then its one SPIFFE URI name.
