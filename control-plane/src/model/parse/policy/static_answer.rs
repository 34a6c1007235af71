//! Answers that policies spell out.

use leno_proto::grpc;

use super::super::{FieldError, Wrong, refuse, value};
use crate::{
    api,
    model::{object::Header, policy::StaticAnswer},
};

/// Bytes of a body (the proxy takes no larger one).
const MAX_BODY: usize = 16 * 1024;
const MAX_HEADERS: usize = 16;

pub(super) fn static_answer(at: &str, raw: &api::StaticAnswer) -> Result<StaticAnswer, Wrong> {
    let mut wrong = Wrong::default();
    let status = wrong.note(status(&format!("{at}.status"), raw.status));
    let named = raw.grpc_status.as_deref();
    let grpc_status = named.map(|name| wrong.note(grpc_status(&format!("{at}.grpcStatus"), name)));
    wrong.note(value::at_most(&format!("{at}.headers"), raw.headers.len(), MAX_HEADERS));
    let mut headers: Vec<Header> = Vec::with_capacity(raw.headers.len());
    for (index, header) in raw.headers.iter().enumerate() {
        let name = wrong.note(value::changed_header_name(&format!("{at}.headers[{index}].name"), &header.name));
        wrong.note(value::header_value(&format!("{at}.headers[{index}].value"), &header.value));
        headers.push((name.into(), header.value.as_str().into()));
    }
    if raw.body.len() > MAX_BODY {
        wrong.add(format!("{at}.body"), format!("longer than {MAX_BODY} bytes: serve it from a backend"));
    }
    let grpc_status = grpc_status.unwrap_or_else(|| grpc::of_http(status));
    wrong.or(StaticAnswer { status, grpc_status, headers, body: raw.body.as_str().into() })
}

/// Of an answer that ends the exchange.
pub(super) fn status(field: &str, status: i64) -> Result<u16, FieldError> {
    match u16::try_from(status) {
        Ok(status @ 200..=599) => Ok(status),
        _ => refuse(field, format!("{status} is not between 200 and 599")),
    }
}

/// By its name.
pub(super) fn grpc_status(field: &str, name: &str) -> Result<u16, FieldError> {
    match grpc::code(name) {
        Some(code) => Ok(code),
        None => refuse(field, format!("{name:?} is not one of {}", grpc::CODES.join(", "))),
    }
}
