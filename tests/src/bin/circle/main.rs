//! `make circle`: orders go round between two services, while everything is killed at random; see [`postbox_tests::circle`].
//! The exit code is 1 if an order did not go round once.

use std::env;
use std::process::ExitCode;

use postbox_tests::circle::{Plan, play};

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = env::args().skip(1).collect::<Vec<_>>();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => show(rand::random()).await,
        [seed] if seed.parse::<u64>().is_ok() => show(seed.parse().unwrap_or_default()).await,
        _ => {
            eprintln!("usage: circle [SEED]");
            ExitCode::from(2)
        }
    }
}

async fn show(seed: u64) -> ExitCode {
    let plan = Plan { orders: 1000, kills: 15, seed };
    println!(
        "{} orders: shop's outbox -> office's inbox -> charge -> office's outbox -> shop's inbox -> paid.\n\
         {} times one of two servers, two consumers or four workers is killed (seed {seed}).\n",
        plan.orders, plan.kills
    );
    let report = play(&plan, |what| println!("{what}")).await;
    println!("\n{report}");
    if report.is_as_promised(&plan) {
        println!("Every order went round exactly once.");
        return ExitCode::SUCCESS;
    }
    println!("This is NOT as promised.");
    ExitCode::FAILURE
}
