//! Parsers of flag values. Each error says what is expected.

use std::{fs, net::SocketAddr, path::Path, thread, time::Duration};

use super::{InboundListener, OutboundListener};

/// Most worker threads that may be asked for.
const MOST_WORKERS: usize = 256;

/// "30s", "500ms", "2m", "1h30m".
pub fn duration(text: &str) -> Result<Duration, String> {
    let expected = || format!("{text:?} is not a duration: expected a number with ms, s, m or h, such as 500ms or 30s");
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(expected)?;
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| expected())?;
        let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let seconds = |each: u64| number.checked_mul(each).map(Duration::from_secs);
        let part = match unit {
            "ms" => Some(Duration::from_millis(number)),
            "s" => seconds(1),
            "m" => seconds(60),
            "h" => seconds(3600),
            _ => None,
        };
        total = part.and_then(|part| total.checked_add(part)).ok_or_else(expected)?;
        rest = tail;
    }
    if text.is_empty() { Err(expected()) } else { Ok(total) }
}

/// "127.0.0.1:8001=shop.default:80"
pub fn outbound(text: &str) -> Result<OutboundListener, String> {
    let (listen, destination) = pair(text, "127.0.0.1:8001=shop.default:80")?;
    Ok(OutboundListener { listen, destination: host_port(destination)? })
}

/// "0.0.0.0:9443=127.0.0.1:8080"
pub fn inbound(text: &str) -> Result<InboundListener, String> {
    let (listen, application) = pair(text, "0.0.0.0:9443=127.0.0.1:8080")?;
    Ok(InboundListener { listen, application: address(application)? })
}

fn pair<'a>(text: &'a str, example: &str) -> Result<(SocketAddr, &'a str), String> {
    let (listen, target) = text.split_once('=').ok_or_else(|| format!("expected ADDRESS=TARGET, such as {example}"))?;
    Ok((address(listen)?, target))
}

/// "127.0.0.1:8001", "[::1]:8001"
pub fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not IP:port, such as 127.0.0.1:8001 or [::1]:8001"))
}

/// "shop.default:80", "[fd00::1]:80"; the host is kept in lower case.
pub fn host_port(text: &str) -> Result<String, String> {
    let expected = || format!("{text:?} is not host:port, such as shop.default:80");
    let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
    let bracketed = host.starts_with('[') && host.ends_with(']') && text.parse::<SocketAddr>().is_ok();
    let named = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
    let port = port.parse::<u16>().ok().filter(|port| *port != 0);
    match port {
        Some(port) if named || bracketed => Ok(format!("{}:{port}", host.to_ascii_lowercase())),
        _ => Err(expected()),
    }
}

/// A share, "0.01".
pub fn share(text: &str) -> Result<f64, String> {
    let share: Option<f64> = text.parse().ok();
    share.filter(|share| (0.0..=1.0).contains(share)).ok_or_else(|| format!("{text:?} is not a number from 0 to 1"))
}

/// A socket mark, "7744" or "0x1e40"; 0 is no mark.
pub fn mark(text: &str) -> Result<u32, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| format!("{text:?} is not a mark: expected a number up to 0xffffffff; 0 for none"))
}

/// "auto" or a number.
pub fn workers(text: &str) -> Result<usize, String> {
    if text == "auto" {
        return Ok(available_workers().min(MOST_WORKERS));
    }
    let number: Option<usize> = text.parse().ok();
    number
        .filter(|workers| (1..=MOST_WORKERS).contains(workers))
        .ok_or_else(|| format!("{text:?} is neither \"auto\" nor a number from 1 to {MOST_WORKERS}"))
}

/// "http://collector:4317"
pub fn otlp_endpoint(text: &str) -> Result<String, String> {
    let expected = || format!("{text:?} is not an OTLP gRPC endpoint: expected http://host:port");
    let uri: http::Uri = text.parse().map_err(|_| expected())?;
    if uri.scheme_str() != Some("http") || uri.host().is_none_or(str::is_empty) {
        return Err(expected());
    }
    Ok(text.to_owned())
}

/// As many workers as this process may use CPUs: the affinity mask, and the cgroup's quota rounded up.
fn available_workers() -> usize {
    // The standard library rounds the quota down.
    let available = thread::available_parallelism().map_or(1, usize::from);
    match cpu_quota() {
        Some(quota) if (quota.floor() as usize).max(1) == available => quota.ceil() as usize,
        _ => available,
    }
}

/// CPUs that the cgroup (v2) and those above it allow.
fn cpu_quota() -> Option<f64> {
    let cgroups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = cgroups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let leaf = Path::new("/sys/fs/cgroup").join(own);
    let quotas = leaf.ancestors().filter_map(|group| quota(&fs::read_to_string(group.join("cpu.max")).ok()?));
    quotas.min_by(f64::total_cmp)
}

/// The quota in CPUs out of `cpu.max`: "150000 100000" or "max 100000".
fn quota(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for wrong in ["", "30", "s", "1d", "-1s", "1 s", "99999999999999999999s", "18446744073709551615h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn listeners() {
        let outbound = outbound("127.0.0.1:8001=Shop.default:80").unwrap();
        assert_eq!(outbound.destination, "shop.default:80");
        let inbound = inbound("[::]:9443=127.0.0.1:8080").unwrap();
        assert_eq!(inbound.application, "127.0.0.1:8080".parse().unwrap());
        for wrong in ["127.0.0.1:1", "localhost:1=shop:80", "127.0.0.1:1=shop", "127.0.0.1:1=shop:0", "127.0.0.1:1=:80"]
        {
            assert!(super::outbound(wrong).is_err(), "{wrong}");
        }
        assert!(super::inbound("127.0.0.1:1=localhost:80").is_err());
    }

    #[test]
    fn names_and_numbers() {
        assert_eq!(host_port("[fd00::1]:80").as_deref(), Ok("[fd00::1]:80"));
        assert!(host_port("fd00::1:80").is_err());
        assert!(host_port("a b:80").is_err());
        assert_eq!(mark("0x1e40"), Ok(0x1e40));
        assert!(mark("-1").is_err());
        assert_eq!(share("0.5"), Ok(0.5));
        assert!(share("NaN").is_err());
        assert!(share("1.1").is_err());
        assert_eq!(workers("2"), Ok(2));
        assert!(workers("auto").unwrap() >= 1);
        assert!(workers("0").is_err());
        assert!(otlp_endpoint("http://127.0.0.1:4317").is_ok());
        assert!(otlp_endpoint("127.0.0.1:4317").is_err());
        assert!(otlp_endpoint("https://collector:4317").is_err());
    }

    #[test]
    fn quotas() {
        assert_eq!(quota("150000 100000\n"), Some(1.5));
        assert_eq!(quota("max 100000\n"), None);
    }
}
