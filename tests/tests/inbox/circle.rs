//! The full circle of two services under random kills; `make circle` shows a larger one.

use postbox_tests::circle::{Plan, play};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_order_goes_round_once() {
    let plan = Plan { orders: 300, kills: 10, seed: rand::random() };
    println!("{plan:?}");
    let report = play(&plan, env!("CARGO_BIN_EXE_circle").as_ref(), |what| println!("{what}")).await;
    println!("{report}");
    assert!(report.is_as_promised(&plan));
    assert_eq!(report.came_again, 0, "positions say what an inbox has");
}
