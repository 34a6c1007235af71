//! The certificate authority: root and issuer, join tokens, and `Identity.Certify`.
