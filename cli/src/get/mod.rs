//! `skiff get`: objects as tables, YAML, JSON or names, and what changes of them.
//!
//! Always holds: the columns of a table are the server's, so that they are the same in every client.

mod table;
mod watch;

use http::Method;
use serde_json::{Value, json};

use crate::args::{GetArgs, Output};
use crate::connect::{Ask, JSON, Server, TABLE, Target};
use crate::failure::{Outcome, failed};
use crate::kinds::{self, Kind};
use crate::out::Out;
use crate::style;
use skiff_yaml::to_yaml;

use table::Table;

/// What is asked for.
struct Wanted<'a> {
    kind: &'static Kind,
    name: Option<&'a str>,
    /// None for all.
    namespace: Option<&'a str>,
    args: &'a GetArgs,
}

pub(crate) async fn run(target: &Target, args: &GetArgs) -> Outcome {
    let (word, name) = match (args.kind.split_once('/'), &args.name) {
        (Some((kind, name)), None) => (kind, Some(name)),
        (Some(_), Some(_)) => {
            return failed(format!("{}: either kind/name, or a kind and a name", args.kind));
        }
        (None, name) => (args.kind.as_str(), name.as_deref()),
    };
    let kind = kinds::by_word(word)?;
    if name.is_some_and(str::is_empty) {
        return failed(format!("{}/: which one?", kind.singular));
    }
    if name.is_some() && (args.selector.is_some() || args.field_selector.is_some() || args.all_namespaces) {
        return failed(
            "a name leaves nothing to select: leave out the name, or --selector, --field-selector and -A",
        );
    }
    let server = target.server().await?;
    let namespace = (!args.all_namespaces && kind.namespaced).then_some(server.namespace.as_str());
    let wanted = Wanted {
        kind,
        name,
        namespace,
        args,
    };
    if args.watch {
        return watch::run(&server, &wanted).await;
    }
    let mut out = Out::new();
    let (answer, _) = wanted.list(&server).await?;
    match args.output {
        None | Some(Output::Wide) => {
            let mut table = Table::new(wanted.shape());
            let rows = table.add(&answer)?;
            if rows.is_empty() {
                style::tell(&wanted.nothing());
            } else {
                for line in table.lines(&rows, !args.no_headers) {
                    out.line(&line)?;
                }
            }
        }
        Some(form) => out.bytes(show(&answer, kind, form).as_bytes())?,
    }
    out.flush()
}

impl Wanted<'_> {
    fn ask(&self) -> Ask {
        let table = matches!(self.args.output, None | Some(Output::Wide));
        let path = match (self.name, self.namespace) {
            (Some(name), namespace) => self.kind.object(namespace.unwrap_or_default(), name),
            (None, namespace) => self.kind.path(namespace),
        };
        self.selecting(Ask::new(Method::GET, path))
            .accepting(if table { TABLE } else { JSON })
    }

    fn selecting(&self, mut ask: Ask) -> Ask {
        if let Some(selector) = &self.args.selector {
            ask = ask.with("labelSelector", selector);
        }
        if let Some(selector) = &self.args.field_selector {
            ask = ask.with("fieldSelector", selector);
        }
        ask
    }

    /// What there is, and the version to watch from.
    async fn list(&self, server: &Server) -> Outcome<(Value, String)> {
        let answer = server.json(self.ask()).await?;
        let version = answer["metadata"]["resourceVersion"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        Ok((answer, version))
    }

    fn shape(&self) -> table::Shape {
        table::Shape {
            wide: self.args.output == Some(Output::Wide),
            namespaces: self.kind.namespaced && self.namespace.is_none(),
        }
    }

    fn nothing(&self) -> String {
        match self.namespace {
            Some(namespace) => format!("No resources found in {namespace} namespace."),
            None => "No resources found.".to_owned(),
        }
    }
}

/// An object or a list in a form that is no table.
fn show(answer: &Value, kind: &Kind, form: Output) -> String {
    let named = |object: &Value| {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        format!("{}/{name}\n", kind.singular)
    };
    let items = answer["items"].as_array();
    match (form, items) {
        (Output::Name, None) => named(answer),
        (Output::Name, Some(items)) => items.iter().map(named).collect(),
        (Output::Json, _) => format!("{:#}\n", complete(answer, kind)),
        _ => to_yaml(&complete(answer, kind)),
    }
}

/// Items of a list name no kind, for all have the same; on their own, in a file, they must. The list is one that
/// `apply` takes back.
fn complete(answer: &Value, kind: &Kind) -> Value {
    let Some(items) = answer["items"].as_array() else {
        return answer.clone();
    };
    let mut items = items.clone();
    for item in &mut items {
        if let Some(object) = item.as_object_mut() {
            object
                .entry("apiVersion")
                .or_insert_with(|| json!(kind.api_version()));
            object.entry("kind").or_insert_with(|| json!(kind.kind));
        }
    }
    json!({ "apiVersion": "v1", "kind": "List", "metadata": {}, "items": items })
}

/// `skiff node ls`.
pub(crate) async fn nodes(target: &Target, wide: bool) -> Outcome {
    let args = GetArgs {
        kind: "nodes".to_owned(),
        name: None,
        all_namespaces: false,
        selector: None,
        field_selector: None,
        output: wide.then_some(Output::Wide),
        watch: false,
        no_headers: false,
    };
    run(target, &args).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let pods = kinds::by_word("pods").unwrap_or(&kinds::KINDS[0]);
        let list =
            json!({"kind": "PodList", "items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}]});
        assert_eq!(show(&list, pods, Output::Name), "pod/a\npod/b\n");
        assert_eq!(
            show(&list, pods, Output::Yaml),
            "apiVersion: v1\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata:\n    name: a\n\
             - apiVersion: v1\n  kind: Pod\n  metadata:\n    name: b\nkind: List\nmetadata: {}\n"
        );
        let one = json!({"kind": "Pod", "metadata": {"name": "a"}});
        assert_eq!(show(&one, pods, Output::Name), "pod/a\n");
        assert_eq!(
            show(&one, pods, Output::Json),
            "{\n  \"kind\": \"Pod\",\n  \"metadata\": {\n    \"name\": \"a\"\n  }\n}\n"
        );
    }
}
