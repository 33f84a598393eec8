//! The full circle of two services under random kills; `make circle` shows a larger one.

use postbox_tests::circle::{Kind, Plan, play};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_order_goes_round_once() {
    let plan = Plan { orders: 300, kills: 10, seed: rand::random() };
    println!("{plan:?}");
    let report = play(&plan, |what| println!("{what}")).await;
    println!("{report}");
    assert!(report.is_as_promised(&plan));
    for kind in [Kind::Consumer, Kind::Worker, Kind::Server] {
        assert_ne!(report.killed(kind), 0, "{kind:?}");
    }
    assert_ne!(report.handed_out_again, 0, "a worker died with messages");
    assert_eq!(report.came_again, 0, "positions say what an inbox has");
}
