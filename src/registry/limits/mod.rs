//! Every limit of the server, with its unit and its reason.
//!
//! The test network is hostile: whatever a peer can make grow or last has a bound here. [`Limits`] holds those that a test author may
//! change; for these, the constants are the defaults.

pub mod overrides;

use std::time::Duration;

pub use overrides::Limits;

/// How long a new connection may send nothing. A real client sends its first bytes at once.
pub const FIRST_BYTE: Duration = Duration::from_secs(5);
/// How long a TLS handshake may take. An emulated node needs some hundred milliseconds.
pub const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the head of a request may take to arrive, from its first byte or, on a persistent connection, from the end of the last
/// response.
pub const REQUEST_HEAD: Duration = Duration::from_secs(10);
/// How long a response may make no progress before its stream or connection is closed.
pub const STALL: Duration = Duration::from_secs(30);
/// How often a silent HTTP/2 peer is pinged, and how long it has to respond.
pub const PING: Duration = Duration::from_secs(20);
/// How long an HTTP/2 connection may have no stream, even if its peer responds to pings. A node pulls again within seconds or not at all,
/// and Go's clients close their connections after 90 s. The client receives GOAWAY before the connection ends, so it loses no request. An
/// idle HTTP/1.1 connection ends after [`REQUEST_HEAD`], which is longer than Apache's 5 s.
pub const IDLE: Duration = Duration::from_secs(60);
/// Slowest reader that is served, in bytes a second over each [`STALL`] that the server waits for it: a tenth of a 56k modem.
pub const MINIMUM_RATE: u64 = 512;
/// Connections at once: 1,000 nodes may pull. [`IN_FLIGHT`] bounds the memory of their response bodies.
pub const CONNECTIONS: usize = 1024;
/// How long a connection may send nothing if all slots are taken and another connection arrives. An emulated node sends its first bytes
/// within some milliseconds.
pub const SILENCE: Duration = Duration::from_millis(100);
/// Connections that the kernel completes and queues until they are accepted. With the usual 128, most of a thousand nodes that connect at
/// the same moment would wait a second until they try again. The kernel caps this at its own `somaxconn`.
pub const BACKLOG: u32 = 4096;
/// Bytes of one connection that the kernel buffers beyond the peer's receive window (`TCP_NOTSENT_LOWAT`, tcp(7)). By default it buffers up
/// to 4 MB for each client that does not read, on a machine with 256 MB in all.
pub const UNSENT: u32 = 256 << 10;
/// The same of a connection that sends from files. These bytes are pages of the page cache, which clients of the same blob share, and all
/// sockets together may hold no more than `tcp_mem` (tcp(7)), a tenth of the memory. With [`UNSENT`] the server wakes up for each 128 KiB.
pub const UNSENT_FROM_FILES: u32 = 4 << 20;
/// Bytes that one TLS connection encrypts at once: two records. They wait for the network if the socket does not take them.
pub const TLS_BUFFER: usize = 32 << 10;
/// TLS handshakes computed at once, not counting those that wait for their peer. Each takes well under a millisecond. On a machine with two
/// processors, a flood of handshakes leaves one processor for the other clients.
pub const HANDSHAKES: usize = 1;
/// Streams that an HTTP/2 connection may open at least (SETTINGS_MAX_CONCURRENT_STREAMS). RFC 9113, section 5.1.2 recommends no fewer than
/// 100, and the clients of Go and Node open as many before they have read our settings.
pub const ANNOUNCED_STREAMS: u32 = 100;
/// Streams of one HTTP/2 connection that are served at once. Further ones wait, also if [`SHARED_STREAMS`] are in use.
pub const STREAMS: u32 = ANNOUNCED_STREAMS;
/// Streams of each HTTP/2 connection that are served at once whatever other connections do.
pub const OWN_STREAMS: usize = 2;
/// Streams of all HTTP/2 connections that are served at once beyond the [`OWN_STREAMS`] of each. A stream whose client does not read takes
/// some 7 KiB.
pub const SHARED_STREAMS: usize = 512;
/// Requests that one HTTP/2 connection may hold back. A client that has not read the server's SETTINGS may open any number of streams. One
/// that opens more than these is not read until some of its streams end.
pub const HELD_REQUESTS: usize = 1024;
/// Bytes of frames that one HTTP/2 connection may hold back until streams end, whatever other connections do. HPACK compresses a request
/// for a blob to some 85 bytes, so this is enough for a hundred.
pub const HELD_FRAMES: usize = 10 << 10;
/// Bytes of held frames of all connections beyond the [`HELD_FRAMES`] of each: requests with a token are long. When they are used up, a
/// connection that needs more is not read until some of its streams end.
pub const SHARED_HELD_FRAMES: usize = 3 << 20;
/// HTTP/2 connections that may each be idle for [`IDLE`]. Further ones may be idle for [`REQUEST_HEAD`] only.
pub const FEW_HTTP2_CONNECTIONS: usize = 32;
/// How long the server waits for the rest of an HTTP/2 request before it responds. RFC 9113, section 8.1 allows an earlier response, which
/// resets the stream without an error, but bytes that the client has under way then reach a closed stream.
pub const REQUEST_REST: Duration = Duration::from_millis(500);
/// Bytes of an HTTP/2 request's content that are read and discarded meanwhile.
pub const DISCARDED_CONTENT: usize = 64 << 10;
/// Bytes of one HTTP/2 stream that wait in memory for its peer's window.
pub const STREAM_BUFFER: usize = 256 << 10;
/// Streams that a peer may reset before they are answered, until the connection is closed (CVE-2023-44487).
pub const RESETS: usize = 32;
/// Streams that the server may reset for errors of the peer, until the connection is closed (CVE-2025-8671). A stream beyond
/// [`ANNOUNCED_STREAMS`] is such an error.
pub const ERRORS: usize = 128;
/// Largest head of a request, in bytes. hyper limits it to 100 lines. A `Range` of 1,024 ranges (zstd:chunked pulls) takes some 24 KiB.
pub const HEAD: usize = 64 << 10;
/// Most ranges in one request. A client that requests more gets 400, and halves its list.
pub const RANGES: usize = 1024;
/// Most entries in one page of a list. A client that requests more gets this many and a `Link`. With names of 255 bytes a page is a
/// quarter of a megabyte.
pub const PAGE: usize = 1000;
/// Bytes of referrers' manifests after which a page of them ends. Clients accept indexes of 4 MiB at most, and many accept less.
pub const REFERRERS: usize = 1 << 20;
/// Bytes of all generated responses (lists and metrics) that are not yet written. A request for a further one waits for
/// [`RESPONSE_MEMORY_WAIT`], and then gets 429. Images are served meanwhile.
pub const RESPONSE_MEMORY: usize = 8 << 20;
/// How long a request may wait for its part of [`RESPONSE_MEMORY`].
pub const RESPONSE_MEMORY_WAIT: Duration = Duration::from_secs(10);
/// Requests that may wait so, each with a head of [`HEAD`] bytes at most. Further ones get 429 at once.
pub const RESPONSE_MEMORY_WAITERS: usize = 128;
/// File descriptors that the process needs besides those of its connections: listeners, runtime, store, log.
pub const OWN_DESCRIPTORS: usize = 32;
/// How long accepting, and opening a blob, pause if the process is out of file descriptors.
pub const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(50);
/// How often the log repeats that connections cannot be accepted.
pub const ACCEPT_WARNING_INTERVAL: Duration = Duration::from_secs(30);
/// How long connections may take to end once they are told to end at once.
pub const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
/// Bytes read from the disk at once.
pub const CHUNK: usize = 128 << 10;
/// Bytes of a body that an HTTP/2 stream takes at least at once: one DATA frame of the initial SETTINGS_MAX_FRAME_SIZE (RFC 9113, section
/// 6.5.2). It takes up to a [`CHUNK`] if there are few streams.
pub const FRAME: usize = 16 << 10;
/// Bytes that a body gives its connection before all others have their turn. A socket with empty buffers would otherwise take megabytes,
/// and with 300 connections a request for a manifest would wait for 300 times that.
pub const TURN: u64 = 128 << 10;
/// Bytes of a file that `sendfile(2)` is told to send at once.
pub const SENT_AT_ONCE: usize = 1 << 20;
/// A [`TURN`] of a body that `sendfile(2)` sends: it takes a thirtieth of the processor time that TLS takes for each byte.
pub const FILE_TURN: u64 = 1 << 20;
/// Bytes of a file that are looked for in the page cache at once. If they are not there, a thread that may wait for the disk reads them
/// into it before `sendfile(2)` sends them, and tells the disk of as many more.
pub const LOADED_AT_ONCE: u64 = 1 << 20;
/// How long they are taken to stay there. A client that is slower has them looked for again, so that `sendfile(2)` does not wait for the
/// disk on a thread of the server.
pub const LOADED_FOR: Duration = Duration::from_millis(100);
/// Turns of connections between two polls of the network. tokio's default of 61 suits tasks of some microseconds; one [`TURN`] takes a
/// tenth of a millisecond.
pub const TURNS_BETWEEN_EVENTS: u32 = 8;
/// Bytes of all bodies that are read and not yet written. The next chunk of a body is a [`SHARE`]th of what is left of them, so that 24
/// clients still read [`CHUNK`] at once, 64 read 32 KiB and more, and a thousand read 2 KiB.
pub const IN_FLIGHT: usize = 4 << 20;
/// The fraction of the bytes left in [`IN_FLIGHT`] that one chunk may take.
pub const SHARE: usize = 8;
/// Bytes read at once if [`IN_FLIGHT`] is used up. Each body may still have one such chunk in flight: thousands of streams whose clients do
/// not read hold some megabytes, and the next stream is served nevertheless.
pub const SMALL_CHUNK: usize = 1 << 10;
/// Largest manifest that is cached in memory, in bytes. Most have one to four KiB.
pub const LARGEST_CACHED_MANIFEST: u64 = 16 << 10;
/// Manifests that are cached in memory, 8 MiB at most. The first ones stay and all others come from the disk, so that no client can evict
/// the manifests of another.
pub const CACHED_MANIFESTS: usize = 512;
/// How long a token is valid: short, but clients treat less than 60 s as 60 s, and one layer on a slow network must fit.
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(300);
/// Scopes of one token. Clients request one or two. With names of 255 bytes the token takes some 11 KiB, a sixth of [`HEAD`].
pub const SCOPES: usize = 32;
/// Passwords verified at once. Each takes a core for milliseconds to a second, by the cost in the password file.
pub const VERIFICATIONS: usize = 1;
/// How long a password may wait to be verified before its client gets 429.
pub const VERIFICATION_WAIT: Duration = Duration::from_secs(10);
/// How long the disk may take to answer the health check before it counts as failed.
pub const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);
/// Reads of one disk that may block at once, each on a thread of its own. Further ones wait. A disk that hangs holds no more than these of
/// the runtime's 512 threads and, at [`CHUNK`] each, half of [`IN_FLIGHT`], so that other disks are served. A disk that works is kept busy
/// by fewer.
pub const DISK_READS: usize = 16;
/// How long a thread that reads disks stays without work: as long as any process.
pub const THREADS_STAY: Duration = Duration::from_secs(365 * 86_400);
/// Warnings of disk errors of one kind within [`DISK_WARNING_INTERVAL`]. Further ones are only counted, and the next warning has their
/// number: a disk that fails under a thousand nodes must not flood the events.
pub const DISK_WARNINGS: u32 = 10;
/// See [`DISK_WARNINGS`].
pub const DISK_WARNING_INTERVAL: Duration = Duration::from_secs(10);
/// Client addresses, each with one alert, with warnings of their own that they refuse the registry's certificate, within [`REFUSAL_INTERVAL`]: one for the first
/// refusal, and one with the number of further ones. All other addresses share one number. A thousand nodes that do not trust the CA, or a
/// flood, make 513 events in 10 s, which is an eighth of the event queue and some 100 KiB.
pub const REFUSING_CLIENTS: usize = 256;
/// Alerts of one client address with warnings of their own within [`REFUSAL_INTERVAL`]. A client sends one or two, and the nodes behind one
/// address some more. A client that sends every alert there is must not use up the warnings of others.
pub const REFUSAL_ALERTS: usize = 4;
/// See [`REFUSING_CLIENTS`].
pub const REFUSAL_INTERVAL: Duration = Duration::from_secs(10);
/// Bytes that are read and hashed at once if a blob is verified before a part of it is sent.
pub const VERIFIED_AT_ONCE: usize = 1 << 20;
/// Connections at once to the separate port for health, metrics and the CA, in addition to [`CONNECTIONS`]: it responds while the registry
/// is full.
pub const OBSERVER_CONNECTIONS: usize = 64;
/// Repositories with metrics of their own: the first ones pulled from. All others share one series. More would overload a monitoring
/// system for one machine.
pub const REPOSITORY_SERIES: usize = 1000;
