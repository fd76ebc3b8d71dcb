//! Starting, ending and starting again.

use skiff_core::{Event, Exit, StartError};
use skiff_protocol::wire::spec::{EnvFrom, Object, RestartPolicy};

use crate::bench::{check, config_map, container, pod, pod_with, reference, secret, uid};

#[test]
fn start_order() {
    check("start-order", |b| {
        let two = pod_with("web", |it| it.containers.push(container("log")));
        b.pods(&[two]);
        b.image_ready("web/app#0");
        b.sandbox_ready("web");
        b.started("web/app#0");
        b.image_ready("web/log#0");
        b.started("web/log#0");
    });
}

#[test]
fn restart_policies() {
    check("restart-policies", |b| {
        for (name, policy) in [
            ("always", RestartPolicy::Always),
            ("onfailure", RestartPolicy::OnFailure),
            ("never", RestartPolicy::Never),
        ] {
            for code in [0, 3] {
                b.note(&format!("{name}, exit code {code}"));
                b.pods(&[pod_with(name, |it| it.restart_policy = policy)]);
                b.run(name);
                b.wait(5);
                b.exited(&format!("{name}/app#0"), code);
                b.pods(&[]);
                b.wait(2);
                b.removed(name);
            }
        }
    });
}

#[test]
fn crash_back_off() {
    check("crash-back-off", |b| {
        b.pods(&[pod("web")]);
        b.sandbox_ready("web");
        for attempt in 0..8 {
            let at = format!("web/app#{attempt}");
            b.image_ready(&at);
            b.started(&at);
            b.wait(1);
            b.exited(&at, 1);
            b.wait(300);
        }
        b.note("ten minutes of running, and the trouble is over");
        b.image_ready("web/app#8");
        b.started("web/app#8");
        b.wait(600);
        b.exited("web/app#8", 1);
        b.image_ready("web/app#9");
    });
}

#[test]
fn image_pull_back_off() {
    check("image-pull-back-off", |b| {
        b.pods(&[pod("web")]);
        b.sandbox_ready("web");
        for wait in [10, 20, 40, 80, 160, 300, 300] {
            b.image_failed("web/app#0", "ErrImagePull");
            b.wait(wait);
        }
        b.image_ready("web/app#0");
        b.started("web/app#0");
    });
}

/// People hear how far an image is, as long as somebody waits for it.
#[test]
fn image_pull_progress() {
    check("image-pull-progress", |b| {
        b.pods(&[pod("web")]);
        b.sandbox_ready("web");
        b.pulling("web/app#0");
        b.wait(30);
        b.pull_goes_on("web/app#0", "10.0 MiB of 20.0 MiB (50%)");
        b.image_ready("web/app#0");
        b.note("too late: it is here");
        b.pull_goes_on("web/app#0", "20.0 MiB of 20.0 MiB (100%)");
        b.pull_goes_on("other/app#0", "of nobody");
        b.link_up();
        b.reports();
    });
}

/// Credentials that are missing are told of; once they come, the image is asked for without a wait.
#[test]
fn credentials_that_are_not_there_yet() {
    check("image-pull-secret", |b| {
        let with_key = |name: &str| pod_with(name, |it| it.image_pull_secrets.push("regcred".to_owned()));
        let (web, other) = (with_key("web"), pod("other"));
        b.pods(&[web.clone(), other.clone()]);
        for container in ["web/app#0", "other/app#0"] {
            b.pulling(container);
            b.image_failed(container, "ErrImagePull");
        }
        b.wait(3);
        b.note("a ConfigMap of that name is not it");
        let pods = [Object::Pod(web), Object::Pod(other)];
        b.desired(&[&pods[..], &[config_map("regcred")]].concat());
        b.note("the Secret comes: no need to wait for whoever has it");
        b.desired(&[&pods[..], &[secret("regcred")]].concat());
        b.pulling("web/app#0");
        b.note("it goes, which is no reason to ask");
        b.desired(&pods);
        b.note("another one comes while the image is asked for with the first");
        b.desired(&[&pods[..], &[secret("regcred")]].concat());
        b.image_failed("web/app#0", "ErrImagePull");
        b.pulling("web/app#0");
        b.image_ready("web/app#0");
    });
}

#[test]
fn an_image_name_that_is_none() {
    check("invalid-image-name", |b| {
        b.pods(&[pod("web")]);
        b.image_failed("web/app#0", "InvalidImageName");
        b.wait(60);
        b.image_failed("web/app#0", "InvalidImageName");
        b.note("the name is corrected");
        b.pods(&[pod_with("web", |it| it.containers[0].image = "app:2".to_owned())]);
    });
}

#[test]
fn a_configuration_that_is_not_there_yet() {
    check("config-error", |b| {
        let web = pod_with("web", |it| {
            it.containers[0].env_from.push(EnvFrom {
                prefix: String::new(),
                secret: false,
                name: "settings".to_owned(),
                optional: false,
            });
        });
        b.pods(std::slice::from_ref(&web));
        b.sandbox_ready("web");
        b.image_ready("web/app#0");
        let missing = || StartError::Config("configmap \"settings\" not found".to_owned());
        b.start_failed("web/app#0", missing());
        b.wait(10);
        b.start_failed("web/app#0", missing());
        b.wait(3);
        b.note("it comes: no need to wait");
        b.desired(&[Object::Pod(web), config_map("settings")]);
        b.started("web/app#0");
    });
}

#[test]
fn a_start_that_fails_counts_as_an_exit() {
    check("start-failed", |b| {
        b.pods(&[
            pod("always"),
            pod_with("never", |it| it.restart_policy = RestartPolicy::Never),
        ]);
        for name in ["always", "never"] {
            b.sandbox_ready(name);
            b.image_ready(&format!("{name}/app#0"));
            b.start_failed(
                &format!("{name}/app#0"),
                StartError::Failed {
                    exit_code: 127,
                    message: "exec: no such file".to_owned(),
                },
            );
        }
        b.image_ready("always/app#1");
    });
}

#[test]
fn out_of_memory() {
    check("oom-killed", |b| {
        b.pods(&[pod("web")]);
        b.run("web");
        b.wait(5);
        let exit = Exit {
            exit_code: 137,
            signal: 9,
            oom_killed: true,
            started_at: 0,
            finished_at: 5,
            ..Default::default()
        };
        b.event(
            "exited web/app#0: out of memory",
            Event::Exited {
                container: reference("web/app#0"),
                exit,
            },
        );
    });
}

#[test]
fn only_the_container_whose_image_changes_is_replaced() {
    check("image-change", |b| {
        let two = pod_with("web", |it| it.containers.push(container("log")));
        b.pods(std::slice::from_ref(&two));
        b.sandbox_ready("web");
        for at in ["web/app#0", "web/log#0"] {
            b.image_ready(at);
            b.started(at);
        }
        b.wait(100);
        let mut newer = two;
        newer.containers[0].image = "app:2".to_owned();
        b.pods(&[newer]);
        b.exited("web/app#0", 0);
        b.image_ready("web/app#1");
        b.started("web/app#1");
    });
}

#[test]
fn a_container_that_ignores_being_replaced_is_killed() {
    check("image-change-ignored", |b| {
        b.pods(&[pod("web")]);
        b.run("web");
        b.pods(&[pod_with("web", |it| it.containers[0].image = "app:2".to_owned())]);
        b.wait(30);
        b.exited("web/app#0", 137);
    });
}

#[test]
fn labels_and_configmaps_restart_nothing() {
    check("labels-change", |b| {
        b.desired(&[Object::Pod(pod("web")), config_map("settings")]);
        b.run("web");
        b.pods(&[pod_with("web", |it| {
            it.labels.insert("a".to_owned(), "b".to_owned());
        })]);
    });
}

#[test]
fn the_sandbox_cannot_be_made() {
    check("sandbox-failed", |b| {
        b.pods(&[pod("web")]);
        b.image_ready("web/app#0");
        for wait in [10, 20] {
            b.event(
                "sandbox failed web",
                Event::SandboxFailed(uid("web"), "no bridge".to_owned()),
            );
            b.wait(wait);
        }
        b.sandbox_ready("web");
    });
}

#[test]
fn the_shim_is_lost() {
    check("shim-lost", |b| {
        let two = pod_with("web", |it| {
            it.restart_policy = RestartPolicy::OnFailure;
            it.containers.push(container("job"));
        });
        b.pods(&[two]);
        b.sandbox_ready("web");
        for at in ["web/app#0", "web/job#0"] {
            b.image_ready(at);
            b.started(at);
        }
        b.exited("web/job#0", 0);
        b.event("shim lost web", Event::ShimLost(uid("web")));
        b.sandbox_ready("web");
        b.image_ready("web/app#1");
        b.started("web/app#1");
    });
}

#[test]
fn admission() {
    check("admission", |b| {
        let cpu = |name: &str, milli| {
            pod_with(name, |it| {
                it.restart_policy = RestartPolicy::Never;
                it.containers[0].resources.cpu_request = Some(milli);
            })
        };
        let memory =
            |name: &str, bytes| pod_with(name, |it| it.containers[0].resources.memory_request = Some(bytes));
        b.note("a thousandth of a CPU too much, a byte too much");
        b.pods(&[cpu("a", 600), cpu("b", 401), memory("c", (1 << 30) + 1)]);
        b.note("what is refused stays refused; what is finished holds nothing");
        b.run("a");
        b.exited("a/app#0", 0);
        b.pods(&[
            cpu("a", 600),
            cpu("b", 401),
            memory("c", (1 << 30) + 1),
            cpu("d", 1000),
        ]);
        b.note("four Pods at once");
        let many: Vec<_> = ["d", "e", "f", "g", "h"].map(|name| cpu(name, 0)).to_vec();
        b.pods(&many);
    });
}
