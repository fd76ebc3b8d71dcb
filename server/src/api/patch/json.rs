//! JSON patch: a list of operations, all of them or none.
//!
//! What always holds: operations are counted, pointers and copies are bounded, so that a short patch cannot make a huge
//! document by copying it into itself.

use serde_json::Value;

use super::depth;
use crate::api::limits;
use crate::api::status::{ApiError, ApiResult};

/// Applies the patch to a copy of the document.
pub(super) fn apply(document: &Value, patch: &Value) -> ApiResult<Value> {
    let Value::Array(operations) = patch else {
        return Err(ApiError::bad_request("a JSON patch is a list of operations"));
    };
    if operations.len() > limits::PATCH_OPERATIONS {
        return Err(ApiError::too_large(limits::PATCH_OPERATIONS));
    }
    let mut document = document.clone();
    let mut copied = 0;
    for (at, operation) in operations.iter().enumerate() {
        step(&mut document, operation, &mut copied)
            .map_err(|why| ApiError::bad_request(format!("operation {at} of the JSON patch: {why}")))?;
    }
    Ok(document)
}

fn step(document: &mut Value, operation: &Value, copied: &mut usize) -> Result<(), String> {
    let text = |field: &str| {
        let text = operation.get(field).and_then(Value::as_str);
        text.ok_or_else(|| format!("{field} is missing or no string"))
    };
    let value = || {
        operation
            .get("value")
            .cloned()
            .ok_or_else(|| "value is missing".to_owned())
    };
    let path = pointer(text("path")?)?;
    match text("op")? {
        "add" => add(document, &path, value()?),
        "remove" => remove(document, &path).map(|_| ()),
        "replace" => {
            *find(document, &path)? = value()?;
            Ok(())
        }
        "move" => {
            let from = pointer(text("from")?)?;
            if path.starts_with(&from) && path.len() > from.len() {
                return Err("a value cannot move into itself".into());
            }
            let value = remove(document, &from)?;
            if depth(&value, path.len()) > limits::DEPTH {
                return Err("the moved value would nest too deep".into());
            }
            add(document, &path, value)
        }
        "copy" => {
            let value = find(document, &pointer(text("from")?)?)?.clone();
            *copied += value.to_string().len();
            if *copied > limits::BODY_BYTES || depth(&value, path.len()) > limits::DEPTH {
                return Err("the copies grow beyond what a document may be".into());
            }
            add(document, &path, value)
        }
        "test" => {
            let found = find(document, &path)?;
            if *found == value()? {
                Ok(())
            } else {
                Err(format!("test failed: {} differs", text("path")?))
            }
        }
        other => Err(format!("op {other:?} is unknown")),
    }
}

fn pointer(text: &str) -> Result<Vec<String>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let Some(rest) = text.strip_prefix('/') else {
        return Err(format!("path {text:?} does not begin with '/'"));
    };
    let parts: Vec<String> = rest
        .split('/')
        .map(|part| part.replace("~1", "/").replace("~0", "~"))
        .collect();
    if parts.len() > limits::DEPTH {
        Err(format!("path {text:?} is too deep"))
    } else {
        Ok(parts)
    }
}

fn missing(path: &[String]) -> String {
    format!("/{} does not exist", path.join("/"))
}

fn find<'a>(document: &'a mut Value, path: &[String]) -> Result<&'a mut Value, String> {
    let mut current = document;
    for part in path {
        let next = match current {
            Value::Object(map) => map.get_mut(part),
            Value::Array(items) => index(part, items.len()).ok().and_then(|at| items.get_mut(at)),
            _ => None,
        };
        current = next.ok_or_else(|| missing(path))?;
    }
    Ok(current)
}

fn index(part: &str, len: usize) -> Result<usize, String> {
    if part == "-" {
        return Ok(len);
    }
    let leading_zero = part.len() > 1 && part.starts_with('0');
    let at = part
        .parse::<usize>()
        .ok()
        .filter(|at| !leading_zero && *at <= len);
    at.ok_or_else(|| format!("{part:?} is no index of a list of {len}"))
}

fn add(document: &mut Value, path: &[String], value: Value) -> Result<(), String> {
    let Some((last, parent)) = path.split_last() else {
        *document = value;
        return Ok(());
    };
    match find(document, parent)? {
        Value::Object(map) => {
            map.insert(last.clone(), value);
            Ok(())
        }
        Value::Array(items) => {
            let at = index(last, items.len())?;
            items.insert(at, value);
            Ok(())
        }
        _ => Err(missing(path)),
    }
}

fn remove(document: &mut Value, path: &[String]) -> Result<Value, String> {
    let Some((last, parent)) = path.split_last() else {
        return Ok(document.take());
    };
    let removed = match find(document, parent)? {
        Value::Object(map) => map.remove(last),
        Value::Array(items) => {
            let at = index(last, items.len())?;
            (at < items.len()).then(|| items.remove(at))
        }
        _ => None,
    };
    removed.ok_or_else(|| missing(path))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn operations() {
        let check = |document: Value, patch: Value, expected: Option<Value>| {
            let found = apply(&document, &patch).ok();
            assert_eq!(found, expected, "{document} {patch}");
        };
        check(
            json!({"a": 1}),
            json!([{"op": "add", "path": "/b", "value": 2}]),
            Some(json!({"a": 1, "b": 2})),
        );
        check(
            json!([1, 3]),
            json!([{"op": "add", "path": "/1", "value": 2}]),
            Some(json!([1, 2, 3])),
        );
        check(
            json!([1]),
            json!([{"op": "add", "path": "/-", "value": 2}]),
            Some(json!([1, 2])),
        );
        check(json!([1]), json!([{"op": "add", "path": "/2", "value": 2}]), None);
        check(
            json!({"a~/b": 1}),
            json!([{"op": "remove", "path": "/a~0~1b"}]),
            Some(json!({})),
        );
        check(json!({}), json!([{"op": "remove", "path": "/a"}]), None);
        check(
            json!({"a": 1}),
            json!([{"op": "replace", "path": "/a", "value": 2}]),
            Some(json!({"a": 2})),
        );
        check(
            json!({}),
            json!([{"op": "replace", "path": "/a", "value": 2}]),
            None,
        );
        check(
            json!({"a": 1}),
            json!([{"op": "move", "from": "/a", "path": "/b"}]),
            Some(json!({"b": 1})),
        );
        check(
            json!({"a": {"b": 1}}),
            json!([{"op": "move", "from": "/a", "path": "/a/b"}]),
            None,
        );
        check(
            json!({"a": 1}),
            json!([{"op": "copy", "from": "/a", "path": "/b"}]),
            Some(json!({"a": 1, "b": 1})),
        );
        check(
            json!({"a": 1}),
            json!([{"op": "test", "path": "/a", "value": 1}]),
            Some(json!({"a": 1})),
        );
        check(
            json!({"a": 1}),
            json!([{"op": "test", "path": "/a", "value": 2}]),
            None,
        );
        check(json!({"a": 1}), json!([{"op": "explode", "path": "/a"}]), None);
        check(json!({"a": 1}), json!({"op": "remove", "path": "/a"}), None);
    }

    #[test]
    fn copying_into_itself_is_bounded() {
        let copy = json!({"op": "copy", "from": "", "path": "/a"});
        let patch = Value::Array(vec![copy; 1000]);
        assert!(apply(&json!({"x": 1}), &patch).is_err());
        let wide = json!({"op": "copy", "from": "/l", "path": "/l/-"});
        assert!(apply(&json!({"l": ["x"]}), &Value::Array(vec![wide; 1000])).is_err());
    }
}
