//! Who may publish and subscribe to what.
//!
//! | role | subscribe | publish |
//! | --- | --- | --- |
//! | node | `skiff/d/<itself>/…` | any topic of the grammar that is up, and from itself |
//! | server | `skiff/…` | any topic of the grammar |
//!
//! Always holds: pure; everything not in the table is refused.

use skiff_protocol::topic::Topic;

use crate::Role;

pub(crate) fn may_publish(role: &Role, topic: &str) -> bool {
    match (role, Topic::parse(topic)) {
        (Role::Server, Ok(_)) => true,
        (Role::Node(me), Ok(Topic::Up { node, .. })) => node == *me,
        _ => false,
    }
}

pub(crate) fn may_subscribe(role: &Role, filter: &str) -> bool {
    match role {
        Role::Server => filter.starts_with("skiff/"),
        Role::Node(me) => filter
            .strip_prefix("skiff/d/")
            .and_then(|rest| rest.strip_prefix(me.as_str()))
            .is_some_and(|rest| rest.len() > 1 && rest.starts_with('/')),
    }
}

#[cfg(test)]
mod tests {
    use skiff_protocol::topic::NodeName;

    use super::*;

    #[test]
    fn the_table() {
        let me = NodeName::parse("pump-1").unwrap();
        let shard = me.shard();
        let node = Role::Node(me);
        let other = NodeName::parse("pump-2").unwrap();
        let publish =
            |role: &Role, topic: &str, expected| assert_eq!(may_publish(role, topic), expected, "{topic}");
        publish(&node, &format!("skiff/u/{shard}/pump-1/hello"), true);
        publish(&node, &format!("skiff/u/{shard}/pump-1/stream/7"), true);
        for topic in [
            format!("skiff/u/{}/pump-1/hello", shard + 1),
            format!("skiff/u/{}/pump-2/hello", other.shard()),
            format!("skiff/u/{shard}/pump-1/nonsense"),
            format!("skiff/u/{shard}/pump-1"),
            "skiff/d/pump-1/spec".into(),
            "skiff/d/pump-2/spec".into(),
            "$SYS/broker".into(),
            "other".into(),
            String::new(),
        ] {
            publish(&node, &topic, false);
        }
        publish(&Role::Server, "skiff/d/pump-1/spec", true);
        publish(&Role::Server, "other/d/pump-1/spec", false);

        let subscribe = |role: &Role, filter: &str, expected| {
            assert_eq!(may_subscribe(role, filter), expected, "{filter}");
        };
        subscribe(&node, "skiff/d/pump-1/#", true);
        subscribe(&node, "skiff/d/pump-1/spec", true);
        for filter in [
            "#",
            "+/d/pump-1/#",
            "skiff/#",
            "skiff/d/#",
            "skiff/d/+/#",
            "skiff/d/pump-2/#",
            "skiff/d/pump-11/#",
            "skiff/d/pump-1",
            "skiff/d/pump-1/",
            "skiff/u/#",
            "$share/g/skiff/d/pump-1/#",
            "$SYS/#",
            "",
        ] {
            subscribe(&node, filter, false);
        }
        subscribe(&Role::Server, "skiff/u/+/+/#", true);
        subscribe(&Role::Server, "#", false);
        subscribe(&Role::Server, "$SYS/#", false);
    }
}
