//! Which Pod a certificate was given to: said by a private extension that is not critical, so that peers pass over it.

use anyhow::Context as _;
use rcgen::CustomExtension;
use rustls::pki_types::CertificateDer;
use x509_parser::asn1_rs::{self, FromDer, SerializeError, ToDer as _};

/// `1.2.840.113556.1.8000.2554` is the arc that Microsoft keeps for whoever has a GUID ("Obtaining an Object Identifier from
/// Microsoft"). Under it Leno's, e9e98c55-c96e-44d9-9e43-3bce931ffd05, in the seven parts that are the rule there; and 1, this extension.
const OID: [u64; 15] =
    [1, 2, 840, 113_556, 1, 8000, 2554, 59_881, 35_925, 51_566, 17_625, 40_515, 3_919_507, 2_096_389, 1];

/// The Pod whose token bought a certificate; its namespace is the identity's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundPod {
    pub name: String,
    pub uid: String,
}

impl BoundPod {
    /// Its content: a SEQUENCE of two UTF8Strings, name and uid.
    pub(super) fn extension(&self) -> Result<CustomExtension, SerializeError> {
        let content = vec![self.name.as_str(), &self.uid].to_der_vec()?;
        Ok(CustomExtension::from_oid_content(&OID, content))
    }

    /// None: the certificate is bound to no Pod.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> anyhow::Result<Option<Self>> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).context("not an X.509 certificate")?;
        let is_ours = |oid: &asn1_rs::Oid<'_>| oid.iter().is_some_and(|arcs| arcs.eq(OID));
        let Some(extension) = parsed.extensions().iter().find(|one| is_ours(&one.oid)) else { return Ok(None) };
        let read: Result<_, asn1_rs::Err<asn1_rs::Error>> = Vec::<String>::from_der(extension.value);
        let said = read.ok().and_then(|(_, said)| <[String; 2]>::try_from(said).ok());
        let [name, uid] = said.context("the extension that names the certificate's Pod cannot be read")?;
        Ok(Some(Self { name, uid }))
    }
}
