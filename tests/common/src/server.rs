//! Starts the server in this process, on free ports of the loopback interface.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use localregistry::proto::{Event, Request, event};
use localregistry::registry::api::handler::{Options, Registry};
use localregistry::registry::auth::Auth;
use localregistry::registry::auth::client_certificate::ClientCa;
use localregistry::registry::content::store::Store;
use localregistry::registry::limits::Limits;
use localregistry::registry::listen::client::Surface;
use localregistry::registry::listen::listener::{Listener, Transport};
use localregistry::registry::listen::server::serve;
use localregistry::registry::telemetry::events::Events;
use localregistry::registry::telemetry::metrics::Totals;
use localregistry::registry::tls::Authority;
use tokio::sync::oneshot;

pub struct Server {
    pub plain: SocketAddr,
    pub tls: SocketAddr,
    /// The separate port of health, metrics and the CA, if any.
    pub observed: Option<SocketAddr>,
    pub ca_pem: String,
    pub registry: Arc<Registry>,
    events: Receiver<Event>,
    stop: Option<oneshot::Sender<Duration>>,
    thread: Option<std::thread::JoinHandle<Totals>>,
}

/// Settings that differ from the defaults.
#[derive(Default)]
pub struct Setup {
    pub limits: Limits,
    pub auth: Auth,
    pub clients: Option<ClientCa>,
    /// Whether health, metrics and the CA have a separate port.
    pub own_port: bool,
    /// Whether digests are verified.
    pub verify: bool,
    /// Whether blobs are sent by `sendfile(2)`.
    pub sendfile: bool,
}

impl Server {
    /// Serves the layout on a plain and a TLS port, in a separate runtime.
    pub fn start(layout: &Path) -> Self {
        Self::start_with(layout, Limits::default())
    }

    /// Serves with these limits.
    pub fn start_with(layout: &Path, limits: Limits) -> Self {
        Self::start_as(layout, Setup { limits, ..Setup::default() })
    }

    /// Serves with this setup.
    pub fn start_as(layout: &Path, setup: Setup) -> Self {
        let (events, queue) = Events::queue();
        let authority = Arc::new(Authority::generate("test").unwrap());
        let store = Store::open(layout).unwrap();
        let names = ["localhost", "127.0.0.1", "registry.test"].map(str::to_owned);
        let leaves = authority.leaves(names.to_vec(), &[], store.upstreams()).unwrap();
        let config = leaves.server_config(setup.clients.as_ref()).unwrap();
        let options = Options {
            limits: setup.limits,
            auth: setup.auth,
            client_certificates: setup.clients.map(|clients| clients.presence()),
            ca_pem: Some(authority.ca_pem().to_owned()),
            verify: setup.verify,
            sendfile: setup.sendfile,
            leaves: Some(leaves),
        };
        let registry = Arc::new(Registry::new(store, events, options));
        let beside = if setup.own_port { Surface::Registry } else { Surface::All };
        let mut listeners = vec![(Transport::Plain, beside), (Transport::Tls(config), beside)];
        if setup.own_port {
            listeners.push((Transport::Plain, Surface::Observability));
        }
        let own = Arc::clone(&registry);
        let (stop, stopped) = oneshot::channel();
        let (bound, addresses) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async move {
                let mut bound_listeners = Vec::new();
                for (transport, surface) in listeners {
                    bound_listeners.push(Listener::bind("127.0.0.1:0".parse().unwrap(), transport, surface).unwrap());
                }
                registry.set_listeners(&bound_listeners);
                bound_listeners.iter().for_each(|one| bound.send(one.socket.local_addr().unwrap()).unwrap());
                serve(bound_listeners, registry, async { stopped.await.unwrap_or_default() }, tokio::time::sleep).await
            })
        });
        let (plain, tls) = (addresses.recv().unwrap(), addresses.recv().unwrap());
        let observed = setup.own_port.then(|| addresses.recv().unwrap());
        Self {
            plain,
            tls,
            observed,
            ca_pem: authority.ca_pem().to_owned(),
            registry: own,
            events: queue,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Waits for the next logged request.
    pub fn logged(&self) -> Request {
        loop {
            if let Some(event::Event::Request(request)) = self.events.recv_timeout(Duration::from_secs(60)).unwrap().event {
                return request;
            }
        }
    }

    /// The next request that is already logged.
    pub fn logged_already(&self) -> Option<Request> {
        self.events.try_iter().find_map(|event| match event.event {
            Some(event::Event::Request(request)) => Some(request),
            _ => None,
        })
    }

    /// Puts a plan of faults in force, given as JSON. Returns the warnings.
    pub fn misbehave(&self, plan: serde_json::Value) -> Vec<String> {
        let plan = serde_json::from_value(plan).unwrap();
        self.registry.start_faults(plan).unwrap()
    }

    /// Waits for the next hit of a rule.
    pub fn fault(&self) -> localregistry::proto::Fault {
        loop {
            if let event::Event::Fault(fault) = self.event() {
                return fault;
            }
        }
    }

    /// Waits for the next event, with its time.
    pub fn whole_event(&self) -> Event {
        self.events.recv_timeout(Duration::from_secs(60)).unwrap()
    }

    /// Waits for the next event.
    pub fn event(&self) -> event::Event {
        self.whole_event().event.unwrap()
    }

    /// Stops accepting, waits up to `drain` for transfers, and returns the totals.
    pub fn stop(mut self, drain: Duration) -> Totals {
        self.stop.take().unwrap().send(drain).unwrap();
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the server panicked");
        }
    }
}
