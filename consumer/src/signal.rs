//! SIGTERM and SIGINT.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::error::{Error, ErrorKind, Result};

/// Ends when the first SIGTERM or SIGINT comes. The second ends the process at once with exit code 130, also when
/// the sink is stuck.
pub(crate) fn stop() -> Result<impl Future<Output = ()>> {
    let listen = |kind| {
        signal(kind).map_err(|error| Error::new(ErrorKind::Other, "cannot listen for signals").with_source(error))
    };
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let (first, stop) = oneshot::channel::<()>();
    tokio::spawn(async move {
        let mut next = async || tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => () };
        next().await;
        info!("stopping: delivering and confirming what is under way");
        // The receiver is gone if the process is about to end anyway.
        let _ = first.send(());
        next().await;
        warn!("stopped at once: what was not confirmed comes again");
        std::process::exit(130);
    });
    Ok(async move {
        let _ = stop.await;
    })
}
