//! A launcher in Rust: boots a packed disk, writes the CA, waits for a pull, and shuts the appliance down.
//!
//! ```console
//! $ cargo run --example boot -- images.erofs
//! ```

use std::error::Error;
use std::path::Path;

use localregistry::launch::{Appliance, Outcome};
use localregistry::proto::event::Event;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let disk = std::env::args_os().nth(1).ok_or("usage: boot DISK")?;

    // Returns when the registry is ready. Dropping the future or the appliance ends QEMU.
    let mut appliance = Appliance::builder(disk).name("registry.test").boot().await?;
    appliance.write_ca(Path::new("boot-ca.crt"))?;
    println!("pull from {}, trusting boot-ca.crt", appliance.address());

    // Events arrive as they happen; this waits for the first answered request.
    while let Some(event) = appliance.next_event().await {
        if let Some(Event::Request(request)) = event?.event {
            println!("{} asked for {} {}", request.peer, request.repository, request.reference);
            break;
        }
    }

    // Graceful: transfers under way finish, and the guest reports its totals.
    let exit = appliance.shutdown().await;
    match exit.outcome {
        Outcome::Done(done) => println!("shut down cleanly after {} requests", done.requests),
        other => return Err(other.to_string().into()),
    }
    Ok(())
}
