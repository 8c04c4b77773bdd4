use bytes::{Buf, Bytes};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder},
};
use tonic_prost::ProstCodec;

/// A message as it was sent: what it is named by is the digest of these bytes, not of what they mean.
pub(super) struct Raw(pub(super) Bytes);

/// Messages that a request can be answered with.
pub(super) trait Answered: Send + Sync + Sized + 'static {
    fn codec<Q: prost::Message + 'static>() -> impl Codec<Encode = Q, Decode = Self>;
}

impl Answered for Raw {
    fn codec<Q: prost::Message + 'static>() -> impl Codec<Encode = Q, Decode = Self> {
        RawCodec(ProstCodec::<Q, ()>::default())
    }
}

macro_rules! answered {
    ($($message:ty),*) => {$(
        impl Answered for $message {
            fn codec<Q: prost::Message + 'static>() -> impl Codec<Encode = Q, Decode = Self> {
                ProstCodec::<Q, Self>::default()
            }
        }
    )*};
}

answered!(
    crate::proto::tvix::castore::v1::StatBlobResponse,
    crate::proto::tvix::castore::v1::BlobChunk,
    crate::proto::tvix::castore::v1::Node,
    crate::proto::tvix::castore::v1::PutBlobResponse,
    crate::proto::tvix::castore::v1::PutDirectoryResponse,
    crate::proto::tvix::store::v1::PathInfo,
    crate::proto::castore::v1::HasResponse,
    crate::proto::castore::v1::PutManifestResponse,
    crate::proto::castore::v1::PutRootResponse,
    crate::proto::castore::v1::RemoveRootResponse
);

struct RawCodec<Q>(ProstCodec<Q, ()>);

impl<Q: prost::Message + 'static> Codec for RawCodec<Q> {
    type Encode = Q;
    type Decode = Raw;
    type Encoder = <ProstCodec<Q, ()> as Codec>::Encoder;
    type Decoder = RawDecoder;

    fn encoder(&mut self) -> Self::Encoder {
        self.0.encoder()
    }

    fn decoder(&mut self) -> RawDecoder {
        RawDecoder
    }
}

struct RawDecoder;

impl Decoder for RawDecoder {
    type Item = Raw;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Raw>, Status> {
        Ok(Some(Raw(message.copy_to_bytes(message.remaining()))))
    }
}
