//! Where each field of a document stands.
//!
//! Always holds: looking up a path that is not there gives its nearest ancestor, so that a missing field has a place.

use std::collections::BTreeMap;

/// A place in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// Characters that the thing has on this line; at least 1.
    pub width: usize,
}

/// The place of a value, of its key, and of what is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spot {
    /// Where the key stands, for a member of a mapping.
    pub key: Option<Mark>,
    /// Where the value stands.
    pub value: Mark,
    /// What it is made of.
    pub inner: Inner,
}

/// What a value is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Inner {
    /// Nothing with a place of its own.
    #[default]
    Scalar,
    /// The items, in order.
    List(Vec<Spot>),
    /// The members, by key.
    Map(BTreeMap<String, Spot>),
}

/// What a path led to.
pub struct Found<'a> {
    pub spot: &'a Spot,
    /// The whole path is there, rather than an ancestor only.
    pub whole: bool,
}

impl Spot {
    /// Follows a path as Kubernetes writes it: `spec.containers[0].image`. Keys may have dots of their own.
    pub fn find(&self, path: &str) -> Found<'_> {
        let mut spot = self;
        let mut rest = path;
        while !rest.is_empty() {
            let Some((next, left)) = spot.step(rest) else {
                return Found { spot, whole: false };
            };
            spot = next;
            rest = left.strip_prefix('.').unwrap_or(left);
        }
        Found { spot, whole: true }
    }

    fn step<'a, 'p>(&'a self, path: &'p str) -> Option<(&'a Self, &'p str)> {
        match &self.inner {
            Inner::Scalar => None,
            Inner::List(items) => {
                let (index, rest) = path.strip_prefix('[')?.split_once(']')?;
                Some((items.get(index.parse::<usize>().ok()?)?, rest))
            }
            Inner::Map(members) => {
                let ends = |rest: &str| rest.is_empty() || rest.starts_with(['.', '[']);
                let fits = members
                    .iter()
                    .filter_map(|(key, spot)| Some((key, spot, path.strip_prefix(key.as_str())?)));
                let fits = fits.filter(|(_, _, rest)| ends(rest));
                let (_, spot, rest) = fits.max_by_key(|(key, _, _)| key.len())?;
                Some((spot, rest))
            }
        }
    }

    /// The place to point at for a complaint about the key itself, or about a value without a place of its own.
    pub fn key_or_value(&self) -> Mark {
        self.key.unwrap_or(self.value)
    }
}
