//! The access log: one line for each request and each connection of opaque bytes that ended, as text (logfmt) or JSON,
//! with the same names in the same order in both. Names are only ever added. What requests and connections have in
//! common has one name; connections are known by their `protocol`, "TCP".

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;

use super::{ConnectionRecord, RequestRecord, handles::register_counter, lines::Lines};
use crate::{config::LogFormat, reason::Reason};

/// Writes access log lines to standard output.
pub struct AccessLog {
    lines: Lines,
    render: fn(&[Field<'_>], &mut Vec<u8>),
}

/// A field's value.
enum Value<'a> {
    Text(&'a str),
    Owned(String),
    Integer(u64),
    Number(f64),
    Absent,
}

/// One of a line's fields; the names are what operators' queries are written against.
type Field<'a> = (&'static str, Value<'a>);

impl AccessLog {
    /// None if it is off.
    ///
    /// # Errors
    /// If its thread cannot be started.
    pub fn start(format: LogFormat) -> anyhow::Result<Option<Self>> {
        let render = match format {
            LogFormat::Off => return Ok(None),
            LogFormat::Text => text,
            LogFormat::Json => json,
        };
        let dropped = register_counter("leno_access_log_dropped_total", &[], &[]);
        let lines = Lines::spawn("access-log", io::stdout(), dropped).context("starting the access log's thread")?;
        Ok(Some(Self { lines, render }))
    }

    /// Writes the record of a request that ended at `now`.
    pub fn request(&self, record: &RequestRecord, now: SystemTime) {
        self.write(&fields(record, now));
    }

    /// Writes the record of a connection that ended at `now`.
    pub fn connection(&self, record: &ConnectionRecord, now: SystemTime) {
        self.write(&connection_fields(record, now));
    }

    fn write(&self, fields: &[Field<'_>]) {
        let mut line = Vec::with_capacity(512);
        (self.render)(fields, &mut line);
        line.push(b'\n');
        self.lines.push(&line);
    }

    /// Waits until what was logged is written, `timeout` at most.
    pub fn flush(&self, timeout: std::time::Duration) {
        self.lines.flush(timeout);
    }
}

impl<'a> Value<'a> {
    fn text(text: Option<&'a str>) -> Self {
        text.map_or(Self::Absent, Value::Text)
    }

    fn integer(number: Option<u16>) -> Self {
        number.map_or(Self::Absent, |number| Self::Integer(number.into()))
    }

    fn owned(text: Option<String>) -> Self {
        text.map_or(Self::Absent, Value::Owned)
    }
}

/// What is told of a request that ended at `now`.
fn fields(record: &RequestRecord, now: SystemTime) -> [Field<'_>; 21] {
    let origin = record.route.as_ref();
    let began = now.checked_sub(record.duration).unwrap_or(now);
    [
        ("time", Value::Owned(rfc3339(began))),
        ("direction", Value::Text(record.direction.as_str())),
        ("method", Value::Text(record.method.as_str())),
        ("authority", Value::text(record.authority.as_deref())),
        ("path", Value::Text(&record.path)),
        ("protocol", Value::Text(protocol(record.version))),
        ("status", Value::integer(record.status.map(|status| status.as_u16()))),
        ("grpc_status", Value::integer(record.grpc_status)),
        ("duration_ms", Value::Number(record.duration.as_micros() as f64 / 1e3)),
        ("request_bytes", Value::Integer(record.request_bytes)),
        ("response_bytes", Value::Integer(record.response_bytes)),
        ("reason", Value::text(record.reason.map(Reason::as_str))),
        ("route", Value::text(origin.map(|origin| &*origin.route))),
        ("rule", Value::text(origin.map(|origin| &*origin.rule))),
        ("backend", Value::text(record.backend.as_deref())),
        ("endpoint", Value::owned(record.endpoint.map(|endpoint| endpoint.to_string()))),
        ("peer", Value::text(record.peer.as_ref().map(|peer| peer.as_str()))),
        ("attempts", Value::Integer(record.attempts.into())),
        ("trace_id", Value::owned(record.trace.map(|trace| hex(&trace.trace_id)))),
        ("fault", Value::text(record.fault.as_deref())),
        ("fallback", Value::text(record.fallback.map(Reason::as_str))),
    ]
}

/// What is told of a connection that ended at `now`.
fn connection_fields(record: &ConnectionRecord, now: SystemTime) -> [Field<'_>; 14] {
    let origin = record.route.as_ref();
    let began = now.checked_sub(record.duration).unwrap_or(now);
    [
        ("time", Value::Owned(rfc3339(began))),
        ("direction", Value::Text(record.direction.as_str())),
        ("client", Value::Owned(record.client.to_string())),
        ("destination", Value::Text(&record.destination)),
        ("protocol", Value::Text("TCP")),
        ("duration_ms", Value::Number(record.duration.as_micros() as f64 / 1e3)),
        ("bytes_to_server", Value::Integer(record.bytes_to_server)),
        ("bytes_to_client", Value::Integer(record.bytes_to_client)),
        ("reason", Value::text(record.reason.map(Reason::as_str))),
        ("route", Value::text(origin.map(|origin| &*origin.route))),
        ("rule", Value::text(origin.map(|origin| &*origin.rule))),
        ("backend", Value::text(record.backend.as_deref())),
        ("endpoint", Value::owned(record.endpoint.map(|endpoint| endpoint.to_string()))),
        ("peer", Value::text(record.peer.as_ref().map(|peer| peer.as_str()))),
    ]
}

/// A version's name as in semantic conventions.
pub(super) fn protocol(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_09 => "HTTP/0.9",
        http::Version::HTTP_10 => "HTTP/1.0",
        http::Version::HTTP_2 => "HTTP/2",
        http::Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}

fn json(fields: &[Field<'_>], into: &mut Vec<u8>) {
    for (n, (name, value)) in fields.iter().enumerate() {
        into.extend_from_slice(if n == 0 { b"{\"" } else { b",\"" });
        into.extend_from_slice(name.as_bytes());
        into.extend_from_slice(b"\":");
        match value {
            Value::Text(text) => quoted(text, into),
            Value::Owned(text) => quoted(text, into),
            Value::Absent => into.extend_from_slice(b"null"),
            number => plain(number, into),
        }
    }
    into.push(b'}');
}

/// `key=value` pairs; a value with spaces, quotes, `=` or control characters is quoted as in JSON; what there is not
/// is "-".
fn text(fields: &[Field<'_>], into: &mut Vec<u8>) {
    for (n, (name, value)) in fields.iter().enumerate() {
        if n > 0 {
            into.push(b' ');
        }
        into.extend_from_slice(name.as_bytes());
        into.push(b'=');
        match value {
            Value::Text(text) if !is_plain(text) => quoted(text, into),
            Value::Owned(text) if !is_plain(text) => quoted(text, into),
            value => plain(value, into),
        }
    }
}

fn plain(value: &Value<'_>, into: &mut Vec<u8>) {
    // Writing to a Vec cannot fail; so below.
    let _ = match value {
        Value::Text(text) => into.write_all(text.as_bytes()),
        Value::Owned(text) => into.write_all(text.as_bytes()),
        Value::Integer(number) => write!(into, "{number}"),
        Value::Number(number) => write!(into, "{number}"),
        Value::Absent => into.write_all(b"-"),
    };
}

fn quoted(text: &str, into: &mut Vec<u8>) {
    let _ = serde_json::to_writer(into, text);
}

fn is_plain(text: &str) -> bool {
    let breaks = |c: char| c.is_control() || c.is_whitespace() || matches!(c, '"' | '=' | '\\');
    !text.is_empty() && text != "-" && !text.contains(breaks)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// UTC with milliseconds: "2026-11-21T03:10:04.123Z".
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

/// Year, month and day of a day counted from 1970-01-01 (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{policy::RuleOrigin, telemetry::tests::request};

    fn record() -> RequestRecord {
        RequestRecord {
            path: "/a\nb \"c\"".into(),
            route: Some(RuleOrigin { route: "HTTPRoute shop/cart".into(), rule: "0".into() }),
            endpoint: Some("10.0.0.1:80".parse().unwrap()),
            ..request()
        }
    }

    fn at(seconds: u64, millis: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(millis)
    }

    #[test]
    fn json_lines_have_every_field_and_no_raw_control_character() {
        let mut line = Vec::new();
        json(&fields(&record(), at(1_700_000_000, 3)), &mut line);
        assert_eq!(
            String::from_utf8(line).unwrap(),
            "{\"time\":\"2023-11-14T22:13:20.000Z\",\"direction\":\"outbound\",\"method\":\"GET\",\"authority\":\"shop\",\
             \"path\":\"/a\\nb \\\"c\\\"\",\"protocol\":\"HTTP/1.1\",\"status\":200,\"grpc_status\":null,\"duration_ms\":3,\
             \"request_bytes\":10,\"response_bytes\":20,\"reason\":null,\"route\":\"HTTPRoute shop/cart\",\"rule\":\"0\",\
             \"backend\":null,\"endpoint\":\"10.0.0.1:80\",\"peer\":null,\"attempts\":1,\"trace_id\":null,\"fault\":null,\"fallback\":null}"
        );
    }

    #[test]
    fn text_lines_quote_what_would_break_them() {
        let mut line = Vec::new();
        text(&fields(&record(), at(1_700_000_000, 3)), &mut line);
        let line = String::from_utf8(line).unwrap();
        assert!(line.contains("path=\"/a\\nb \\\"c\\\"\" "), "{line}");
        assert!(line.contains(" grpc_status=- ") && line.contains(" route=\"HTTPRoute shop/cart\" "), "{line}");
        assert!(line.contains(" endpoint=10.0.0.1:80 "), "{line}");
        assert_eq!(line.lines().count(), 1);
    }

    #[test]
    fn connections_have_their_own_fields() {
        let client = "10.0.0.9:4000".parse().unwrap();
        let mut record = ConnectionRecord::new(crate::telemetry::Direction::Outbound, client, "db.shop:5432");
        record.backend = Some("shop/db:5432".into());
        record.peer = Some("spiffe://mesh/ns/shop/sa/db".parse().unwrap());
        record.ended(Some(Reason::Reset), 5, 7, Duration::from_micros(1500));
        let mut line = Vec::new();
        json(&connection_fields(&record, at(1_700_000_000, 3)), &mut line);
        assert_eq!(
            String::from_utf8(line).unwrap(),
            "{\"time\":\"2023-11-14T22:13:20.001Z\",\"direction\":\"outbound\",\"client\":\"10.0.0.9:4000\",\
             \"destination\":\"db.shop:5432\",\"protocol\":\"TCP\",\"duration_ms\":1.5,\"bytes_to_server\":5,\
             \"bytes_to_client\":7,\"reason\":\"reset\",\"route\":null,\"rule\":null,\"backend\":\"shop/db:5432\",\
             \"endpoint\":null,\"peer\":\"spiffe://mesh/ns/shop/sa/db\"}"
        );
    }

    #[test]
    fn dates() {
        assert_eq!(rfc3339(UNIX_EPOCH), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(at(951_782_399, 999)), "2000-02-28T23:59:59.999Z");
        assert_eq!(rfc3339(at(951_782_400, 0)), "2000-02-29T00:00:00.000Z");
        assert_eq!(rfc3339(at(951_868_800, 0)), "2000-03-01T00:00:00.000Z");
        assert_eq!(rfc3339(at(4_107_542_400, 0)), "2100-03-01T00:00:00.000Z");
        assert_eq!(rfc3339(at(1_798_761_599, 500)), "2026-12-31T23:59:59.500Z");
    }
}
