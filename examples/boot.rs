//! A launcher in Rust: boots a packed disk, hands out the CA, waits for a pull, and ends the appliance in order.
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

    // One call: it returns when the registry answers. Dropping the future, or the appliance, ends QEMU.
    let mut appliance = Appliance::builder(disk).name("registry.test").boot().await?;
    appliance.write_ca(Path::new("boot-ca.crt"))?;
    println!("pull from {}, trusting boot-ca.crt", appliance.address());

    // What nodes do, as it happens; here until the first request has been answered.
    while let Some(event) = appliance.next_event().await {
        if let Some(Event::Request(request)) = event?.event {
            println!("{} asked for {} {}", request.peer, request.repository, request.reference);
            break;
        }
    }

    // In order: transfers under way finish, and the guest says what it has done.
    let ended = appliance.shutdown().await;
    match ended.outcome {
        Outcome::Done(done) => println!("ended in order after {} requests", done.requests),
        other => return Err(other.to_string().into()),
    }
    Ok(())
}
