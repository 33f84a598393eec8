//! `make bench`: what Postbox costs, measured on private clusters and held against its targets.
//!
//! Each part prints a table and its verdicts, and writes what it measured to `target/bench/pg<major>-<part>.json`.

mod arguments;
mod backlog;
mod capture;
mod claims;
mod decode;
mod drain;
mod groups;
mod inbox;
mod inbox_claims;
mod inbox_held;
mod inbox_ordered;
mod inbox_tiers;
mod inbox_views;
mod latency;
mod measure;
mod memory;
mod postbox;
mod publish;
mod report;
mod retention;
mod shapes;
mod slots;

use std::error::Error;
use std::process::ExitCode;

use arguments::{Arguments, HELP, Part};
use report::Report;

/// What a part ends with.
type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(Some(arguments)) => arguments,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("bench: {error}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    if let Some(error) = arguments.run_again_for_major() {
        eprintln!("bench: cannot run again: {error}");
        return ExitCode::FAILURE;
    }
    let mut failed = false;
    for &part in &arguments.parts {
        match run(part, &arguments).await {
            Ok(report) => {
                println!("{report}");
                if let Err(error) = report.write(part) {
                    eprintln!("bench: cannot write what {part} measured: {error}");
                    failed = true;
                }
            }
            Err(error) => {
                eprintln!("bench: {part}: {error}");
                failed = true;
            }
        }
    }
    // A target that is missed is a finding, not a failure.
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

async fn run(part: Part, arguments: &Arguments) -> Outcome<Report> {
    match part {
        Part::Small => decode::run(backlog::Workload::Small, arguments).await,
        Part::Bulk => decode::run(backlog::Workload::Bulk, arguments).await,
        Part::None => decode::run(backlog::Workload::None, arguments).await,
        Part::Latency => latency::run(arguments).await,
        Part::Drain => drain::run(arguments).await,
        Part::Publish => publish::run(arguments),
        Part::Capture => capture::run(arguments),
        Part::Memory => memory::run(arguments).await,
        Part::Types => shapes::types(arguments).await,
        Part::Frames => shapes::frames(arguments).await,
        Part::Slots => slots::run(arguments),
        Part::Retention => retention::run(arguments).await,
        Part::Groups => groups::run(arguments),
        Part::Inbox => inbox::run(arguments).await,
        Part::InboxClaims => inbox_claims::run(arguments).await,
        Part::InboxHeld => inbox_held::run(arguments).await,
        Part::InboxOrdered => inbox_ordered::run(arguments).await,
        Part::InboxViews => inbox_views::run(arguments).await,
        Part::InboxTiers => inbox_tiers::run(arguments).await,
        Part::Claims => claims::run(arguments).await,
    }
}
