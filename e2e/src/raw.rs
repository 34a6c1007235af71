//! Bytes as no library would write them: raw HTTP/1.1 and HTTP/2 frames.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::client::LIMIT;

/// Most that is read of an answer.
const MAX_ANSWER: usize = 1 << 20;

/// Sends bytes, then reads until the other side closes, falls silent for a while, or too much came.
pub async fn send(address: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>> {
    answer(address, bytes, Duration::from_millis(500)).await
}

/// The same where the other side is to close after its last answer, however long that takes.
pub async fn send_to_end(address: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>> {
    answer(address, bytes, LIMIT).await
}

/// `silence`: for how long, after the first bytes.
async fn answer(address: SocketAddr, bytes: &[u8], silence: Duration) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    // It may close before it has read all: its answer is what counts.
    let sent = timeout(LIMIT, stream.write_all(bytes)).await.context("it does not read what is sent")?;
    let mut answer = Vec::new();
    let mut patience = LIMIT;
    while let Ok(Ok(read @ 1..)) = timeout(patience, stream.read_buf(&mut answer)).await {
        if answer.len() + read > MAX_ANSWER {
            break;
        }
        patience = silence;
    }
    if answer.is_empty() && sent.is_err() {
        return Ok(Vec::new());
    }
    Ok(answer)
}

/// The status of each response in an answer.
pub fn statuses(answer: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(answer);
    text.match_indices("HTTP/1.").filter_map(|(at, _)| text.get(at + 9..at + 12)?.parse().ok()).collect()
}

/// HTTP/2 by the frame (RFC 9113, section 6).
pub struct Http2 {
    pub stream: TcpStream,
}

/// Types of frames.
pub mod frame {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// END_STREAM on DATA and HEADERS, ACK on SETTINGS and PING.
pub const END_STREAM: u8 = 1;
/// On HEADERS and CONTINUATION.
pub const END_HEADERS: u8 = 4;

impl Http2 {
    /// Connects and sends the preface with these settings (identifier, value).
    pub async fn connect(address: SocketAddr, settings: &[(u16, u32)]) -> Result<Self> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()[..]].concat())
            .collect();
        let mut connection = Self { stream };
        connection.write(&encode(frame::SETTINGS, 0, 0, &payload)).await?;
        Ok(connection)
    }

    /// Writes bytes; an error once the other side has closed.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        timeout(LIMIT, self.stream.write_all(bytes)).await.context("it does not read what is sent")??;
        Ok(())
    }

    /// Reads frames until the first HEADERS; its block, as it came.
    pub async fn read_head(&mut self) -> Result<Vec<u8>> {
        loop {
            let (kind, payload) = timeout(LIMIT, self.read_frame()).await.context("no answer")??;
            if kind == frame::HEADERS {
                return Ok(payload);
            }
        }
    }

    /// The next frame's type and payload.
    async fn read_frame(&mut self) -> std::io::Result<(u8, Vec<u8>)> {
        let mut header = [0; 9];
        self.stream.read_exact(&mut header).await?;
        let [a, b, c, kind, ..] = header;
        let mut payload = vec![0; usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)];
        self.stream.read_exact(&mut payload).await?;
        Ok((kind, payload))
    }

    /// Reads frames until one of type GOAWAY, the end, or silence; their types.
    pub async fn read_to_goaway(&mut self) -> Vec<u8> {
        let mut types = Vec::new();
        while let Ok(Ok((kind, _))) = timeout(LIMIT, self.read_frame()).await {
            types.push(kind);
            if kind == frame::GOAWAY {
                break;
            }
        }
        types
    }
}

/// One frame.
pub fn encode(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[a, b, c, kind, flags], &stream.to_be_bytes()[..], payload].concat()
}

/// A header block: GET `path` from `authority`, without Huffman coding or indexing.
pub fn get(authority: &str, path: &str) -> Vec<u8> {
    let literal = |index: u8, value: &str| {
        let length = u8::try_from(value.len()).unwrap_or(0x7e).min(0x7e);
        [&[index, length], value.as_bytes().get(..length.into()).unwrap_or_default()].concat()
    };
    // :method GET, :scheme http (static table); :path and :authority as literals without indexing.
    [vec![0x82, 0x86], literal(0x04, path), literal(0x01, authority)].concat()
}
