//! `sessionPersistence` (GEP-1619), of a route's rule and of an XBackendTrafficPolicy.

use serde::Deserialize;

/// As Gateway API 1.6 writes it (`sessionName`, `cookieConfig`), and as it will after it (`cookie`, `header`).
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SessionPersistenceSpec {
    pub(crate) session_name: Option<String>,
    pub(crate) absolute_timeout: Option<String>,
    pub(crate) idle_timeout: Option<String>,
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) cookie_config: Option<SessionCookie>,
    pub(crate) cookie: Option<SessionCookie>,
    pub(crate) header: Option<SessionHeader>,
}

/// The cookie that carries a session.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SessionCookie {
    pub(crate) name: Option<String>,
    pub(crate) path: Option<String>,
    pub(crate) lifetime_type: Option<String>,
}

/// The header that carries a session.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct SessionHeader {
    pub(crate) name: String,
}
