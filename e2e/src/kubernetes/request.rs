//! Single requests from a client's Pod.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};

use super::Namespace;
use crate::server::Seen;

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case; of several values the last.
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Answer {
    /// What the server says it saw.
    pub fn seen(&self) -> Result<Seen> {
        serde_json::from_str(&self.body).with_context(|| format!("{self:?} is not the server's answer"))
    }

    /// A header; empty if absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(String::as_str).unwrap_or_default()
    }

    /// As curl prints it with `--include`.
    fn parse(printed: &str) -> Result<Self> {
        let (head, body) = printed.split_once("\r\n\r\n").with_context(|| format!("no head: {printed:?}"))?;
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
        let headers = lines.filter_map(|line| line.split_once(':'));
        Ok(Self {
            status: status.with_context(|| format!("no status: {head:?}"))?,
            headers: headers.map(|(name, value)| (name.to_lowercase(), value.trim().to_owned())).collect(),
            body: body.to_owned(),
        })
    }
}

impl Namespace {
    /// One request by curl from a client's Pod; `words`: the URL, and options of curl if need be.
    pub async fn request(&self, client: &str, words: &str) -> Result<Answer> {
        Answer::parse(&self.run(client, &format!("curl -sS --include -m 10 {words}")).await?)
    }

    /// So many requests for a URL on one HTTP/1.1 connection of a client's Pod, one after the other. How many each server
    /// answered.
    pub async fn on_one_connection(&self, client: &str, url: &str, count: u32) -> Result<BTreeMap<String, u32>> {
        let say = "%{num_connects} %{http_code} %header{x-instance}\\n";
        let shell = format!("curl -sS -m 60 --http1.1 -o /dev/null -w '{say}' '{url}?n=[1-{count}]'");
        let printed = self.run(client, &shell).await?;
        let (mut connections, mut instances) = (0, BTreeMap::new());
        for line in printed.lines() {
            let mut words = line.split(' ');
            connections += words.next().and_then(|n| n.parse::<u32>().ok()).with_context(|| printed.clone())?;
            ensure!(words.next() == Some("200"), "{printed}");
            *instances.entry(words.next().unwrap_or_default().to_owned()).or_default() += 1;
        }
        ensure!(connections == 1, "{connections} connections were made");
        ensure!(instances.values().sum::<u32>() == count, "{count} requests were wanted: {instances:?}");
        Ok(instances)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_as_curl_prints_it() {
        let answer =
            Answer::parse("HTTP/1.1 302 Found\r\nLocation: http://a/b\r\nx: \r\n\r\nbody\r\n\r\nmore").unwrap();
        assert_eq!((answer.status, answer.header("location"), answer.header("x")), (302, "http://a/b", ""));
        assert_eq!(answer.body, "body\r\n\r\nmore");
        assert_eq!(Answer::parse("HTTP/2 404 \r\nx: y\r\n\r\n").unwrap().status, 404);
        assert!(Answer::parse("curl: (7) no").is_err());
    }
}
