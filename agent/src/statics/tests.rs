//! When the directory is read, and what of it reaches the core.

use std::fs;

use super::*;

fn later(now: Instant, millis: u64) -> Instant {
    now + Duration::from_millis(millis)
}

#[tokio::test]
async fn a_file_is_read_once_it_has_not_changed_for_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let node = NodeName::parse("rover-7").unwrap();
    let mut statics = Statics::new(dir.path(), "/no/such".into(), node);
    let now = Instant::now();
    statics.look(now);
    assert!(statics.unsettled.is_none() && statics.reading.is_none());
    fs::write(dir.path().join("a.yaml"), "a").unwrap();
    statics.look(now);
    assert!(statics.unsettled.is_some() && statics.reading.is_none());
    statics.look(later(now, 900));
    assert!(statics.reading.is_none(), "not yet");
    fs::write(dir.path().join("a.yaml"), "more").unwrap();
    statics.look(later(now, 1100));
    assert!(statics.reading.is_none(), "it goes on changing");
    statics.look(later(now, 2200));
    assert!(statics.reading.is_some());
    let Turn::Found(found) = statics.next().await else {
        panic!("a read is under way");
    };
    // The reader cannot be run here: nothing is said of any file.
    assert!(statics.found(found).is_none());
    assert_eq!(statics.broken().len(), 1);
    statics.look(later(now, 3000));
    assert!(statics.reading.is_none(), "nothing has changed since");
    statics.look(later(now, 63_000));
    assert!(statics.reading.is_some(), "it is tried again");
    let Turn::Found(found) = statics.next().await else {
        panic!("a read is under way");
    };
    assert!(statics.found(found).is_none());
    // The last file goes.
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    statics.look(later(now, 4000));
    statics.look(later(now, 5000));
    let Turn::Found(found) = statics.next().await else {
        panic!("a read is under way");
    };
    assert_eq!(statics.found(found), Some(Manifests::new()));
    assert!(statics.broken().is_empty());
}

#[test]
fn what_a_file_does_not_say_is_told_apart_from_a_file_that_is_gone() {
    let node = NodeName::parse("rover-7").unwrap();
    let mut statics = Statics::new(Path::new(""), "/no/such".into(), node);
    statics.look(Instant::now());
    assert!(statics.unsettled.is_none(), "no directory");
    let found = vec![("a.yaml".to_owned(), Err("line 1: why".to_owned()))];
    let manifests = statics.found(Ok(found)).unwrap();
    assert_eq!(manifests.get("a.yaml"), Some(&None));
    assert_eq!(statics.broken(), ["a.yaml: line 1: why"]);
}
