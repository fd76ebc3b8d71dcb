//! Label and field selectors.
//!
//! What always holds: a selector that was parsed can be matched against any object; one that cannot be honoured is an
//! error, never a selector that matches everything.

use serde_json::Value;

use super::resources::Resource;
use super::status::{ApiError, ApiResult};

/// Both selectors of a listing, a watch or a collection's deletion.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<Field>,
}

#[derive(Clone, Debug, PartialEq)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Clone, Debug, PartialEq)]
enum Operator {
    Exists,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
    Greater(i64),
    Less(i64),
}

#[derive(Clone, Debug, PartialEq)]
struct Field {
    path: Vec<String>,
    absent: &'static str,
    value: String,
    equal: bool,
}

impl Selector {
    /// Parses `labelSelector` and `fieldSelector` for a resource.
    pub(crate) fn parse(resource: &Resource, labels: Option<&str>, fields: Option<&str>) -> ApiResult<Self> {
        let labels = parse_labels(labels.unwrap_or_default())?;
        let fields = parse_fields(resource, fields.unwrap_or_default())?;
        Ok(Self { labels, fields })
    }

    /// Whether everything matches.
    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// The one name that can match, so that a store can look it up instead of reading everything.
    pub(crate) fn name(&self) -> Option<&str> {
        let named = self
            .fields
            .iter()
            .find(|field| field.equal && field.path == ["metadata", "name"]);
        named.map(|field| field.value.as_str())
    }

    /// The one namespace that can match.
    pub(crate) fn namespace(&self) -> Option<&str> {
        let named = self
            .fields
            .iter()
            .find(|field| field.equal && field.path == ["metadata", "namespace"]);
        named.map(|field| field.value.as_str())
    }

    /// Whether the object matches both selectors.
    pub(crate) fn matches(&self, object: &Value) -> bool {
        let labels = object.get("metadata").and_then(|metadata| metadata.get("labels"));
        self.labels.iter().all(|requirement| {
            let value = labels
                .and_then(|labels| labels.get(&requirement.key))
                .and_then(Value::as_str);
            requirement.operator.matches(value)
        }) && self.fields.iter().all(|field| field.matches(object))
    }
}

impl Operator {
    fn matches(&self, value: Option<&str>) -> bool {
        let number = value.and_then(|value| value.parse::<i64>().ok());
        match self {
            Self::Exists => value.is_some(),
            Self::Absent => value.is_none(),
            Self::In(allowed) => value.is_some_and(|value| allowed.iter().any(|one| one == value)),
            Self::NotIn(barred) => value.is_none_or(|value| barred.iter().all(|one| one != value)),
            Self::Greater(bound) => number.is_some_and(|number| number > *bound),
            Self::Less(bound) => number.is_some_and(|number| number < *bound),
        }
    }
}

impl Field {
    fn matches(&self, object: &Value) -> bool {
        let mut value = Some(object);
        for part in &self.path {
            value = value.and_then(|value| value.get(part));
        }
        // An event's source is an object whose component is what clients mean.
        if let Some(Value::Object(source)) = value
            && self.path == ["source"]
        {
            value = source.get("component");
        }
        let equal = match value {
            Some(Value::String(text)) => *text == self.value,
            Some(Value::Bool(flag)) => flag.to_string() == self.value,
            Some(Value::Number(number)) => number.to_string() == self.value,
            _ => self.absent == self.value,
        };
        equal == self.equal
    }
}

fn parse_fields(resource: &Resource, text: &str) -> ApiResult<Vec<Field>> {
    let mut fields = Vec::new();
    for term in split_unescaped(text, ',') {
        if term.is_empty() {
            continue;
        }
        let invalid =
            || ApiError::bad_request(format!("invalid selector: '{text}'; can't understand '{term}'"));
        let at = find_unescaped(&term, '=').ok_or_else(invalid)?;
        let (key, value) = (&term[..at], &term[at + 1..]);
        let (key, equal) = match key.strip_suffix('!') {
            Some(key) => (key, false),
            None => (key, true),
        };
        let value = unescape(value.strip_prefix('=').unwrap_or(value)).ok_or_else(invalid)?;
        let common = [("metadata.name", ""), ("metadata.namespace", "")];
        let known = common
            .iter()
            .chain(resource.fields)
            .find(|(name, _)| *name == key);
        let Some((name, absent)) = known else {
            return Err(ApiError::bad_request(format!("field label not supported: {key}")));
        };
        fields.push(Field {
            path: name.split('.').map(str::to_owned).collect(),
            absent,
            value,
            equal,
        });
    }
    Ok(fields)
}

fn find_unescaped(text: &str, wanted: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == wanted => return Some(at),
            _ => {}
        }
    }
    None
}

fn split_unescaped(mut text: &str, separator: char) -> Vec<String> {
    let mut parts = Vec::new();
    while let Some(at) = find_unescaped(text, separator) {
        parts.push(text[..at].to_owned());
        text = &text[at + separator.len_utf8()..];
    }
    parts.push(text.to_owned());
    parts
}

fn unescape(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.push(chars.next().filter(|c| matches!(c, '\\' | ',' | '='))?),
            ',' | '=' => return None,
            _ => out.push(c),
        }
    }
    Some(out)
}

/// A label selector's words: names, values and operators.
#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Equal,
    NotEqual,
    Not,
    Greater,
    Less,
    Comma,
    Open,
    Close,
}

fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            _ if c.is_whitespace() => continue,
            ',' => Token::Comma,
            '(' => Token::Open,
            ')' => Token::Close,
            '>' => Token::Greater,
            '<' => Token::Less,
            '=' => {
                chars.next_if_eq(&'=');
                Token::Equal
            }
            '!' => match chars.next_if_eq(&'=') {
                Some(_) => Token::NotEqual,
                None => Token::Not,
            },
            _ => {
                let mut word = String::from(c);
                let part =
                    |c: &char| !c.is_whitespace() && !matches!(c, ',' | '(' | ')' | '>' | '<' | '=' | '!');
                while let Some(c) = chars.next_if(part) {
                    word.push(c);
                }
                Token::Word(word)
            }
        });
    }
    tokens
}

fn parse_labels(text: &str) -> ApiResult<Vec<Requirement>> {
    let invalid = |what: &str| {
        ApiError::bad_request(format!(
            "unable to parse requirement: {what} in label selector {text:?}"
        ))
    };
    let tokens = tokens(text);
    let mut rest = tokens.as_slice();
    let mut requirements = Vec::new();
    while !rest.is_empty() {
        let (requirement, after) = parse_requirement(rest).map_err(|what| invalid(&what))?;
        requirements.push(requirement);
        rest = match after {
            [] => after,
            // A comma promises another requirement.
            [Token::Comma, more @ ..] if !more.is_empty() => more,
            _ => return Err(invalid("found something else where ',' was expected")),
        };
    }
    Ok(requirements)
}

fn parse_requirement(tokens: &[Token]) -> Result<(Requirement, &[Token]), String> {
    let (key, operator, rest) = match tokens {
        [Token::Not, Token::Word(key), rest @ ..] => (key, Operator::Absent, rest),
        [Token::Word(key), Token::Word(word), Token::Open, rest @ ..] if word == "in" || word == "notin" => {
            let (values, rest) = parse_values(rest)?;
            let operator = if word == "in" {
                Operator::In(values)
            } else {
                Operator::NotIn(values)
            };
            (key, operator, rest)
        }
        [Token::Word(key), Token::Equal, rest @ ..] => {
            let (value, rest) = parse_value(rest);
            (key, Operator::In(vec![value]), rest)
        }
        [Token::Word(key), Token::NotEqual, rest @ ..] => {
            let (value, rest) = parse_value(rest);
            (key, Operator::NotIn(vec![value]), rest)
        }
        [Token::Word(key), Token::Greater, Token::Word(bound), rest @ ..] => {
            let bound = bound.parse().map_err(|_| format!("{bound:?} is no integer"))?;
            (key, Operator::Greater(bound), rest)
        }
        [Token::Word(key), Token::Less, Token::Word(bound), rest @ ..] => {
            let bound = bound.parse().map_err(|_| format!("{bound:?} is no integer"))?;
            (key, Operator::Less(bound), rest)
        }
        [Token::Word(key), rest @ ..] => (key, Operator::Exists, rest),
        _ => return Err("found no label key where one was expected".into()),
    };
    Ok((
        Requirement {
            key: key.clone(),
            operator,
        },
        rest,
    ))
}

fn parse_value(tokens: &[Token]) -> (String, &[Token]) {
    match tokens {
        [Token::Word(value), rest @ ..] => (value.clone(), rest),
        _ => (String::new(), tokens),
    }
}

fn parse_values(mut tokens: &[Token]) -> Result<(Vec<String>, &[Token]), String> {
    let mut values = Vec::new();
    loop {
        let (value, rest) = parse_value(tokens);
        values.push(value);
        match rest {
            [Token::Comma, rest @ ..] => tokens = rest,
            [Token::Close, rest @ ..] => return Ok((values, rest)),
            _ => return Err("found no ')' after a list of values".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::resources;

    fn check(labels: &str, fields: &str, expected: Option<bool>) {
        let object = json!({
            "metadata": {"name": "a", "namespace": "n", "labels": {"app": "web", "tier": "", "level": "5"}},
            "spec": {"nodeName": "n1"}, "status": {"phase": "Running"},
        });
        let selector = Selector::parse(resources::pods(), Some(labels), Some(fields));
        let matched = selector.ok().map(|selector| selector.matches(&object));
        assert_eq!(matched, expected, "labels {labels:?}, fields {fields:?}");
    }

    #[test]
    fn label_selectors() {
        for (text, expected) in [
            ("", Some(true)),
            ("app=web", Some(true)),
            ("app==web", Some(true)),
            ("app = web , level", Some(true)),
            ("app!=web", Some(false)),
            ("other!=web", Some(true)),
            ("app in (db, web)", Some(true)),
            ("app notin (db, web)", Some(false)),
            ("other notin (db)", Some(true)),
            ("app", Some(true)),
            ("!app", Some(false)),
            ("!other", Some(true)),
            ("tier=", Some(true)),
            ("tier in ()", Some(true)),
            ("level>4,level<6", Some(true)),
            ("level>5", Some(false)),
            ("app=web,", None),
            (",", None),
            ("app in web", None),
            ("app in (web", None),
            ("level>x", None),
            ("=web", None),
            ("app=web level", None),
        ] {
            check(text, "", expected);
        }
    }

    #[test]
    fn field_selectors() {
        for (text, expected) in [
            ("metadata.name=a", Some(true)),
            ("metadata.name=b", Some(false)),
            ("spec.nodeName=n1,status.phase!=Failed", Some(true)),
            ("status.phase!=Running", Some(false)),
            ("status.podIP=", Some(true)),
            ("spec.hostNetwork=false", Some(true)),
            ("metadata.name==a", Some(true)),
            ("spec.image=x", None),
            ("metadata.name", None),
            ("metadata.name=a\\,b", Some(false)),
        ] {
            check("", text, expected);
        }
    }
}
