//! Answers that policies spell out.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

/// An answer that the proxy gives itself. gRPC clients get the gRPC status, with the body for message.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StaticAnswer {
    /// HTTP status, 200 to 599.
    #[schemars(range(min = 200, max = 599), example = 503)]
    pub(crate) status: i64,
    /// Name of the gRPC status that gRPC clients get, like `UNAVAILABLE`. Default: what gRPC takes `status` for.
    #[schemars(example = &"UNAVAILABLE")]
    pub(crate) grpc_status: Option<String>,
    /// Headers of the answer: at most 16. Default: none.
    #[serde(default)]
    #[schemars(length(max = 16), example = json!([{"name": "cache-control", "value": "no-store"}]))]
    pub(crate) headers: Vec<HeaderValue>,
    /// Body of the answer, at most 16384 bytes. Its type is text/plain unless `headers` say otherwise. Default: none.
    #[serde(default)]
    #[schemars(length(max = 16384), example = "Closed until six.")]
    pub(crate) body: String,
}

/// A header.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub(crate) struct HeaderValue {
    /// Its name, in any case: 1 to 256 characters.
    #[schemars(length(min = 1, max = 256), example = "cache-control")]
    pub(crate) name: String,
    /// Its value: at most 4096 characters.
    #[schemars(length(max = 4096), example = "no-store")]
    pub(crate) value: String,
}
