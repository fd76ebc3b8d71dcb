//! Watches over HTTPS: events, selectors, tables, bookmarks and their end.

use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Server, config_map, pod};

const PODS: &str = "/api/v1/namespaces/default/pods";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn kinds(events: &[(String, Value)]) -> Vec<(&str, &str)> {
    fn name(value: &Value) -> &str {
        value["metadata"]["name"].as_str().unwrap_or_default()
    }
    events
        .iter()
        .map(|(kind, value)| (kind.as_str(), name(value)))
        .collect()
}

#[test]
fn present_state_then_changes() {
    let server = Server::start();
    server.call("POST", MAPS, &config_map("a")).expect(201);
    let mut watch = server.watch(&format!("{MAPS}?watch=true"));
    let first = watch.next().unwrap();
    assert_eq!(
        (first.0.as_str(), &first.1["metadata"]["name"]),
        ("ADDED", &json!("a"))
    );
    server.call("POST", MAPS, &config_map("b")).expect(201);
    server
        .call("PATCH", &format!("{MAPS}/b"), &json!({ "data": { "k": "w" } }))
        .expect(200);
    server
        .call("DELETE", &format!("{MAPS}/b"), &Value::Null)
        .expect(200);
    let rest: Vec<_> = watch.take(3).collect();
    assert_eq!(
        kinds(&rest),
        [("ADDED", "b"), ("MODIFIED", "b"), ("DELETED", "b")]
    );
}

#[test]
fn from_a_list_nothing_is_missed_and_nothing_comes_twice() {
    let server = Server::start();
    server.call("POST", MAPS, &config_map("a")).expect(201);
    let list = server.get(MAPS).expect(200);
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap();
    server.call("POST", MAPS, &config_map("b")).expect(201);
    let events: Vec<_> = server
        .watch(&format!("{MAPS}?watch=1&resourceVersion={revision}"))
        .take(1)
        .collect();
    assert_eq!(kinds(&events), [("ADDED", "b")]);
}

#[test]
fn objects_enter_and_leave_a_selection() {
    let server = Server::start();
    let watch = server.watch(&format!(
        "{MAPS}?watch=true&resourceVersion={}&labelSelector=app%3Dx",
        server.store.revision()
    ));
    server.call("POST", MAPS, &config_map("a")).expect(201);
    for label in [json!("x"), json!("y"), json!("x")] {
        let patch = json!({ "metadata": { "labels": { "app": label } } });
        server.call("PATCH", &format!("{MAPS}/a"), &patch).expect(200);
    }
    server
        .call("DELETE", &format!("{MAPS}/a"), &Value::Null)
        .expect(200);
    let events: Vec<_> = watch.take(4).collect();
    assert_eq!(
        kinds(&events),
        [("ADDED", "a"), ("DELETED", "a"), ("ADDED", "a"), ("DELETED", "a")]
    );
}

#[test]
fn tables_have_their_headings_once() {
    let server = Server::start();
    server.call("POST", PODS, &pod("a")).expect(201);
    server.call("POST", PODS, &pod("b")).expect(201);
    let agent_accepts_tables = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let answer = server.send(
        "GET",
        &format!("{PODS}?watch=true&timeoutSeconds=1"),
        &[
            ("authorization", "Bearer admin-token"),
            ("accept", agent_accepts_tables),
        ],
        b"",
    );
    let lines: Vec<Value> = answer
        .text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2, "{}", answer.text);
    assert_eq!(
        lines[0]["object"]["columnDefinitions"].as_array().map(Vec::len),
        Some(9)
    );
    assert_eq!(lines[1]["object"]["columnDefinitions"], Value::Null);
    let cells = lines[1]["object"]["rows"][0]["cells"].as_array().unwrap();
    assert_eq!(cells[..3], [json!("b"), json!("0/1"), json!("Pending")]);
}

#[test]
fn initial_events_end_with_a_bookmark() {
    let server = Server::start();
    server.call("POST", MAPS, &config_map("a")).expect(201);
    let query =
        "watch=true&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan";
    let events: Vec<_> = server.watch(&format!("{MAPS}?{query}")).take(2).collect();
    assert_eq!(events[0].0, "ADDED");
    assert_eq!(events[1].0, "BOOKMARK");
    assert_eq!(
        events[1].1["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    server
        .get(&format!("{MAPS}?watch=true&sendInitialEvents=true"))
        .expect(400);
}

#[test]
fn revisions_that_the_server_cannot_continue_from_are_expired() {
    let server = Server::start();
    // Too old ones need a history that has run over: the store's own tests have that.
    let status = server
        .get(&format!("{MAPS}?watch=true&resourceVersion=999999999"))
        .expect(410);
    assert_eq!(status["reason"], "Expired", "{status}");
    server
        .get(&format!("{MAPS}?watch=true&resourceVersion=x"))
        .expect(400);
}

#[test]
fn watches_end_with_their_time_and_with_the_server() {
    let server = Server::start();
    assert_eq!(
        server
            .watch(&format!("{MAPS}?watch=true&timeoutSeconds=1"))
            .count(),
        0
    );
    // Longer than any clock counts: the server gives what it has, and stays.
    let longest = u64::MAX;
    let mut watch = server.watch(&format!("{MAPS}?watch=true&timeoutSeconds={longest}"));
    let (sender, ended) = mpsc::channel();
    server.call("POST", MAPS, &config_map("a")).expect(201);
    assert!(watch.next().is_some());
    std::thread::spawn(move || sender.send(watch.next().is_none()).unwrap());
    server.stop();
    assert_eq!(ended.recv_timeout(Duration::from_secs(5)), Ok(true));
}
