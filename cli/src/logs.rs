//! `skiff logs`: what a container wrote, as it wrote it.

use futures_util::StreamExt as _;
use http::Method;

use crate::args::LogsArgs;
use crate::connect::{Ask, Target};
use crate::failure::{Outcome, failed};
use crate::kinds;
use crate::out::Out;

pub(crate) async fn run(target: &Target, args: &LogsArgs) -> Outcome {
    let pod = match args.pod.split_once('/') {
        None => args.pod.as_str(),
        Some((word, name)) if kinds::by_word(word)?.kind == "Pod" => name,
        Some((word, _)) => return failed(format!("{word}: only a Pod has logs")),
    };
    if pod.is_empty() {
        return failed("which Pod?");
    }
    let server = target.server().await?;
    let path = format!("{}/log", kinds::by_word("pods")?.object(&server.namespace, pod));
    let mut ask = Ask::new(Method::GET, path).accepting("*/*");
    if let Some(container) = &args.container {
        ask = ask.with("container", container);
    }
    for (name, wanted) in [
        ("follow", args.follow),
        ("previous", args.previous),
        ("timestamps", args.timestamps),
    ] {
        if wanted {
            ask = ask.with(name, "true");
        }
    }
    if args.tail >= 0 {
        ask = ask.with("tailLines", &args.tail.to_string());
    }
    for (name, number) in [("sinceSeconds", args.since), ("limitBytes", args.limit_bytes)] {
        if let Some(number) = number {
            ask = ask.with(name, &number.to_string());
        }
    }
    let mut stream = server.stream(ask).await?;
    let mut out = Out::new();
    while let Some(piece) = stream.next().await {
        out.bytes(&piece?)?;
        out.flush()?;
    }
    Ok(())
}
