//! `skiff node enrol`: a token, and the one command to run on the device. `skiff node remove`: the end of both.
//! `skiff node images`: what a node has.

use http::Method;
use serde_json::json;
use skiff_protocol::topic::NodeName;

use crate::connect::{Ask, Server, Target};
use crate::failure::{Outcome, failed};
use crate::image;
use crate::out::Out;
use crate::style;

/// A token that lets a node join.
pub(crate) struct Token {
    /// Its text.
    pub(crate) text: String,
    /// Where the node will join.
    pub(crate) urls: Vec<String>,
}

/// Asks the server for a token.
pub(crate) async fn token(server: &Server, name: &str, seconds: u64) -> Outcome<Token> {
    let name = NodeName::parse(name)?;
    let ask = Ask::new(Method::POST, format!("/skiff/v1/nodes/{name}/enrol"));
    let answer = server
        .json(ask.sending("application/json", &json!({ "ttlSeconds": seconds })))
        .await?;
    let urls = answer["serverUrls"].as_array().into_iter().flatten();
    let urls = urls.filter_map(|url| url.as_str().map(str::to_owned)).collect();
    match answer["token"].as_str() {
        Some(text) => Ok(Token {
            text: text.to_owned(),
            urls,
        }),
        None => failed(format!(
            "{}: the answer has no token; is it a Skiff server?",
            server.origin()
        )),
    }
}

pub(crate) async fn enrol(target: &Target, name: &str, seconds: u64, token_only: bool) -> Outcome {
    // A bad name shows before any connection is made.
    NodeName::parse(name)?;
    let server = target.server().await?;
    let token = token(&server, name, seconds).await?;
    let mut out = Out::new();
    if token_only {
        out.line(&token.text)?;
        return out.flush();
    }
    out.line(&format!(
        "On the device that shall be node {name}, once, as root:"
    ))?;
    out.line("")?;
    out.line(&format!("  skiff-agent join {}", token.text))?;
    out.line("")?;
    out.line(&format!(
        "and then `skiff-agent run`. It will join at {}.",
        token.urls.join(", then ")
    ))?;
    out.flush()?;
    let loopback =
        |url: &String| url.contains("//127.") || url.contains("//localhost") || url.contains("//[::1]");
    if token.urls.iter().all(loopback) {
        style::warning(
            "only this machine can reach the server there; for other devices start it with --listen 0.0.0.0:6443 \
             and --advertise NAME",
        );
    }
    Ok(())
}

/// Shows which images a node has, a name a line.
pub(crate) async fn images(target: &Target, name: &str) -> Outcome {
    let name = NodeName::parse(name)?;
    let server = target.server().await?;
    let ask = Ask::new(Method::GET, format!("/api/v1/nodes/{name}"));
    let node = server.json(ask).await?;
    let images = node["status"]["images"].as_array().into_iter().flatten();
    let rows = images.flat_map(|image| {
        let names = image["names"].as_array().into_iter().flatten();
        let names: Vec<&str> = names.filter_map(|name| name.as_str()).collect();
        let digest = names
            .iter()
            .find_map(|it| it.split_once('@'))
            .map_or("", |it| it.1);
        let (short, size) = (
            digest.chars().take(19).collect::<String>(),
            image::size(&image["sizeBytes"]),
        );
        // One that has tags is shown under them.
        let tags: Vec<&str> = names.iter().copied().filter(|it| !it.contains('@')).collect();
        let shown = if tags.is_empty() { names.clone() } else { tags };
        shown
            .into_iter()
            .map(|it| [it.to_owned(), short.clone(), size.clone()])
            .collect::<Vec<_>>()
    });
    image::table(rows.collect())
}

/// Takes a node out of the fleet, and its Node object with it.
pub(crate) async fn remove(target: &Target, name: &str) -> Outcome {
    let name = NodeName::parse(name)?;
    let server = target.server().await?;
    // The membership first: a member that is there would make its Node object anew.
    let ask = Ask::new(Method::DELETE, format!("/skiff/v1/nodes/{name}"));
    let was_member = server.json(ask).await?["removed"] == true;
    let object = Ask::new(Method::DELETE, format!("/api/v1/nodes/{name}"));
    let was_object = match server.json(object).await {
        Ok(_) => true,
        Err(refusal) if refusal.code() == Some(404) => false,
        Err(refusal) => return Err(refusal.into()),
    };
    if !was_member && !was_object {
        return failed(format!(
            "no node is named {:?}; `skiff node ls` lists them",
            name.as_str()
        ));
    }
    let mut out = Out::new();
    out.line(&format!("node/{name} removed"))?;
    out.flush()
}
