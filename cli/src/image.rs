//! `skiff image import` and `skiff image ls`: images that nodes get from their server.

use std::fs::{self, File};
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use http::Method;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use skiff_protocol::image_ref::ImageRef;

use crate::connect::{Ask, Target};
use crate::failure::Outcome;
use crate::kinds::escape;
use crate::out::Out;
use crate::upload::{self, Content};

/// Where the server keeps images.
const PATH: &str = "/skiff/v1/images";

/// Files of one OCI layout: layers, configurations and manifests.
const FILES: usize = 10_000;

pub(crate) async fn import(target: &Target, file: &Path, name: Option<&str>) -> Outcome {
    // What is wrong with the arguments shows before any connection is made.
    let name = name
        .map(|name| ImageRef::parse(name).map_err(|error| anyhow!("--name: {error}")))
        .transpose()?;
    let content = open(file)?;
    let server = target.server().await?;
    let path = match &name {
        Some(name) => format!("{PATH}?name={}", escape(&name.to_string())),
        None => PATH.to_owned(),
    };
    let bar = progress(content.size());
    let tell = {
        let bar = bar.clone();
        move |bytes| {
            bar.inc(bytes);
            if bar.length().is_some_and(|length| bar.position() >= length) {
                bar.set_message("the server checks and stores it");
            }
        }
    };
    let answer = upload::post(&server, &path, content, tell).await;
    bar.finish_and_clear();
    let answer = answer?;
    let mut out = Out::new();
    for image in answer["images"].as_array().into_iter().flatten() {
        let text = |name: &str| image[name].as_str().unwrap_or_default();
        out.line(&format!(
            "{} imported ({}, {})",
            text("reference"),
            text("digest"),
            size(&image["bytes"])
        ))?;
    }
    out.flush()
}

pub(crate) async fn list(target: &Target) -> Outcome {
    let server = target.server().await?;
    let answer = server.json(Ask::new(Method::GET, PATH)).await?;
    let images = answer["images"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows = images.iter().map(|image| {
        let text = |name: &str| image[name].as_str().unwrap_or_default().to_owned();
        [
            text("reference"),
            text("digest").chars().take(19).collect(),
            size(&image["bytes"]),
        ]
    });
    table(rows.collect())
}

/// Images as a table: name, digest, size.
pub(crate) fn table(rows: Vec<[String; 3]>) -> Outcome {
    let widest = rows
        .iter()
        .map(|row| row[0].len())
        .max()
        .unwrap_or(0)
        .max("IMAGE".len());
    let mut out = Out::new();
    out.line(&format!("{:widest$}   {:19}   SIZE", "IMAGE", "DIGEST"))?;
    for [reference, digest, size] in rows {
        out.line(&format!("{reference:widest$}   {digest:19}   {size}"))?;
    }
    out.flush()
}

/// A number of bytes, as a person reads it.
pub(crate) fn size(bytes: &Value) -> String {
    indicatif::HumanBytes(bytes.as_u64().unwrap_or(0)).to_string()
}

/// A bar where somebody looks at it, and nothing elsewhere.
fn progress(size: Option<u64>) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match size {
        Some(size) => (
            ProgressBar::new(size),
            "{bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta} {msg}",
        ),
        None => (
            ProgressBar::new_spinner(),
            "{spinner} {bytes} {binary_bytes_per_sec} {msg}",
        ),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn open(path: &Path) -> anyhow::Result<Content> {
    if path == Path::new("-") {
        return Ok(Content::Stdin);
    }
    let name = || path.display().to_string();
    if path.is_dir() {
        return layout(path).with_context(name);
    }
    let file = File::open(path).with_context(name)?;
    let size = file.metadata().with_context(name)?.len();
    if size == 0 {
        bail!("{}: the file is empty", name());
    }
    Ok(Content::File(file, path.to_owned(), size))
}

/// The files of an OCI layout, in the order in which a reader wants them (OCI image layout specification).
fn layout(root: &Path) -> anyhow::Result<Content> {
    if !root.join("oci-layout").is_file() || !root.join("index.json").is_file() {
        bail!("no OCI layout: it has a file oci-layout, a file index.json and a directory blobs");
    }
    let mut files = vec![PathBuf::from("oci-layout"), PathBuf::from("index.json")];
    let blobs = Path::new("blobs");
    for algorithm in sorted(&root.join(blobs))? {
        let inside = blobs.join(algorithm);
        for blob in sorted(&root.join(&inside))? {
            files.push(inside.join(blob));
            if files.len() > FILES {
                bail!("more than {FILES} blobs");
            }
        }
    }
    let mut size = 0;
    for file in &files {
        size += fs::metadata(root.join(file))
            .with_context(|| file.display().to_string())?
            .len();
    }
    Ok(Content::Directory(root.to_owned(), files, size))
}

fn sorted(directory: &Path) -> anyhow::Result<Vec<std::ffi::OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        names.push(entry?.file_name());
    }
    names.sort();
    Ok(names)
}
