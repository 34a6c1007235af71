//! Drives rustls through a handshake over a stream, and takes the keys out of it for [`TlsStream`].

use std::io;

use rustls::{
    Error,
    client::UnbufferedClientConnection,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus},
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{
    record::Record,
    stream::{Keys, Session},
};

/// One read: a flight with a post-quantum key share and certificates.
const READ_BYTES: usize = 4096;

/// What is to be done next.
pub(super) enum Step {
    Send(Vec<u8>),
    Flush,
    Read,
    Done,
}

/// A handshake of either side.
pub(super) trait Handshake {
    /// Goes on with what was read; how much of it is no longer needed, and what to do then.
    fn step(&mut self, incoming: &mut [u8]) -> (usize, Result<Step, Error>);

    /// The keys, once it is done.
    fn finish(self) -> Result<Keys, Error>;
}

/// Makes the handshake. What was read beyond its end is left in `incoming`, which may hold first bytes.
///
/// # Errors
/// The stream's errors, and rustls' inside `InvalidData`: the peer has been told then.
pub(super) async fn make<T: AsyncRead + AsyncWrite + Unpin>(
    handshake: &mut impl Handshake,
    io: &mut T,
    incoming: &mut Vec<u8>,
) -> io::Result<()> {
    // How much rustls has seen: one record more each time, so that it opens none that comes after the handshake.
    let mut shown = 0;
    loop {
        let (used, step) = handshake.step(incoming.get_mut(..shown).unwrap_or_default());
        incoming.drain(..used.min(incoming.len()));
        shown = shown.saturating_sub(used);
        match step {
            Ok(Step::Send(bytes)) => io.write_all(&bytes).await?,
            Ok(Step::Flush) => io.flush().await?,
            Ok(Step::Done) => return Ok(()),
            Ok(Step::Read) => {
                let unseen = incoming.get(shown..).unwrap_or_default();
                // What is no record, rustls refuses.
                let next = Record::first(unseen).map_or(unseen.len(), |first| first.map_or(0, |(_, length)| length));
                if next == 0 {
                    incoming.reserve(READ_BYTES);
                    if io.read_buf(incoming).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                shown += next;
            }
            Err(error) => {
                // What is still to be sent, and the alert behind it. Where it is the bytes that are refused there is the alert
                // alone, and asked once more, rustls would refuse them again.
                let most = if is_of_bytes(&error) { 1 } else { usize::MAX };
                for _ in 0..most {
                    let (_, Ok(Step::Send(alert))) = handshake.step(incoming.get_mut(..shown).unwrap_or_default())
                    else {
                        break;
                    };
                    io.write_all(&alert).await?;
                }
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }
}

/// Whether it is no record that can be read, whatever would be in it.
fn is_of_bytes(error: &Error) -> bool {
    matches!(error, Error::InvalidMessage(_) | Error::PeerSentOversizedRecord | Error::DecryptError)
}

fn next_step<Data>(status: UnbufferedStatus<'_, '_, Data>) -> (usize, Result<Step, Error>) {
    let step = status.state.and_then(|state| match state {
        ConnectionState::EncodeTlsData(data) => encoded(data),
        ConnectionState::TransmitTlsData(sent) => {
            sent.done();
            Ok(Step::Flush)
        }
        ConnectionState::BlockedHandshake => Ok(Step::Read),
        ConnectionState::WriteTraffic(_) => Ok(Step::Done),
        _ => Err(Error::HandshakeNotComplete),
    });
    (status.discard, step)
}

fn encoded<Data>(mut data: EncodeTlsData<'_, Data>) -> Result<Step, Error> {
    // It tells how much there is only by refusing what is too small.
    let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) else {
        return Ok(Step::Flush);
    };
    let mut bytes = vec![0; size.required_size];
    match data.encode(&mut bytes) {
        Ok(_) => Ok(Step::Send(bytes)),
        Err(error) => Err(Error::General(error.to_string())),
    }
}

impl Handshake for UnbufferedClientConnection {
    fn step(&mut self, incoming: &mut [u8]) -> (usize, Result<Step, Error>) {
        next_step(self.process_tls_records(incoming))
    }

    fn finish(self) -> Result<Keys, Error> {
        let (secrets, connection) = self.dangerous_into_kernel_connection()?;
        Ok(Keys { secrets, session: Session::Client(connection) })
    }
}

impl Handshake for UnbufferedServerConnection {
    fn step(&mut self, incoming: &mut [u8]) -> (usize, Result<Step, Error>) {
        next_step(self.process_tls_records(incoming))
    }

    fn finish(self) -> Result<Keys, Error> {
        let (secrets, connection) = self.dangerous_into_kernel_connection()?;
        Ok(Keys { secrets, session: Session::Server(connection) })
    }
}
