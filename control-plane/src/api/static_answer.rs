//! Answers that policies spell out.

use schemars::JsonSchema;
use serde::Deserialize;

/// An answer that the proxy gives itself. gRPC clients get the gRPC status, with the body for message.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StaticAnswer {
    /// HTTP status, 200 to 599.
    #[schemars(range(min = 200, max = 599), example = 503)]
    pub(crate) status: i64,
    /// Name of the gRPC status that gRPC clients get, like `UNAVAILABLE`. Default: what gRPC takes `status` for.
    pub(crate) grpc_status: Option<String>,
    /// Headers of the answer.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub(crate) headers: Vec<HeaderValue>,
    /// Body of the answer, at most 16 KiB. Default: none. Its type is text/plain unless `headers` say otherwise.
    #[serde(default)]
    #[schemars(length(max = 16384))]
    pub(crate) body: String,
}

/// A header.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub(crate) struct HeaderValue {
    /// Its name, in any case.
    #[schemars(length(min = 1, max = 256))]
    pub(crate) name: String,
    /// Its value.
    #[schemars(length(max = 4096))]
    pub(crate) value: String,
}
