//! What the core does and shows, as the lines of the golden texts.

use std::fmt::Write as _;

use skiff_core::{ContainerRef, Effect, Record, Urgency};
use skiff_protocol::wire::Up;
use skiff_protocol::wire::spec::ObjectKey;
use skiff_protocol::wire::status::{ContainerState, PodStatus};

use crate::bench::{EPOCH, name_of};

fn show_reference(it: &ContainerRef) -> String {
    format!("{}/{}#{}", name_of(it.pod), it.name, it.attempt)
}

pub(crate) fn show_key(key: &ObjectKey) -> String {
    match key {
        ObjectKey::Pod(uid) => name_of(*uid),
        ObjectKey::ConfigMap(_, name) => format!("configmap:{name}"),
        ObjectKey::Secret(_, name) => format!("secret:{name}"),
        ObjectKey::Volume(name) => format!("volume:{name}"),
    }
}

fn show_record(record: &Record) -> String {
    match record {
        Record::Epoch(epoch) => format!("epoch {epoch}"),
        Record::Time(time) => format!("time +{}", time - EPOCH),
        Record::Put(key, _) => format!("put {}", show_key(key)),
        Record::Remove(key) => format!("remove {}", show_key(key)),
        Record::Generation(generation) => format!("generation {generation}"),
        Record::Accepted(uid, at) => format!("accepted {} +{}", name_of(*uid), at - EPOCH),
        Record::Container(uid, it) => format!(
            "container {}/{}#{}{}{} backoff {}",
            name_of(*uid),
            it.name,
            it.restart_count,
            if it.done { " done" } else { "" },
            it.last.as_ref().map_or(String::new(), |last| format!(
                " exit {} {}",
                last.exit_code, last.reason
            )),
            it.backoff_ms / 1000,
        ),
        Record::Rejected(uid, reason, _) => format!("rejected {} {reason}", name_of(*uid)),
        Record::Failed(uid, reason, _) => format!("failed {} {reason}", name_of(*uid)),
        Record::Counted(uid, since) => format!("counted {} from {:+}", name_of(*uid), since - EPOCH),
        Record::Started(uid, name, attempt) => format!("started {}/{name}#{attempt}", name_of(*uid)),
        Record::NotStarted(uid, name) => format!("not started {}/{name}", name_of(*uid)),
        Record::Static(file, pod) => format!("static {file} {}", name_of(pod.uid)),
        Record::StaticGone(file) => format!("static gone {file}"),
    }
}

pub(crate) fn show(effect: &Effect) -> String {
    match effect {
        Effect::Append { records, .. } => {
            let records: Vec<String> = records.iter().map(show_record).collect();
            format!("append {}", records.join(", "))
        }
        Effect::Send(up) => format!("send {}", show_up(up)),
        Effect::EnsureImage { container, image, .. } => {
            format!("ensure image {image} for {}", show_reference(container))
        }
        Effect::MakeSandbox { pod, ip } => {
            let ip = ip.map_or("no address".to_owned(), |it| it.to_string());
            format!("make sandbox {} {ip}", name_of(*pod))
        }
        Effect::Start(container) => format!("start {}", show_reference(container)),
        Effect::Stop { container, urgency } => {
            let how = match urgency {
                Urgency::Ask => "ask",
                Urgency::Kill => "kill",
            };
            format!("{how} {}", show_reference(container))
        }
        Effect::Probe { container, kind } => format!("probe {kind:?} {}", show_reference(container)),
        Effect::Hook {
            container,
            kind,
            within,
        } => {
            format!(
                "hook {kind:?} {} within {} s",
                show_reference(container),
                within / 1000
            )
        }
        Effect::Resize(container) => format!("resize {}", show_reference(container)),
        Effect::Note { container, probed } => format!(
            "note {}{}{}",
            show_reference(container),
            if probed.started { " started" } else { "" },
            if probed.ready { " ready" } else { "" }
        ),
        Effect::RefreshVolumes(pod) => format!("refresh volumes of {}", name_of(*pod)),
        Effect::DropVolume(name) => format!("drop volume {name}"),
        Effect::Remove(pod) => format!("remove {}", name_of(*pod)),
        Effect::Report(refusal) => format!("report {refusal:?}"),
    }
}

pub(crate) fn show_up(up: &Up) -> String {
    match up {
        Up::Hello(hello) => format!("hello epoch {} generation {}", hello.epoch, hello.generation),
        Up::Need { generation, keys } => {
            let keys: Vec<String> = keys.iter().map(show_key).collect();
            format!("need {generation}: {}", keys.join(" "))
        }
        Up::Applied { generation, .. } => format!("applied {generation}"),
        Up::Status { sequence, pods, .. } => {
            let pods: Vec<String> = pods.iter().map(|it| name_of(it.uid)).collect();
            format!("status {sequence}: {}", pods.join(" "))
        }
        Up::Events { lost, events } => {
            let events: Vec<String> = events.iter().map(show_event).collect();
            format!("events ({lost} lost):{}", events.concat())
        }
        Up::Node(_) => "node".to_owned(),
        Up::Statics { uids } => format!(
            "statics {:?}",
            uids.iter().map(|it| name_of(*it)).collect::<Vec<_>>()
        ),
        Up::StaticPod { uid, .. } => format!("static pod {}", name_of(*uid)),
        Up::StreamData { .. } | Up::StreamEnd { .. } | Up::Bye { .. } | Up::Images { .. } => {
            "not the core's".to_owned()
        }
    }
}

fn show_event(event: &skiff_protocol::wire::Event) -> String {
    let kind = if event.warning { "Warning" } else { "Normal" };
    format!("\n    {kind} {}: {}", event.reason, event.message)
}

pub(crate) fn show_status(status: &PodStatus) -> String {
    let mut out = format!("{} {}", name_of(status.uid), status.phase.as_str());
    if !status.reason.is_empty() {
        let _ = write!(out, " {}: {}", status.reason, status.message);
    }
    if status.ready() {
        out += " ready";
    }
    if status.gone {
        out += " gone";
    }
    if let Some((reason, message)) = &status.resize {
        let _ = write!(out, " resize {reason}: {message}");
    }
    for it in status.init_containers.iter().chain(&status.containers) {
        let state = match &it.state {
            ContainerState::Waiting { reason, .. } => reason.clone(),
            ContainerState::Running { .. } if it.ready => "Running".to_owned(),
            ContainerState::Running { .. } if it.started => "Running(unready)".to_owned(),
            ContainerState::Running { .. } => "Running(starting)".to_owned(),
            ContainerState::Terminated(end) => format!("{}({})", end.reason, end.exit_code),
        };
        let _ = write!(out, "; {}#{} {state}", it.name, it.restart_count);
        if let Some(last) = &it.last {
            let _ = write!(out, " after {}({})", last.reason, last.exit_code);
        }
    }
    out
}
