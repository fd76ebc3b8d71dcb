//! Renewal in virtual time: when it is due, what a failure costs, and what is told of it.

use super::*;

const MADE: u64 = 2_000_000_000;
const YEAR: u64 = 365 * 24 * 3600;

fn joined(life: u64) -> JoinResponse {
    JoinResponse {
        version: 1,
        node: "rover-7".to_owned(),
        ca_certificate: String::new(),
        certificate: String::new(),
        signing_key: String::new(),
        broker_url: String::new(),
        broker_username: String::new(),
        broker_password: String::new(),
        server_urls: Vec::new(),
        server_time: MADE,
        not_after: MADE + life,
    }
}

fn clock(system: u64, floor: u64, up: Duration) -> Clock {
    Clock { system, floor, up }
}

#[test]
fn a_certificate_is_due_at_two_thirds_of_its_life() {
    let long = HOUR * 2;
    for (what, life, now, connected, expected) in [
        ("new", YEAR, clock(MADE, 0, long), true, DAY),
        (
            "an hour before",
            3 * YEAR,
            clock(MADE + 2 * YEAR - 3600, 0, long),
            true,
            HOUR,
        ),
        (
            "at two thirds",
            3 * YEAR,
            clock(MADE + 2 * YEAR, 0, long),
            true,
            Duration::ZERO,
        ),
        (
            "ended",
            YEAR,
            clock(MADE + 2 * YEAR, 0, long),
            true,
            Duration::ZERO,
        ),
        (
            "short",
            30,
            clock(MADE + 5, 0, long),
            true,
            Duration::from_secs(15),
        ),
        (
            "by the known time",
            3 * YEAR,
            clock(MADE, MADE + 2 * YEAR, long),
            true,
            Duration::ZERO,
        ),
        ("1970, let in", YEAR, clock(100, MADE, long), true, HOUR),
        (
            "1970, just started",
            YEAR,
            clock(100, MADE, Duration::ZERO),
            false,
            HOUR,
        ),
        (
            "1970, shut out",
            YEAR,
            clock(100, MADE, long),
            false,
            Duration::ZERO,
        ),
        ("shut out, and a clock", YEAR, clock(MADE, 0, long), false, DAY),
    ] {
        assert_eq!(due(&joined(life), now, connected), expected, "{what}");
    }
}

#[test]
fn the_condition_comes_near_the_end() {
    let it = joined(60);
    let says = |at: u64| expiring(&it, clock(MADE + at, 0, HOUR), "no server");
    assert_eq!(says(49), None);
    let said = says(50).unwrap();
    assert!(
        said.contains("2033-05-18T03:34:20") && said.ends_with("cannot be renewed: no server"),
        "{said}"
    );
    assert!(says(1000).is_some());
}

#[tokio::test(start_paused = true)]
async fn waits_after_failures_double_and_a_success_waits_by_the_certificate() {
    let mut it = Renewal::new(PathBuf::from("/nonexistent"), PathBuf::from("/nonexistent"));
    let waits: Vec<u64> = (0..12).map(|_| it.failed().as_secs()).collect();
    assert_eq!(waits[..4], [60, 120, 240, 480]);
    assert_eq!(waits[11], AGAIN.1.as_secs());
    for (life, expected) in [(YEAR, DAY), (90, Duration::from_secs(30)), (0, PAUSE)] {
        it.succeeded(&joined(life));
        assert_eq!(it.at - Instant::now(), expected);
    }
    assert_eq!(it.failed(), AGAIN.0);
}

#[tokio::test]
async fn a_process_that_cannot_run_is_a_failure_and_is_told_once() {
    let mut it = Renewal::new(PathBuf::from("/nonexistent/agent"), PathBuf::from("/nonexistent"));
    assert!(matches!(it.next().await, Turn::Look));
    it.begin(0);
    match it.next().await {
        Turn::Ended(Err(error)) => assert!(
            format!("{error:#}").contains("/nonexistent/agent renew"),
            "{error:#}"
        ),
        _ => panic!("it ran"),
    }
    assert!(matches!(it.next().await, Turn::Look));
}
