//! `sessionPersistence` of a route's rule or of an XBackendTrafficPolicy (GEP-1619), as Gateway API 1.6 writes it (`sessionName`, `cookieConfig`, and before
//! it `idleTimeout`), and as it will after it (`cookie`, `header`).

use std::time::Duration;

use super::{Wrong, refuse, value};
use crate::{api::SessionPersistenceSpec, model::object::SessionPersistence};

const MAX_NAME: usize = 128;

pub(super) fn persistence(at: &str, raw: &SessionPersistenceSpec) -> Result<SessionPersistence, Wrong> {
    let mut wrong = Wrong::default();
    let header = match raw.kind.as_deref().unwrap_or("Cookie") {
        "Cookie" => false,
        "Header" => true,
        other => return refuse(format!("{at}.type"), format!("{other:?} is neither Cookie nor Header")),
    };
    if header && (raw.cookie.is_some() || raw.cookie_config.is_some()) {
        wrong.add(at, "of type Header, and says something of a cookie");
    }
    if !header && raw.header.is_some() {
        wrong.add(format!("{at}.header"), "only for type Header");
    }
    let cookie = raw.cookie.as_ref().or(raw.cookie_config.as_ref());
    let name = raw.header.as_ref().map(|header| &header.name);
    let name = name.or_else(|| cookie.and_then(|cookie| cookie.name.as_ref())).or(raw.session_name.as_ref());
    if let Some(name) = name {
        let field = format!("{at}.sessionName");
        match header {
            true => wrong.note(value::changed_header_name(&field, name).map(|_| ())),
            false => wrong.note(value::header_name(&field, name).map(|_| ())),
        }
        if name.len() > MAX_NAME {
            wrong.add(field, format!("longer than {MAX_NAME} characters"));
        }
    }
    let mut timeout = |field: &str, text: Option<&String>| -> Option<Duration> {
        let timeout = text.map(|text| wrong.note(value::duration(&format!("{at}.{field}"), text)));
        timeout.filter(|timeout| !timeout.is_zero())
    };
    let absolute_timeout = timeout("absoluteTimeout", raw.absolute_timeout.as_ref());
    let idle_timeout = timeout("idleTimeout", raw.idle_timeout.as_ref());
    let permanent = match cookie.and_then(|cookie| cookie.lifetime_type.as_deref()).unwrap_or("Session") {
        "Session" => false,
        "Permanent" => true,
        other => {
            wrong.add(format!("{at}.cookie.lifetimeType"), format!("{other:?} is neither Session nor Permanent"));
            false
        }
    };
    if permanent && absolute_timeout.is_none() {
        wrong.add(format!("{at}.absoluteTimeout"), "required where the cookie's lifetimeType is Permanent");
    }
    let path = cookie.and_then(|cookie| cookie.path.as_deref()).unwrap_or("/");
    if !path.starts_with('/') {
        wrong.add(format!("{at}.cookie.path"), format!("{path:?} does not start with /"));
    }
    wrong.note(value::path_characters(&format!("{at}.cookie.path"), path));
    if path.contains(';') {
        wrong.add(format!("{at}.cookie.path"), "a cookie's path holds no semicolon");
    }
    let (name, path) = (name.map(|name| name.as_str().into()), path.into());
    wrong.or(SessionPersistence { name, header, absolute_timeout, idle_timeout, permanent, path })
}
