//! Stand-in images, made here from Debian's packages: real nginx and redis, busybox scripts for the rest.
//!
//! `target/images/<name>.tar` is what `docker save` writes (layers not compressed), `target/images/<name>/` is an
//! OCI layout (layers gzipped, as registries hold them). The same packages give the same digests every time.

mod layer;
mod oci;
mod recipes;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::debian::{Suite, Unpacked};
use crate::files;
use crate::workspace::Workspace;

pub(crate) use layer::Layer;
pub(crate) use recipes::{Recipe, applets};

/// What the recipes take from Debian, each unpacked in a root of its own.
pub(crate) struct Packages {
    pub(crate) busybox: Unpacked,
    pub(crate) nginx: Unpacked,
    pub(crate) redis: Unpacked,
}

/// Makes every image and returns the directory they are in.
pub(crate) fn build(workspace: &Workspace) -> Result<PathBuf> {
    let suite = Suite::of_system(workspace)?;
    let packages = Packages {
        busybox: suite.unpack(&["busybox-static"])?,
        nginx: suite.unpack(&["nginx"])?,
        redis: suite.unpack(&["redis-server", "redis-tools"])?,
    };
    let dir = workspace.images();
    write(&dir, recipes::all(&packages)?, oci::own_architecture())?;
    Ok(dir)
}

/// Makes the images of the emulated board: busybox alone.
pub(crate) fn for_board(dir: &Path, busybox: &Unpacked, applets: &[String]) -> Result<()> {
    let recipe = recipes::busybox_with("busybox:latest", busybox, applets)?;
    write(dir, vec![recipe], "arm64")
}

fn write(dir: &Path, recipes: Vec<Recipe>, architecture: &'static str) -> Result<()> {
    files::make_dir(dir)?;
    for recipe in recipes {
        let name = recipe.file_name();
        let image = oci::Image::assemble(recipe, architecture)
            .with_context(|| format!("cannot assemble the image {name}"))?;
        image.write_archive(&dir.join(format!("{name}.tar")))?;
        image.write_layout(&dir.join(&name))?;
        println!(
            "  {:<44} {:>9} bytes  {}",
            image.reference(),
            image.size(),
            image.digest()
        );
    }
    Ok(())
}
