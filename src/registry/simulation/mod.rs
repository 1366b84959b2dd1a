//! The server on a virtual clock and a network in memory, with clients of every habit and disks that fail, come and go, all from one seed.
//! At every step and at the end, what must hold is checked: every byte is right or its response is cut, memory is bounded, each request is
//! in one event, counters agree, and a drain ends in time.
//!
//! Then, on the same network and disks, each call of a request fails in turn.
//!
//! `LOCALREGISTRY_SEED=7 cargo test --lib simulation` replays one seed, and `LOCALREGISTRY_SEED=0..1000000` runs many.

mod clients;
mod content;
pub mod disks;
mod faults;
mod network;
mod world;

use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::disk::catalog;
use crate::disk::layout::{Directory, OpenFile, Tree};
use crate::registry::content::disk_calls::Cache;
use crate::registry::content::store::read_catalog;
use crate::registry::limits::{IN_FLIGHT, Limits};
use clients::{Client, Habit};
use content::{DISKS, Wanted, library};
use disks::{Behaviour, HANG};
use faults::Fault;
use world::{Setting, World};

/// Runs a world on a runtime of its own, whose clock stands still while anything can go on.
fn run<T>(rng: &mut fastrand::Rng, setting: Setting, simulation: impl AsyncFnOnce(Setting) -> T) -> T {
    disks::install(rng.fork(), setting.disks.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let result = runtime.block_on(simulation(setting));
    disks::remove();
    result
}

fn behaviour(rng: &mut fastrand::Rng, verify: bool) -> Behaviour {
    let rate = |rng: &mut fastrand::Rng, most| if rng.u8(0..3) == 0 { rng.u32(0..most) } else { 0 };
    let mut behaviour = Behaviour {
        cached: *rng.choice(&[0, 100, 900, 1000]).unwrap(),
        cache: *rng.choice(&[Cache::Known, Cache::Known, Cache::Unknown, Cache::None]).unwrap(),
        interrupted: rate(rng, 300),
        short: rate(rng, 500),
        latency: *rng.choice(&[0, 1, 20, 200]).unwrap(),
        ..Behaviour::healthy()
    };
    match rng.u8(0..8) {
        0 => behaviour.failing = rng.u32(1..300),
        1 => behaviour.hanging = rng.u32(1..300),
        2 => behaviour.cut_at = Some(rng.u64(0..100_000)),
        // Otherwise wrong bytes are sent, and the client checks the digest.
        3 if verify => behaviour.wrong_byte = Some(rng.u64(0..2000)),
        _ => {}
    }
    behaviour
}

/// The world of a seed. Returns what happened in it.
fn simulate(seed: u64) -> Vec<String> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let (verify, is_large) = (rng.u8(0..3) == 0, rng.u8(0..100) == 0);
    let one_of = |rng: &mut fastrand::Rng, count: u8| rng.u8(0..count) == 0;
    let usual = Limits::default();
    let limits = Limits {
        connections: if one_of(&mut rng, 4) { rng.usize(1..4) } else { usual.connections },
        streams: if one_of(&mut rng, 4) { rng.u32(1..4) } else { usual.streams },
        ..usual
    };
    let setting = Setting {
        limits,
        verify,
        sendfile: rng.bool(),
        sends_small_steps: rng.bool(),
        disks: (0..DISKS).map(|_| behaviour(&mut rng, verify)).collect(),
        present: [(); DISKS].map(|()| !one_of(&mut rng, 6)),
        changes: [(); DISKS].map(|()| one_of(&mut rng, 5)),
        used: if one_of(&mut rng, 10) { IN_FLIGHT - rng.usize(0..64 << 10) } else { 0 },
        drain: Duration::from_millis(*rng.choice(&[0, 10, 1000, 10_000, 3 * HANG.as_millis() as u64]).unwrap()),
    };
    if is_replay() {
        eprintln!("{setting:#?}");
    }
    let count = if is_large { rng.usize(100..300) } else { rng.usize(1..8) };
    let drains_early = one_of(&mut rng, 4).then(|| Duration::from_millis(rng.u64(0..1000)));
    run(&mut rng.fork(), setting, async |setting| {
        let changes = setting.changes;
        let (world, server) = World::start(setting);
        let mut disks = JoinSet::new();
        for disk in (0..DISKS).filter(|disk| changes[*disk]) {
            let (world, mut rng) = (Arc::clone(&world), rng.fork());
            disks.spawn(async move {
                for change in 0..rng.usize(1..5) {
                    sleep(Duration::from_millis(rng.u64(0..500))).await;
                    world.change_disk(disk, change % 2 == 1);
                }
            });
        }
        let mut clients = JoinSet::new();
        for number in 0..count {
            let (start, habit) = (Duration::from_millis(rng.u64(0..300)), Habit::any(&mut rng));
            let client = Client { world: Arc::clone(&world), number, rng: rng.fork() };
            clients.spawn(async move {
                sleep(start).await;
                client.world.trace(format!("client {number} {habit:?}"));
                client.run(habit).await;
            });
        }
        let all = async |clients: &mut JoinSet<()>| {
            while let Some(client) = clients.join_next().await {
                client.unwrap();
            }
        };
        tokio::select! {
            biased;
            () = all(&mut clients) => {}
            () = sleep(drains_early.unwrap_or(Duration::MAX)) => {}
        }
        world.end(server, all(&mut clients)).await;
        all(&mut disks).await;
        world.take_trace()
    })
}

/// Whether one seed is looked at.
fn is_replay() -> bool {
    std::env::var("LOCALREGISTRY_SEED").is_ok_and(|seed| seed.parse::<u64>().is_ok())
}

/// The seeds to run.
fn seeds() -> std::ops::Range<u64> {
    let wanted = std::env::var("LOCALREGISTRY_SEED").unwrap_or_else(|_| "0..1000".to_owned());
    let number = |text: &str| text.parse().expect("LOCALREGISTRY_SEED is a number, or FROM..TO");
    wanted.split_once("..").map_or_else(|| number(&wanted)..number(&wanted) + 1, |(from, to)| number(from)..number(to))
}

/// Calls `run` for all of `numbers`, on a thread for each processor.
fn for_each(numbers: std::ops::Range<u64>, run: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(numbers.start);
    let worker = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= numbers.end {
                return;
            }
            run(number);
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..std::thread::available_parallelism().map_or(1, usize::from)).map(|_| scope.spawn(worker)).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn worlds_of_all_seeds_hold() {
    let failed = AtomicBool::new(false);
    for_each(seeds(), |seed| {
        if catch_unwind(AssertUnwindSafe(|| simulate(seed))).is_err() {
            failed.store(true, Ordering::Relaxed);
            eprintln!("replay it: LOCALREGISTRY_SEED={seed} cargo test --lib simulation");
        }
    });
    assert!(!failed.into_inner(), "seeds above have failed");
}

#[test]
fn seed_replays_exactly() {
    for_each(0..100, |seed| assert_eq!(simulate(seed), simulate(seed), "seed {seed}"));
}

/// Does a request while a call fails, and then again. Returns the number of calls of the first one.
fn with_fault(setting: &Setting, over_http2: bool, wanted: &Wanted, fault: Option<(u64, Fault)>) -> u64 {
    run(&mut fastrand::Rng::with_seed(7), setting.clone(), async |setting| {
        let (world, server) = World::start(setting);
        let client = |number| Client { world: Arc::clone(&world), number, rng: fastrand::Rng::with_seed(7) };
        world.set_fault(fault.is_some_and(|(_, fault)| matches!(fault, Fault::Error | Fault::Hang)));
        faults::set(fault);
        client(0).request(over_http2, wanted).await;
        // Longer than any limit of the server: it ends the connection of a client that is gone.
        sleep(Duration::from_secs(200)).await;
        let calls = faults::calls();
        faults::set(None);
        let metrics = world.registry.metrics();
        assert_eq!((metrics.connections(), metrics.in_flight()), (0, 0), "{fault:?} is left behind: {wanted:?}");
        world.set_fault(false);
        client(1).request(over_http2, wanted).await;
        world.end(server, async {}).await;
        calls
    })
}

/// How one of the cases of [`any_call_of_a_request_may_fail`] is served: over HTTP/1.1 from files or from buffers, or over HTTP/2; digests
/// are checked or not; the page cache has all or nothing.
fn served(case: u64) -> (bool, Setting) {
    let (transport, verify, is_cached) = (case % 3, case / 3 % 2 == 1, case / 6 == 1);
    let disk = Behaviour { cached: if is_cached { 1000 } else { 0 }, ..Behaviour::healthy() };
    let setting = Setting {
        limits: Limits::default(),
        verify,
        sendfile: transport == 1,
        sends_small_steps: false,
        disks: vec![disk; DISKS],
        present: [true; DISKS],
        changes: [false; DISKS],
        used: 0,
        drain: Duration::ZERO,
    };
    (transport == 2, setting)
}

#[test]
fn any_call_of_a_request_may_fail() {
    const CASES: u64 = 12;
    let (seeds, calls) = (seeds(), AtomicU64::new(0));
    // The requests of one seed have two thousand calls.
    let end = seeds.start + (seeds.end - seeds.start).div_ceil(1000);
    for_each(CASES * seeds.start..CASES * end, |number| {
        let ((over_http2, setting), mut rng) = (served(number % CASES), fastrand::Rng::with_seed(number / CASES));
        // Larger ones have many calls alike.
        let requests = std::iter::repeat_with(|| Wanted::any(&mut rng)).filter(|wanted| wanted.len() < 400_000);
        for wanted in requests.take(12) {
            let count = with_fault(&setting, over_http2, &wanted, None);
            for fault in (0..count).flat_map(|number| Fault::ALL.map(|fault| (number, fault))) {
                let run = catch_unwind(AssertUnwindSafe(|| with_fault(&setting, over_http2, &wanted, Some(fault))));
                assert!(run.is_ok(), "seed {}, {fault:?}, HTTP/2: {over_http2}, {setting:?}: {wanted:?}", number / CASES);
            }
            calls.fetch_add(count, Ordering::Relaxed);
        }
    });
    println!("{calls:?} calls, each with {} faults", Fault::ALL.len());
    assert!(calls.into_inner() > 1000);
}

/// The files of a disk, each call to which may fail.
struct FaultyTree {
    tree: Directory,
    has_catalog: bool,
}

impl Tree for FaultyTree {
    fn open(&self, path: &str) -> io::Result<OpenFile<'_>> {
        if path == catalog::PATH && !self.has_catalog {
            return Err(io::ErrorKind::NotFound.into());
        }
        // An open that is interrupted is repeated below this.
        if faults::next() == Some(Fault::Error) {
            return Err(Errno::IO.into());
        }
        let OpenFile { reader, size } = self.tree.open(path)?;
        Ok(OpenFile { reader: Box::new(FaultyReader(reader)), size })
    }
}

struct FaultyReader<'a>(Box<dyn Read + Send + 'a>);

impl Read for FaultyReader<'_> {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        let most = faults::disk_call()?.min(space.len());
        self.0.read(&mut space[..most])
    }
}

#[test]
fn any_call_of_opening_a_disk_may_fail() {
    for (disk, has_catalog) in (0..DISKS).flat_map(|disk| [(disk, false), (disk, true)]) {
        let tree = FaultyTree { tree: Directory::open(&library().path(disk)).unwrap(), has_catalog };
        let read = |fault| {
            faults::set(fault);
            let read = read_catalog(&tree, false).map(|loaded| loaded.catalog.encode());
            (read, faults::calls())
        };
        let (expected, count) = read(None);
        let expected = expected.unwrap();
        assert!(count >= 2, "{count} calls");
        for fault in (0..count).flat_map(|number| Fault::ALL.map(|fault| (number, fault))) {
            match read(Some(fault)).0 {
                Ok(catalog) => assert!(catalog == expected && fault.1 != Fault::Error, "{fault:?}"),
                Err(error) => assert!(fault.1 == Fault::Error && !error.to_string().is_empty(), "{fault:?}: {error:?}"),
            }
        }
    }
    faults::set(None);
}
