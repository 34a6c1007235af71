//! Matches of requests, as HTTPRoute has them.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

/// What a request must be like: everything that is said must hold. As the matches of an HTTPRoute.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RequestMatch {
    /// The path. Default: every path.
    #[schemars(example = json!({"type": "Exact", "value": "/v2"}))]
    pub(crate) path: Option<PathValue>,
    /// Headers, all of which must match: at most 16. Of several entries for one name the first counts. Default: any.
    #[serde(default)]
    #[schemars(length(max = 16), example = json!([{"name": "tenant", "value": "gold"}]))]
    pub(crate) headers: Vec<NamedValue>,
    /// Query parameters, all of which must match: at most 16. Of several entries for one name the first counts. Default: any.
    #[serde(default)]
    #[schemars(length(max = 16), example = json!([{"name": "page", "value": "1"}]))]
    pub(crate) query_params: Vec<NamedValue>,
    /// The method. Default: every method.
    #[schemars(example = &"POST")]
    pub(crate) method: Option<String>,
}

/// How a path is compared.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub(crate) struct PathValue {
    /// `Exact`, `PathPrefix` (whole segments) or `RegularExpression` (RE2 syntax, the whole path). Default: `PathPrefix`.
    #[serde(rename = "type")]
    #[schemars(example = &"Exact")]
    pub(crate) kind: Option<String>,
    /// What the path is compared with: at most 1024 characters. Default: `/`.
    #[schemars(length(max = 1024), example = "/v2")]
    pub(crate) value: Option<String>,
}

/// How a header or query parameter is compared.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub(crate) struct NamedValue {
    /// `Exact` or `RegularExpression` (RE2 syntax, the whole value). Default: `Exact`.
    #[serde(rename = "type")]
    #[schemars(example = &"RegularExpression")]
    pub(crate) kind: Option<String>,
    /// Name of the header (in any case) or query parameter: 1 to 256 characters.
    #[schemars(length(min = 1, max = 256), example = &"tenant")]
    pub(crate) name: String,
    /// What its value is compared with: at most 4096 characters.
    #[schemars(length(max = 4096), example = &"gold")]
    pub(crate) value: String,
}
