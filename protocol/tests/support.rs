//! `SUPPORT.md` says what the tables say.

use std::path::Path;

use skiff_protocol::manifest;

#[test]
fn support_md_is_what_the_tables_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../SUPPORT.md");
    let made = manifest::support();
    if std::env::var("SKIFF_SUPPORT").as_deref() == Ok("write") {
        std::fs::write(&path, &made).unwrap();
        return;
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = made
        .lines()
        .zip(found.lines())
        .find(|(made, found)| made != found);
    assert!(
        made == found,
        "{} is not what the tables say, first at {differs:?}: run this test with SKIFF_SUPPORT=write",
        path.display()
    );
}
