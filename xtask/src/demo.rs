//! `cargo xtask demo`: the whole product on this machine, in a directory that is gone afterwards.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::command;
use crate::fleet::{Binaries, Fleet, Interrupt};
use crate::http;
use crate::images;
use crate::setup;
use crate::test;
use crate::workspace::Workspace;

/// How long all example Pods together may take to be Running.
const RUNNING: Duration = Duration::from_secs(60);

/// Builds, starts, shows; goes on until Ctrl-C, or ends by itself when `once`.
pub(crate) fn run(workspace: &Workspace, once: bool) -> Result<()> {
    println!("==> setting up");
    setup::packages(&setup::missing(setup::FLEET))?;
    setup::rust(workspace)?;
    let kubectl = setup::kubectl(workspace)?;
    println!("==> building");
    test::build(workspace)?;
    println!("==> making images");
    images::build(workspace)?;

    let interrupt = Interrupt::catch()?;
    let binaries = Binaries {
        cli: workspace.binaries("debug").join("skiff"),
        agent: workspace.binaries("debug").join("skiff-agent"),
        kubectl: kubectl.clone(),
    };
    println!("==> starting a server with its broker, and a node");
    let mut fleet = Fleet::start(&workspace.target().join("demo"), "demo", binaries, interrupt)?;
    show(workspace, &mut fleet)?;
    if !once {
        stay(&fleet, &kubectl);
    }
    println!("==> cleaning up");
    fleet.finish()
}

fn show(workspace: &Workspace, fleet: &mut Fleet) -> Result<()> {
    println!("==> importing images");
    for archive in with_ending(&workspace.images(), "tar")? {
        fleet.import(&archive)?;
    }
    println!("==> kubectl apply -f examples/");
    let examples = workspace.root().join("examples");
    command::run(fleet.kubectl(&["apply", "-f"]).arg(&examples))?;
    let expected = count_pods(workspace)?;
    fleet.wait("every pod of examples/ to be Running", RUNNING, |fleet| {
        let running = pods(fleet)?
            .iter()
            .filter(|pod| pod["status"]["phase"] == "Running")
            .count();
        Ok((running == expected).then_some(()))
    })?;
    println!("==> kubectl get nodes, pods");
    command::run(&mut fleet.kubectl(&["get", "nodes"]))?;
    command::run(&mut fleet.kubectl(&["get", "pods", "-o", "wide"]))?;
    for (pod, container, sign) in [("counter", "app", "count "), ("mysql", "mysql", "ready")] {
        println!("==> kubectl logs {pod} -c {container}");
        // Running comes before the first useful line: the counter may look for redis before that listens.
        fleet.wait("a log line", Duration::from_secs(20), |fleet| {
            Ok(logs(fleet, pod, container)?.contains(sign).then_some(()))
        })?;
        println!("{}", logs(fleet, pod, container)?.trim_end());
    }
    answer(fleet)
}

/// Asks nginx in its Pod over HTTP.
fn answer(fleet: &mut Fleet) -> Result<()> {
    let pods = pods(fleet)?;
    let nginx = pods
        .iter()
        .find(|pod| pod["metadata"]["name"] == "nginx")
        .context("there is no pod nginx")?;
    let address = nginx["status"]["podIP"]
        .as_str()
        .context("the pod nginx has no address")?;
    let address: IpAddr = address
        .parse()
        .with_context(|| format!("not an address: {address}"))?;
    println!("==> GET http://{address}/");
    let got = fleet.wait("nginx to answer", Duration::from_secs(20), |_| {
        Ok(http::request(
            SocketAddr::new(address, 80),
            "GET",
            "/",
            "",
            Duration::from_secs(2),
        )
        .ok())
    })?;
    println!("{} {}", got.status, got.body.trim_end());
    if got.status != 200 {
        bail!("nginx answered {}", got.status);
    }
    Ok(())
}

/// Says how to go on and waits for Ctrl-C.
fn stay(fleet: &Fleet, kubectl: &Path) {
    println!(
        "\nIt runs until Ctrl-C. In another terminal:\n\n    export KUBECONFIG={}\n    {} get pods -w\n",
        fleet.kubeconfig().display(),
        kubectl.display()
    );
    while !fleet.interrupt().is_set() {
        std::thread::sleep(Duration::from_millis(200));
    }
    println!();
}

/// Every Pod that the server knows.
pub(crate) fn pods(fleet: &Fleet) -> Result<Vec<Value>> {
    let text = command::output(&mut fleet.kubectl(&["get", "pods", "-o", "json"]))?;
    let mut list: Value = serde_json::from_str(&text).context("cannot read kubectl's list of pods")?;
    match list["items"].take() {
        Value::Array(items) => Ok(items),
        other => bail!("kubectl's list of pods has no items but {other}"),
    }
}

fn logs(fleet: &Fleet, pod: &str, container: &str) -> Result<String> {
    command::output(&mut fleet.kubectl(&["logs", pod, "-c", container, "--tail", "5"]))
}

fn count_pods(workspace: &Workspace) -> Result<usize> {
    let mut count = 0;
    for file in with_ending(&workspace.root().join("examples"), "yaml")? {
        count += crate::files::read(&file)?
            .lines()
            .filter(|line| line.trim_end() == "kind: Pod")
            .count();
    }
    Ok(count)
}

/// The files in `dir` whose names end so, sorted.
pub(crate) fn with_ending(dir: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == ending))
        .collect();
    found.sort();
    Ok(found)
}
