//! Resources of the Pod as a whole (`spec.resources`, KEP-2837): the sidecar's come on top, as an API server refuses a Pod whose containers
//! ask for more than it has, or may use more.

use serde_json::Value;

use super::containers;
use crate::webhook::settings::with_quantity;

/// Whether the Pod has any, by which its quality of service is then judged.
pub(super) fn are_set(spec: &Value) -> bool {
    let resources = &spec["resources"];
    ["requests", "limits"].iter().any(|part| resources[part].as_object().is_some_and(|part| !part.is_empty()))
}

/// Adds what a container is given. The class of service stays: what is requested to the limit still is, and no request
/// passes its limit, which grows by the request of a container that has none.
pub(super) fn raise(spec: &mut Value, container: &Value) {
    for name in ["cpu", "memory"] {
        let of_container = |part: &str| quantity(&container[part][name]);
        let Some(limit) = of_container("limits").or_else(|| of_container("requests")) else { continue };
        let request = of_container("requests").unwrap_or(limit);
        let of_pod = |part: &str| quantity(&spec["resources"][part][name]);
        let pod_limit = of_pod("limits");
        let pod_request = of_pod("requests").or_else(|| pod_limit.filter(|_| !is_asked_for(spec, name)));
        let growth = if pod_request == pod_limit { limit } else { request };
        let resources = &mut spec["resources"];
        if let Some(request) = pod_request {
            with_quantity(resources, "requests", name, &text(request + growth));
        }
        if let Some(pod_limit) = pod_limit {
            with_quantity(resources, "limits", name, &text(pod_limit + limit));
        }
    }
}

/// Whether a container says how much it needs. If none does, an API server takes the Pod's limit for its request; else, what they all need.
fn is_asked_for(spec: &Value, name: &str) -> bool {
    containers(spec)
        .any(|container| ["requests", "limits"].iter().any(|part| !container["resources"][part][name].is_null()))
}

/// Nano-units in one.
const UNIT: i128 = 1_000_000_000;

/// A `resource.Quantity` in nano-units; None: it is none that an API server takes.
fn quantity(value: &Value) -> Option<i128> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let scale = match suffix {
        "n" => 1,
        "u" => 1_000,
        "m" => 1_000_000,
        "" => UNIT,
        "k" => UNIT * 1_000,
        "M" => UNIT * 1_000_000,
        "G" => UNIT * 1_000_000_000,
        "T" => UNIT * 1_000_000_000_000,
        "Ki" => UNIT << 10,
        "Mi" => UNIT << 20,
        "Gi" => UNIT << 30,
        "Ti" => UNIT << 40,
        exponent => {
            let exponent = exponent.strip_prefix(['e', 'E'])?.parse::<u32>().ok()?;
            UNIT.checked_mul(10_i128.checked_pow(exponent)?)?
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let places = 10_i128.checked_pow(fraction.len().try_into().ok()?)?;
    // All digits, one at least: without a point in them it is a number.
    let all: i128 = format!("{whole}{fraction}").parse().ok()?;
    Some(all.checked_mul(scale)? / places).filter(|nanos| *nanos <= i128::from(i64::MAX) * UNIT)
}

/// In the largest unit that has no fraction.
fn text(nanos: i128) -> String {
    let units = [(UNIT << 30, "Gi"), (UNIT << 20, "Mi"), (UNIT, ""), (1_000_000, "m"), (1_000, "u"), (1, "n")];
    let fits = units.iter().find(|(unit, _)| nanos % unit == 0);
    fits.map_or_else(|| nanos.to_string(), |(unit, suffix)| format!("{}{suffix}", nanos / unit))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn quantities_are_read_and_written_as_kubernetes_does() {
        for (read, written) in [
            (json!("1Gi"), "1Gi"),
            (json!("1048Mi"), "1048Mi"),
            (json!("1.5Gi"), "1536Mi"),
            (json!("1G"), "1000000000"),
            (json!("1e3"), "1000"),
            (json!("0.5"), "500m"),
            (json!(2), "2"),
            (json!(0.1), "100m"),
            (json!("100u"), "100u"),
            (json!(".5k"), "500"),
        ] {
            assert_eq!(quantity(&read).map(text).as_deref(), Some(written), "{read}");
        }
        for wrong in
            [json!(""), json!("."), json!("1.2.3"), json!("-1"), json!("1mi"), json!("Mi"), json!(null), json!("9e99")]
        {
            assert_eq!(quantity(&wrong), None, "{wrong}");
        }
    }
}
