//! What streams carry. A resource is put into bytes once, and those are shared by every delta that has it; buffers of a stream
//! are as small as what usually goes through.

use bytes::{BufMut, Bytes};
use leno_proto::v1::{
    Delta, Goodbye, Question, ResourceName, SubscribeRequest, SubscribeResponse, subscribe_response::Response,
};
use prost::{
    Message as _,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len},
};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// Room for a verdict. What is larger gets its own.
const BUFFER: usize = 64;
/// tonic gives its buffer away when that is full, or at the end of a message.
const YIELD_AT: usize = 32 * 1024;

/// `SubscribeResponse.delta`
const RESPONSE_DELTA: u32 = 1;
/// `Delta.changed`
const DELTA_CHANGED: u32 = 3;

/// A [`Delta`] whose resources are bytes already.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Update {
    pub nonce: u64,
    pub generation: u64,
    /// `Resource` messages.
    pub changed: Vec<Bytes>,
    pub removed: Vec<ResourceName>,
}

impl Update {
    /// All but the resources.
    fn rest(&self) -> Delta {
        let Self { nonce, generation, removed, .. } = self;
        Delta { nonce: *nonce, generation: *generation, changed: Vec::new(), removed: removed.clone() }
    }

    /// Of the delta, in bytes.
    pub fn encoded_len(&self) -> usize {
        self.rest().encoded_len() + self.changed.iter().map(|one| field_len(DELTA_CHANGED, one.len())).sum::<usize>()
    }

    /// As a `SubscribeResponse`. The fields of a message may come in any order.
    fn encode(&self, buffer: &mut impl BufMut) -> Result<(), prost::EncodeError> {
        begin_field(RESPONSE_DELTA, self.encoded_len(), buffer);
        self.rest().encode(buffer)?;
        for resource in &self.changed {
            begin_field(DELTA_CHANGED, resource.len(), buffer);
            buffer.put_slice(resource);
        }
        Ok(())
    }

    /// The same as everybody else knows it.
    #[cfg(test)]
    pub(super) fn message(&self) -> Delta {
        let changed = self.changed.iter().map(|one| leno_proto::v1::Resource::decode(one.clone()).unwrap()).collect();
        Delta { changed, ..self.rest() }
    }
}

fn field_len(tag: u32, len: usize) -> usize {
    key_len(tag) + encoded_len_varint(len as u64) + len
}

fn begin_field(tag: u32, len: usize, buffer: &mut impl BufMut) {
    encode_key(tag, WireType::LengthDelimited, buffer);
    encode_varint(len as u64, buffer);
}

/// A `SubscribeResponse`.
#[derive(Debug)]
pub enum Outgoing {
    Update(Update),
    Goodbye(Goodbye),
    Question(Question),
}

/// See the module.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wire;

impl Codec for Wire {
    type Encode = Outgoing;
    type Decode = SubscribeRequest;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Wire {
    type Item = Outgoing;
    type Error = Status;

    fn encode(&mut self, outgoing: Outgoing, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let encoded = match outgoing {
            Outgoing::Update(update) => {
                buffer.reserve(field_len(RESPONSE_DELTA, update.encoded_len()));
                update.encode(buffer)
            }
            Outgoing::Goodbye(goodbye) => {
                SubscribeResponse { response: Some(Response::Goodbye(goodbye)) }.encode(buffer)
            }
            Outgoing::Question(question) => {
                SubscribeResponse { response: Some(Response::Question(question)) }.encode(buffer)
            }
        };
        encoded.map_err(|error| Status::internal(format!("cannot encode a response: {error}")))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER, YIELD_AT)
    }
}

impl Decoder for Wire {
    type Item = SubscribeRequest;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<SubscribeRequest>, Status> {
        let request = SubscribeRequest::decode(buffer);
        request.map(Some).map_err(|error| Status::invalid_argument(format!("cannot decode a request: {error}")))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER, YIELD_AT)
    }
}

#[cfg(test)]
mod tests {
    use leno_proto::v1::{Resource, ResourceKind};

    use super::*;

    #[test]
    fn an_update_is_a_response_like_any_other() {
        let name = |key: &str| ResourceName { kind: ResourceKind::Destination.into(), key: key.into() };
        let resource = |key: &str| Resource { name: Some(name(key)), version: "x".repeat(300), ..Resource::default() };
        for resources in 0..3 {
            let changed: Vec<Resource> = ["a:1", "b:2"].into_iter().take(resources).map(resource).collect();
            let delta = Delta { nonce: 7, generation: 300, changed, removed: vec![name("c:3")] };
            let update = Update {
                nonce: 7,
                generation: 300,
                changed: delta.changed.iter().map(|one| one.encode_to_vec().into()).collect(),
                removed: delta.removed.clone(),
            };
            assert_eq!((update.message(), update.encoded_len()), (delta.clone(), delta.encoded_len()));
            let mut buffer = Vec::new();
            update.encode(&mut buffer).unwrap();
            let response = SubscribeResponse::decode(buffer.as_slice()).unwrap();
            assert_eq!(response.response, Some(Response::Delta(delta)));
        }
    }
}
