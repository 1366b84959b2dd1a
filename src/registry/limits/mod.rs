//! Every limit of the server in one place, with its unit and its reason. The test network is hostile: whatever a peer can make
//! grow or last has a bound here. Those that a test author may want otherwise are fields of [`Limits`]; their values here are the
//! defaults.

pub mod overrides;

use std::time::Duration;

/// How long a new connection may send nothing: a client that connects speaks at once.
pub const FIRST_BYTE: Duration = Duration::from_secs(5);
/// How long a TLS handshake may take. A node under emulation needs some hundred milliseconds.
pub const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the head of a request may take to arrive, counted from its first byte or, on a kept connection, from the end of the
/// last response.
pub const REQUEST_HEAD: Duration = Duration::from_secs(10);
/// How long a response may make no progress before its stream or connection is closed.
pub const STALL: Duration = Duration::from_secs(30);
/// How often an HTTP/2 peer that is silent is asked whether it is there, and how long it has to answer.
pub const PING: Duration = Duration::from_secs(20);
/// How long an HTTP/2 connection may have no stream, however well its peer answers. A node pulls again within seconds or not at all,
/// Go's clients close theirs after 90 s, and a client is told (GOAWAY) before its connection ends, so that it loses no request. An
/// idle HTTP/1.1 connection ends after [`REQUEST_HEAD`]: longer than Apache's 5 s, with which every client copes.
pub const IDLE: Duration = Duration::from_secs(60);
/// Slowest reader that is served, in bytes a second over each [`STALL`]: a tenth of a 56k modem.
pub const MINIMUM_RATE: u64 = 512;
/// Connections at once: 1,000 nodes may pull. What their bodies hold together is bounded by [`IN_FLIGHT`].
pub const CONNECTIONS: usize = 1024;
/// How long a connection may say nothing where all places are taken and another one comes. A node under emulation speaks within some
/// milliseconds.
pub const SILENCE: Duration = Duration::from_millis(100);
/// Connections that the kernel completes and holds until they are accepted. 128 are usual, and of a thousand nodes that connect in one
/// moment most would then wait a second, until they try again. The kernel bounds it by its own `somaxconn`.
pub const BACKLOG: u32 = 4096;
/// Bytes of one connection that the kernel takes beyond what its peer has room for (`TCP_NOTSENT_LOWAT`, tcp(7)). By itself it takes up
/// to four megabytes for each reader that takes nothing, in a machine that has 256 for all.
pub const UNSENT: u32 = 256 << 10;
/// Bytes of one TLS connection that wait, encrypted, for the network: two records.
pub const TLS_BUFFER: usize = 32 << 10;
/// TLS handshakes computed at once (those that wait for their peer do not count): each is well under a millisecond, and on a machine
/// of two processors a flood of them leaves one to those who are being served.
pub const HANDSHAKES: usize = 1;
/// Streams that an HTTP/2 connection may have at least (SETTINGS_MAX_CONCURRENT_STREAMS). RFC 9113, section 5.1.2 recommends no fewer than
/// 100, and the clients of Go and node open as many before they have read our settings.
pub const ANNOUNCED_STREAMS: u32 = 100;
/// Streams of one HTTP/2 connection that are served at once. Further ones wait, and so do those for which [`SHARED_STREAMS`] is used up.
pub const STREAMS: u32 = ANNOUNCED_STREAMS;
/// Streams of each HTTP/2 connection that are served at once whatever other connections do.
pub const OWN_STREAMS: usize = 2;
/// Streams of all HTTP/2 connections that are served at once beyond [`OWN_STREAMS`] of each. A stream whose client takes nothing costs
/// some 7 KiB.
pub const SHARED_STREAMS: usize = 512;
/// Bytes of frames of one HTTP/2 connection that may wait for streams to end, whatever other connections do. HPACK makes a request for a
/// blob some 85 bytes long, and a hundred of them fit.
pub const HELD_FRAMES: usize = 10 << 10;
/// Bytes of such frames of all connections beyond [`HELD_FRAMES`] of each: heads with a token are long. When they are used up, a
/// connection that needs more is not read until streams of its own end.
pub const SHARED_HELD_FRAMES: usize = 3 << 20;
/// HTTP/2 connections at once. Those that come while there are as many may be idle for no longer than [`REQUEST_HEAD`].
pub const UNCROWDED: usize = 32;
/// How long the rest of an HTTP/2 request is waited for before the answer is sent. RFC 9113, section 8.1 allows an earlier answer, after which
/// the stream is reset without an error, but what the client has under way then meets a stream that is closed.
pub const REQUEST_REST: Duration = Duration::from_millis(500);
/// Bytes of content of an HTTP/2 request that are waited for so, and discarded.
pub const CONTENT: usize = 64 << 10;
/// Bytes of one HTTP/2 stream that wait in memory for its peer's window.
pub const STREAM_BUFFER: usize = 256 << 10;
/// Streams that a peer may reset before they are answered, until the connection is closed (CVE-2023-44487).
pub const RESETS: usize = 32;
/// Streams that we may reset for errors of the peer, until the connection is closed (CVE-2025-8671). A stream beyond
/// [`ANNOUNCED_STREAMS`] is such an error.
pub const ERRORS: usize = 128;
/// Largest head of a request, in bytes (hyper bounds its lines to 100): a `Range` of 1,024 ranges is some 24 KiB (zstd:chunked pulls).
pub const HEAD: usize = 64 << 10;
/// Most ranges in one request; a client that asks for more is told to halve its list (400).
pub const RANGES: usize = 1024;
/// Most entries in one page of a list. A client that asks for more gets this many and a `Link`. With names of 255 bytes a page is a
/// quarter of a megabyte.
pub const PAGE: usize = 1000;
/// Bytes of referrers' manifests after which a page of them ends: clients take indexes of 4 MiB at most, and many less.
pub const REFERRERS: usize = 1 << 20;
/// Bytes of all lists and metrics that are made and not yet written. Who asks for one while there is no room waits for
/// [`DOCUMENT_WAIT`], and is then told to come again (429); images are served as ever.
pub const DOCUMENTS: usize = 8 << 20;
/// How long a list may wait for room among the [`DOCUMENTS`].
pub const DOCUMENT_WAIT: Duration = Duration::from_secs(10);
/// Requests that may wait so, each with a head of [`HEAD`] bytes at most. Further ones are told at once to come again.
pub const DOCUMENT_WAITERS: usize = 128;
/// File descriptors that the process needs beside those of its connections: listeners, the runtime's, the store's, the log's.
pub const OWN_DESCRIPTORS: usize = 32;
/// How long accepting, and opening a blob, pause where the process has no file descriptor left.
pub const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(50);
/// How often the log says that connections cannot be accepted, as long as they cannot.
pub const REMINDER: Duration = Duration::from_secs(30);
/// How long connections that are cut may take to be gone.
pub const CUT: Duration = Duration::from_millis(500);
/// Bytes read from the disk at once.
pub const CHUNK: usize = 128 << 10;
/// Bytes that a body gives its connection in one go, before all others have their turn: a socket whose buffers are empty would otherwise
/// take megabytes, and whoever waits for a manifest would wait for that, three hundred times over.
pub const TURN: u64 = 128 << 10;
/// Turns of connections between two looks for what has arrived from the network. tokio's own 61 suit tasks of some microseconds; one
/// [`TURN`] takes a tenth of a millisecond.
pub const TURNS_BETWEEN_EVENTS: u32 = 8;
/// Bytes of all bodies that are read and not yet written. The nearer they come to it, the smaller each body's next chunk is: a
/// [`SHARE`]th of what is left, so that 24 clients still read [`CHUNK`] at once, 64 read 32 KiB and more, and a thousand 2 KiB.
pub const IN_FLIGHT: usize = 4 << 20;
/// Which part of the room left in [`IN_FLIGHT`] one chunk may take.
pub const SHARE: usize = 8;
/// Bytes read at once where [`IN_FLIGHT`] is reached. Then each body has one such chunk in flight and no more: thousands of streams
/// that take nothing hold some megabytes, and the next one is served all the same.
pub const SMALL_CHUNK: usize = 1 << 10;
/// Largest manifest that is kept in memory from its first request on, in bytes: most have one to four KiB.
pub const KEPT_MANIFEST: u64 = 16 << 10;
/// Manifests that are kept in memory, 8 MiB at most. The first ones stay, and all others come from the disk: what one client asks for
/// takes nothing from another.
pub const KEPT: usize = 512;
/// How long a token is good for: as short as clients take it (they count less than 60 s as 60), long enough for one layer on a slow
/// network.
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(300);
/// Scopes of one token: clients ask for one or two. With names of 255 bytes the token is some 11 KiB, a sixth of [`HEAD`].
pub const SCOPES: usize = 32;
/// Passwords verified at once. Each takes a core for milliseconds to a second, as the password file's author chose.
pub const VERIFICATIONS: usize = 1;
/// How long a password may wait for its turn before its client is told to come again (429).
pub const VERIFICATION_WAIT: Duration = Duration::from_secs(10);
/// How long the disk may take to answer before it counts as failed.
pub const PROBE: Duration = Duration::from_secs(2);
/// Reads of one disk that wait for it at once, each on a thread of its own; further ones wait for a place. A disk that hangs keeps so
/// many threads of the runtime's 512 and, at [`CHUNK`] each, half of [`IN_FLIGHT`] at most, and those who need another disk or none
/// go on. A disk that answers is kept busy by less.
pub const DISK_READS: usize = 16;
/// Warnings of disk faults of one kind within [`FAULTS_EVERY`]. Further ones are counted alone, and the next one that is told says how many: a disk
/// that fails under a thousand nodes must not drown what else there is to tell.
pub const FAULTS: u32 = 10;
/// See [`FAULTS`].
pub const FAULTS_EVERY: Duration = Duration::from_secs(10);
/// Client addresses of which a warning tells that they refuse the registry's certificate, within [`REFUSALS_EVERY`]: a first warning for
/// each, and one with the number of its further refusals. Refusals by other addresses are one number. A thousand nodes that do not trust
/// the CA, or a flood, make 513 events in 10 s, an eighth of the queue for events, and take some 100 KiB.
pub const REFUSING_CLIENTS: usize = 256;
/// See [`REFUSING_CLIENTS`].
pub const REFUSALS_EVERY: Duration = Duration::from_secs(10);
/// Bytes that are read and hashed at once where a blob is verified before a part of it is sent.
pub const VERIFIED_AT_ONCE: usize = 1 << 20;
/// Connections at once to a port of its own for health, metrics and the CA, beside [`CONNECTIONS`]: it answers while the registry is
/// full.
pub const OBSERVERS: usize = 64;
/// Repositories with a line of their own in the metrics, the first ones pulled from; the others share one. More is more than a
/// monitoring system wants of one machine.
pub const REPOSITORY_SERIES: usize = 1000;

/// The limits that can be chosen, each the constant of its name by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// [`FIRST_BYTE`].
    pub first_byte: Duration,
    /// [`HANDSHAKE`].
    pub handshake: Duration,
    /// [`REQUEST_HEAD`].
    pub request_head: Duration,
    /// [`STALL`].
    pub stall: Duration,
    /// [`PING`].
    pub ping: Duration,
    /// [`IDLE`].
    pub idle: Duration,
    /// [`MINIMUM_RATE`], in bytes a second.
    pub minimum_rate: u64,
    /// [`CONNECTIONS`].
    pub connections: usize,
    /// [`HANDSHAKES`].
    pub handshakes: usize,
    /// [`STREAMS`].
    pub streams: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            first_byte: FIRST_BYTE,
            handshake: HANDSHAKE,
            request_head: REQUEST_HEAD,
            stall: STALL,
            ping: PING,
            idle: IDLE,
            minimum_rate: MINIMUM_RATE,
            connections: CONNECTIONS,
            handshakes: HANDSHAKES,
            streams: STREAMS,
        }
    }
}
