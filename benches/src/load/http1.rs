//! As much HTTP/1.1 as a load generator needs: where an answer ends.

use anyhow::{Context as _, Result, ensure};

/// Bytes of the whole answer at the start of `buffer`, once its head is there; it must be a 200 with a content-length.
pub(crate) fn answer_length(buffer: &[u8]) -> Result<Option<usize>> {
    let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = buffer.get(..end).unwrap_or_default();
    let head = std::str::from_utf8(head).context("a head that is not text")?;
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    ensure!(status.starts_with("HTTP/1.1 200"), "answered {status:?}");
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>())
    });
    Ok(Some(end + 4 + length.context("an answer without content-length")?.context("content-length")?))
}

/// A GET for the bench's usual answer.
pub(super) fn request() -> Vec<u8> {
    format!("GET {} HTTP/1.1\r\nhost: shop\r\n\r\n", crate::work::PATH).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_after_its_body() {
        assert_eq!(answer_length(b"HTTP/1.1 200 OK\r\nContent-").unwrap(), None);
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nx: y\r\n\r\nabc";
        assert_eq!(answer_length(whole).unwrap(), Some(whole.len()));
        assert_eq!(answer_length(&whole[..whole.len() - 2]).unwrap(), Some(whole.len()));
        assert!(answer_length(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n").is_err());
        assert!(answer_length(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
