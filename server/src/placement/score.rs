//! Which of the nodes that can run a Pod is the best.
//!
//! Each wish gives every node 0 to 100 points, as far as the nodes differ in it, and counts as much as in Kubernetes'
//! default profile: taints that would rather not 3, affinity to nodes, to Pods and spread 2 each, free room 1.
//!
//! Always holds: integers only; the same nodes and Pods give the same answer, and of equals the first by name wins.

use super::affinity::Outlook;
use super::{Amount, Needs, Node};

/// A node that can run the Pod, and what is taken of it.
pub(super) type Candidate<'a> = (&'a Node, &'a Amount);

/// The best one.
pub(super) fn best<'a>(
    needs: &Needs,
    outlook: &Outlook<'_>,
    candidates: &[Candidate<'a>],
) -> Option<&'a Node> {
    let each = |points: &dyn Fn(&Candidate<'a>) -> i64| candidates.iter().map(points).collect::<Vec<_>>();
    let most = |raw: Vec<i64>| scaled(&raw, false);
    let least = |raw: Vec<i64>| scaled(&raw, true);
    let avoided = least(each(&|(node, _)| node.avoids(needs)));
    let nodes = most(each(&|(node, _)| needs.wants.likes(node)));
    let pods = most(each(&|(node, _)| outlook.likes(node)));
    // Where a constraint does not reach is no better than the fullest place.
    let crowds = candidates.iter().map(|(node, _)| outlook.crowd(node));
    let fullest = crowds.clone().flatten().max().unwrap_or(0);
    let spread = least(crowds.map(|it| it.unwrap_or(fullest)).collect());
    let room = each(&|(node, used)| node.room(needs, used));
    let total = |at: usize| 3 * avoided[at] + 2 * (nodes[at] + pods[at] + spread[at]) + room[at];
    // The last of equal maxima is what `max_by_key` gives, and the first by name is wanted.
    let best = (0..candidates.len()).rev().max_by_key(|at| total(*at))?;
    Some(candidates[best].0)
}

/// 0 to 100 points between the worst and the best of `raw`; all the same when they are.
fn scaled(raw: &[i64], least_is_best: bool) -> Vec<i64> {
    let (low, high) = (
        raw.iter().min().copied().unwrap_or(0),
        raw.iter().max().copied().unwrap_or(0),
    );
    let range = i128::from(high) - i128::from(low);
    let points = |value: &i64| {
        if range == 0 {
            return 0;
        }
        let above = (i128::from(*value) - i128::from(low)) * 100 / range;
        let above = i64::try_from(above).unwrap_or(100);
        if least_is_best { 100 - above } else { above }
    };
    raw.iter().map(points).collect()
}

#[cfg(test)]
mod tests {
    use super::scaled;

    #[test]
    fn points_lie_between_the_worst_and_the_best() {
        assert_eq!(scaled(&[5, 10, 15], false), [0, 50, 100]);
        assert_eq!(scaled(&[5, 10, 15], true), [100, 50, 0]);
        assert_eq!(scaled(&[-7, -7], false), [0, 0]);
        assert_eq!(scaled(&[i64::MIN, i64::MAX], false), [0, 100]);
        assert_eq!(scaled(&[], true), [0; 0]);
    }
}
