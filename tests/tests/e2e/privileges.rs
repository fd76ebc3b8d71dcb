//! What a Pod shares with others and with the node, and the rights it is given: always by its spec and the node's
//! policy, and seen from the kernel.
//!
//! Always holds: beside what is given stands a Pod, or a node, to which it is not.

use serde_json::{Value, json};

use crate::harness::pods::{IDLE, shell_with};
use crate::harness::{Cluster, Setup, pod, shell, wait};

const ALL: &str =
    "[policy]\nallow = [\"host-network\", \"host-pid\", \"host-ipc\", \"privileged\", \"host-path\"]\n";

/// Runs a script to its end; gives what it printed.
#[track_caller]
fn told(cluster: &Cluster, name: &str, script: &str, container: &Value, spec: &Value) -> String {
    let mut more = json!({ "restartPolicy": "Never" });
    more.as_object_mut()
        .unwrap()
        .extend(spec.as_object().unwrap().clone());
    cluster
        .ends(&pod(name, &shell_with(script, container), more), 40)
        .1
}

fn own(kind: &str) -> String {
    let link = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
    format!("{}\n", link.display())
}

#[test]
fn rights_are_given_by_spec_and_policy() {
    let cluster = Cluster::start(&Setup {
        images: &["busybox"],
        agent: ALL,
        ..Setup::default()
    });
    namespaces_are_shared_as_asked(&cluster);
    names_are_managed(&cluster);
    privileges_are_given(&cluster);
    profiles_are_applied(&cluster);
    terminals_are_given(&cluster);
    ports_of_the_node_lead_to_pods(&cluster);
    cluster.is_empty();
}

#[test]
fn a_node_gives_only_what_its_policy_allows() {
    let cluster = Cluster::busybox();
    let mut privileged = shell(IDLE);
    privileged["securityContext"] = json!({ "privileged": true });
    let plain = shell(IDLE);
    let mut strong = shell(IDLE);
    strong["securityContext"] = json!({ "capabilities": { "add": ["SYS_MODULE"] } });
    let root = json!({ "volumes": [{ "name": "h", "hostPath": { "path": "/" } }] });
    for (name, container, spec, field) in [
        ("net", &plain, json!({ "hostNetwork": true }), "spec.hostNetwork"),
        ("pid", &plain, json!({ "hostPID": true }), "spec.hostPID"),
        ("ipc", &plain, json!({ "hostIPC": true }), "spec.hostIPC"),
        ("path", &plain, root, "spec.volumes[0].hostPath"),
        (
            "caps",
            &strong,
            json!({}),
            "spec.containers[0].securityContext.capabilities.add[0]",
        ),
        (
            "root",
            &privileged,
            json!({}),
            "spec.containers[0].securityContext.privileged",
        ),
    ] {
        // Meant for this node, it is refused; meant for any, it is told that none will have it, and waits for one.
        let mut named = spec.clone();
        named["nodeName"] = "rover".into();
        let said = cluster.kubectl_with(&["apply", "-f", "-"], &pod(name, container, named).to_string());
        assert_eq!(said.code, 1, "{said}");
        assert!(said.err.contains(&format!("{field}: Forbidden")), "{said}");
        let warning = cluster.apply(&pod(name, container, spec));
        assert!(
            warning.contains(field),
            "{name}: no warning of {field} in {warning:?}"
        );
        wait("the Pod to wait for a node", 20, || {
            let text = cluster.kubectl(&["describe", "pod", name]).ok();
            if text.contains("FailedScheduling") {
                Ok(())
            } else {
                Err(text)
            }
        });
        cluster.delete(name);
    }
    cluster.is_empty();
}

fn namespaces_are_shared_as_asked(cluster: &Cluster) {
    for (kind, field) in [("net", "hostNetwork"), ("pid", "hostPID"), ("ipc", "hostIPC")] {
        let script = format!("readlink /proc/self/ns/{kind}");
        let name = format!("host-{kind}");
        assert_eq!(
            told(cluster, &name, &script, &json!({}), &json!({ field: true })),
            own(kind),
            "{field}"
        );
        assert_ne!(
            told(cluster, &name, &script, &json!({}), &json!({})),
            own(kind),
            "without {field}"
        );
    }
    // Two containers that see each other.
    let mut other = shell("exec sleep 4242");
    other["name"] = "other".into();
    let see = "for i in 1 2 3 4 5 6 7 8 9 10; do grep -lz 4242 /proc/[0-9]*/cmdline 2>/dev/null | grep -vq self && echo seen && break; sleep 0.3; done";
    let mut one = shell(&format!("{see}; {IDLE}"));
    one["name"] = "main".into();
    let both = |share: bool| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "shares" },
            "spec": { "shareProcessNamespace": share, "terminationGracePeriodSeconds": 1, "containers": [one.clone(), other.clone()] },
        })
    };
    cluster.run(&both(true));
    cluster.logs_say(&["shares", "-c", "main"], "seen");
    cluster.delete("shares");
}

fn names_are_managed(cluster: &Cluster) {
    let spec = json!({
        "hostname": "web-0", "subdomain": "web", "setHostnameAsFQDN": true,
        "hostAliases": [{ "ip": "192.0.2.7", "hostnames": ["db", "db.example.com"] }],
        "dnsPolicy": "None",
        "dnsConfig": { "nameservers": ["192.0.2.53"], "searches": ["example.com"], "options": [{ "name": "ndots", "value": "2" }] },
    });
    let said = told(
        cluster,
        "named",
        "hostname; cat /etc/hosts /etc/resolv.conf",
        &json!({}),
        &spec,
    );
    for part in [
        "web-0.web.default.svc.cluster.local",
        "192.0.2.7\tdb\tdb.example.com",
        "nameserver 192.0.2.53",
        "search example.com",
        "options ndots:2",
    ] {
        assert!(said.contains(part), "no {part:?} in\n{said}");
    }
}

fn privileges_are_given(cluster: &Cluster) {
    let all = std::fs::read_to_string("/proc/self/status").unwrap();
    let bounding = all
        .lines()
        .find(|it| it.starts_with("CapBnd"))
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .to_owned();
    let script = "grep ^CapEff /proc/self/status | cut -f2; grep ^Seccomp: /proc/self/status | cut -f2; test -e /dev/null && echo dev";
    let privileged = json!({ "securityContext": { "privileged": true } });
    assert_eq!(
        told(cluster, "privileged", script, &privileged, &json!({})),
        format!("{bounding}\n0\ndev\n")
    );
    let set = json!({ "securityContext": { "sysctls": [{ "name": "net.ipv4.ip_unprivileged_port_start", "value": "81" }] } });
    let read = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start";
    let here = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    assert_eq!(told(cluster, "sysctl", read, &json!({}), &set), "81\n");
    assert_eq!(
        std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap(),
        here
    );
    let strict = json!({ "securityContext": { "supplementalGroupsPolicy": "Strict", "runAsUser": 5, "supplementalGroups": [77] } });
    let groups = told(cluster, "strict", "id -G", &json!({}), &strict);
    assert!(groups.split_whitespace().any(|it| it == "77"), "{groups}");
}

fn profiles_are_applied(cluster: &Cluster) {
    let dir = cluster.node.state.join("seccomp");
    std::fs::create_dir_all(&dir).unwrap();
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }],
    });
    std::fs::write(dir.join("no-mkdir.json"), profile.to_string()).unwrap();
    let local = json!({ "securityContext": { "seccompProfile": { "type": "Localhost", "localhostProfile": "no-mkdir.json" } } });
    let script = "mkdir /tmp/x 2>&1 | sed 's/.*: //'; ls -d /tmp/x 2>/dev/null; echo end";
    assert_eq!(
        told(cluster, "no-mkdir", script, &local, &json!({})),
        "Operation not permitted\nend\n"
    );
    let missing = json!({ "securityContext": { "seccompProfile": { "type": "Localhost", "localhostProfile": "none.json" } } });
    let mut container = shell(IDLE);
    container
        .as_object_mut()
        .unwrap()
        .extend(missing.as_object().unwrap().clone());
    cluster.apply(&pod(
        "no-profile",
        &container,
        json!({ "restartPolicy": "Never" }),
    ));
    wait("the missing profile's name", 30, || {
        let text = cluster.kubectl(&["describe", "pod", "no-profile"]).ok();
        if text.contains("none.json") {
            Ok(())
        } else {
            Err(text)
        }
    });
    cluster.delete("no-profile");
}

fn terminals_are_given(cluster: &Cluster) {
    let said = told(
        cluster,
        "tty",
        "test -t 1 && echo a terminal",
        &json!({ "tty": true, "stdin": true }),
        &json!({}),
    );
    assert!(said.starts_with("a terminal"), "{said:?}");
    assert_eq!(
        told(
            cluster,
            "no-tty",
            "test -t 1 || echo none",
            &json!({}),
            &json!({})
        ),
        "none\n"
    );
}

fn ports_of_the_node_lead_to_pods(cluster: &Cluster) {
    let port = skiff_tests::port::free().port();
    let mut container = shell("mkdir /www; echo from the pod > /www/index.html; httpd -f -p 8080 -h /www");
    container["ports"] = json!([{ "containerPort": 8080, "hostPort": port }]);
    // One that has ended, and is still there, has given it back.
    let mut over = shell("true");
    over["ports"] = container["ports"].clone();
    cluster.apply(&pod("a-former", &over, json!({ "restartPolicy": "Never" })));
    cluster.phase("a-former", "Succeeded");
    let running = cluster.run(&pod("web", &container, json!({})));
    let address = running["status"]["hostIP"]
        .as_str()
        .unwrap_or("127.0.0.1")
        .to_owned();
    for to in ["127.0.0.1", &address] {
        let answer = wait("an answer through the node's port", 20, || {
            crate::harness::cluster::get(to, port, "/")
        });
        assert!(answer.contains("from the pod"), "{to}: {answer}");
    }
    // A second Pod on this node has no place for it.
    cluster.apply(&pod("second", &container, json!({})));
    wait("the second to be told that the port is taken", 20, || {
        let text = cluster.kubectl(&["describe", "pod", "second"]).ok();
        if text.contains("free ports") {
            Ok(())
        } else {
            Err(text)
        }
    });
    cluster.delete("second");
    cluster.delete("web");
    cluster.delete("a-former");
    assert!(
        crate::harness::cluster::get("127.0.0.1", port, "/").is_err(),
        "the port leads nowhere any more"
    );
}
