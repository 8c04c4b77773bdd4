//! The two-tier cache: values in memory (moka) over a chunk store on disk (mapped data files, indexed in `SQLite`), over
//! the remotes.
//!
//! - [`Cache`]: the way in; what is at hand is answered at once (`at_hand`), the rest is fetched (`fetch`)
//! - `config`, `guard`: what a cache is told, and which directories can be one
//! - `memory`: the memory tier and its budget; `clock`: of it, what each request looks at
//! - `index`: `SQLite` and its schema
//! - `data_file`, `open_files`, `stamp`: mapped files, and which of their bytes are known to be right
//! - `writer`: the one thread that writes; `upkeep` is what it does besides; `reserving` reserves room, `placing` finds places for chunks (`ranges`: where something is already), `writing` writes them there, `space` is how much there is, `eviction` makes some (`copying`: what stays of it; `uses`: what is read again; `condemned`: what is evicted and open somewhere), `syncing` has the disk keep it, `backlog` is what waits for it, `rows` is all else; `discard` takes its place where nothing can be written
//! - `blob`: a blob's manifest and where its chunks lie
//! - `pace`: how fast the remotes are
//! - `readers`: how many wait
//! - `throttle`: no more bytes a second than may be
//! - `flights`: one task per missing object, whatever the number of its waiters; `shared_flights`: and one process
//! - `local_directory`: directories in memory and in the index
//! - `local`: what the index knows, and having it know what was fetched; `on_disk`: chunks in data files
//! - `fetch`, `closure`: bringing and verifying what is missing; `elsewhere`: chunks that are not where a manifest says
//! - `complete`: what is here of a tree, and bringing the rest
//! - `names`: what changes, and is remembered
//! - `profiles`: what mounts have read
//! - `stream_in`, `arriving`: blobs that their remote does not cut, served after their end or as they come
//! - `by_digest`: what a server's clients ask for
//! - `whole`: whether a blob's chunks make up the blob
//! - `stats`: what was hit, missed and found damaged

mod arriving;
mod at_hand;
mod backlog;
mod blob;
mod by_digest;
mod clock;
mod closure;
mod complete;
mod condemned;
mod config;
mod copying;
mod data_file;
mod discard;
mod elsewhere;
mod error;
mod eviction;
mod fetch;
mod flights;
mod guard;
mod index;
mod local;
mod local_directory;
mod memory;
mod names;
mod on_disk;
mod open_files;
mod pace;
mod placing;
mod profiles;
mod ranges;
mod readers;
mod reserving;
mod rows;
mod shared_flights;
mod space;
mod stamp;
mod stats;
mod store;
mod stream_in;
mod syncing;
mod throttle;
mod upkeep;
mod uses;
mod whole;
mod writer;
mod writing;

pub use at_hand::{Cache, Reader};
pub use blob::{Blob, ChunkData, ONE_CHUNK, Slice};
pub use by_digest::Opened;
pub use clock::ClockCache;
pub use config::{
    Bandwidth, BandwidthError, Config, Quota, QuotaError, default_memory, machine_memory,
};
pub use data_file::{DataFile, Mapped};
pub use error::CacheError;
pub use fetch::Prefetched;

pub use guard::{GuardError, prepare};
pub use index::now;
pub use on_disk::Check;
pub use pace::Pace;
pub use profiles::StoredProfile;
pub use readers::Waiting;
pub use stats::{Counter, Stats, Usage};
pub use stream_in::STREAMED;
