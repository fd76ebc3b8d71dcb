//! Profiles as Docker, containerd and the OCI runtime specification write them, compiled to the filter that they mean.
//!
//! Always holds: an error names the file and the place in it; a name that no kernel knew when the table was made is passed
//! over; a call newer than the table answers ENOSYS where the profile refuses what it does not name, so that libraries use
//! what they used before; x86's x32 calls do not exist.

use std::fs;
use std::path::Path;

use serde::Deserialize;

use super::others::OTHERS;
use super::rule::{
    ALLOW, AND, JUMP_EQ, JUMP_GE, JUMP_GT, KILL, LOAD, Leaf, RETURN, errno, instruction, jump,
};
use super::table::{ARM_PRIVATE, NEWEST, NO, TABLE};
use super::{Arch, Instruction, MAX_INSTRUCTIONS, X32, assemble};

/// Bytes of a profile.
const MAX_BYTES: u64 = 1 << 20;

const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const LOG: u32 = 0x7ffc_0000;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    arch_map: Option<Vec<ArchMap>>,
    architectures: Option<Vec<String>>,
    syscalls: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    name: Option<String>,
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u32>,
    args: Option<Vec<Argument>>,
    includes: Option<Filter>,
    excludes: Option<Filter>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u32,
    value: u64,
    value_two: Option<u64>,
    op: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Filter {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// The filter of a profile for a container with these capabilities.
///
/// # Errors
/// Which file, where in it, and why.
pub(crate) fn profile(path: &Path, capabilities: &[&str]) -> Result<Vec<Instruction>, String> {
    let named = |error: String| format!("seccomp: {}: {error}", path.display());
    let length = fs::metadata(path)
        .map_err(|error| named(error.to_string()))?
        .len();
    if length > MAX_BYTES {
        return Err(named(format!("{length} bytes; at most {MAX_BYTES} are taken")));
    }
    let text = fs::read(path).map_err(|error| named(error.to_string()))?;
    let kernel = nix::sys::utsname::uname().map_err(|error| named(error.to_string()))?;
    let kernel = version(&kernel.release().to_string_lossy());
    parse(&text, Arch::native(), capabilities, kernel).map_err(named)
}

/// `major.minor` of a kernel; what is no number counts as 0.
fn version(text: &str) -> (u32, u32) {
    let mut parts = text
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

fn parse(
    text: &[u8],
    native: &[Arch],
    capabilities: &[&str],
    kernel: (u32, u32),
) -> Result<Vec<Instruction>, String> {
    let profile: Profile = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let default = action(&profile.default_action, profile.default_errno_ret)
        .map_err(|error| format!("defaultAction: {error}"))?;
    let arches = arches(&profile, native);
    let mut rules = Vec::new();
    for (i, entry) in profile.syscalls.iter().flatten().enumerate() {
        let at = |error: String| format!("syscalls[{i}].{error}");
        let verdict =
            action(&entry.action, entry.errno_ret).map_err(|error| at(format!("action: {error}")))?;
        let tests = tests(entry).map_err(at)?;
        if applies(entry, capabilities, kernel) {
            let names = entry.name.iter().chain(entry.names.iter().flatten());
            rules.push((names.collect::<Vec<_>>(), tests, verdict));
        }
    }
    let filter = assemble(&arches, |arch| {
        let calls = rules.iter().flat_map(|(names, tests, verdict)| {
            names
                .iter()
                .filter_map(move |name| Some((number(name, arch)?, tests.as_slice(), *verdict)))
        });
        ranges(arch, calls.collect(), default)
    });
    if filter.len() > MAX_INSTRUCTIONS {
        return Err(format!(
            "it comes to {} instructions; the kernel takes {MAX_INSTRUCTIONS}",
            filter.len()
        ));
    }
    Ok(filter)
}

fn action(name: &str, number: Option<u32>) -> Result<u32, String> {
    match name {
        "SCMP_ACT_ALLOW" => Ok(ALLOW),
        "SCMP_ACT_ERRNO" => Ok(errno((number.unwrap_or(libc::EPERM as u32) & 0xfff) as i32)),
        "SCMP_ACT_KILL_PROCESS" => Ok(KILL),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Ok(KILL_THREAD),
        "SCMP_ACT_TRAP" => Ok(TRAP),
        "SCMP_ACT_LOG" => Ok(LOG),
        "SCMP_ACT_TRACE" | "SCMP_ACT_NOTIFY" => Err(format!("{name}: nobody is there to be asked")),
        _ => Err(format!("{name:?} is unknown")),
    }
}

/// The architectures that the profile is for, of those that this kernel runs; the native one always.
fn arches(profile: &Profile, native: &[Arch]) -> Vec<Arch> {
    let mut listed: Vec<&str> = profile
        .architectures
        .iter()
        .flatten()
        .map(String::as_str)
        .collect();
    for map in profile.arch_map.iter().flatten() {
        if native.first().is_some_and(|arch| scmp(*arch) == map.architecture) {
            listed.push(&map.architecture);
            listed.extend(map.sub_architectures.iter().flatten().map(String::as_str));
        }
    }
    let own = |arch: Arch| Some(&arch) == native.first() && cfg!(target_pointer_width = "64");
    native
        .iter()
        .copied()
        // Without any list a 32-bit build cannot tell which of the two it is.
        .filter(|&arch| own(arch) || listed.contains(&scmp(arch)) || cfg!(target_pointer_width = "32"))
        .collect()
}

fn scmp(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "SCMP_ARCH_X86_64",
        Arch::I386 => "SCMP_ARCH_X86",
        Arch::Aarch64 => "SCMP_ARCH_AARCH64",
        Arch::Arm => "SCMP_ARCH_ARM",
    }
}

/// Whether an entry is meant for this node and container.
fn applies(entry: &Entry, capabilities: &[&str], kernel: (u32, u32)) -> bool {
    let machine = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let holds = |name: &String| capabilities.contains(&name.as_str());
    let is_here = |name: &String| name == machine;
    let included = entry.includes.as_ref().is_none_or(|filter| {
        filter.caps.iter().flatten().all(holds)
            && filter
                .arches
                .as_ref()
                .is_none_or(|list| list.is_empty() || list.iter().any(is_here))
            && filter
                .min_kernel
                .as_ref()
                .is_none_or(|least| kernel >= version(least))
    });
    let excluded = entry.excludes.as_ref().is_some_and(|filter| {
        filter.caps.iter().flatten().any(holds)
            || filter.arches.iter().flatten().any(is_here)
            || filter
                .min_kernel
                .as_ref()
                .is_some_and(|least| kernel >= version(least))
    });
    included && !excluded
}

fn number(name: &str, arch: Arch) -> Option<u32> {
    if arch == Arch::Arm
        && let Some(at) = ["breakpoint", "cacheflush", "set_tls", "get_tls"]
            .iter()
            .position(|own| *own == name)
    {
        return Some(ARM_PRIVATE[at]);
    }
    let listed = TABLE.iter().find(|row| row.name == name).map(|row| &row.numbers);
    let numbers = listed.or_else(|| {
        OTHERS
            .iter()
            .find(|(other, _)| *other == name)
            .map(|(_, numbers)| numbers)
    });
    numbers
        .map(|numbers| numbers[arch.column()])
        .filter(|&number| number != NO)
}

/// What holds for a range of numbers: conditions in their order, each with its action, then an action for the rest.
#[derive(Clone, PartialEq, Eq)]
struct Choice<'a> {
    cases: Vec<(&'a [Test], u32)>,
    otherwise: u32,
}

impl Leaf for Choice<'_> {
    fn code(&self) -> Vec<Instruction> {
        let mut code = Vec::new();
        for (tests, verdict) in &self.cases {
            let mut body: Vec<Step> = tests.iter().flat_map(Test::steps).collect();
            body.push(Step::Plain(instruction(RETURN, *verdict)));
            code.extend(link(&body));
        }
        code.push(instruction(RETURN, self.otherwise));
        code
    }
}

fn ranges<'a>(arch: Arch, calls: Vec<(u32, &'a [Test], u32)>, default: u32) -> Vec<(u32, Choice<'a>)> {
    let plain = |otherwise| Choice {
        cases: Vec::new(),
        otherwise,
    };
    let mut found: std::collections::BTreeMap<u32, Choice<'a>> = std::collections::BTreeMap::new();
    for (number, tests, verdict) in calls {
        let choice = found.entry(number).or_insert_with(|| plain(default));
        if tests.is_empty() {
            choice.otherwise = verdict;
        } else {
            choice.cases.push((tests, verdict));
        }
    }
    // Refusing what is not named is a statement about the calls that there were.
    let unknown = if default & 0xffff_0000 == errno(0) {
        errno(libc::ENOSYS)
    } else {
        default
    };
    let mut ranges = vec![(0, plain(default))];
    let mut next = 0;
    let fill = |ranges: &mut Vec<(u32, Choice<'a>)>, from: u32, to: u32| {
        let bounds = [(0, default), (NEWEST + 1, unknown), (X32, errno(libc::ENOSYS))];
        for (i, &(first, verdict)) in bounds.iter().enumerate() {
            // x32 is x86's; on ARM there are calls of its own up there.
            let verdict = if first == X32 && arch != Arch::X86_64 {
                unknown
            } else {
                verdict
            };
            let end = bounds.get(i + 1).map_or(u32::MAX, |bound| bound.0);
            if from.max(first) < to.min(end) {
                ranges.push((from.max(first), plain(verdict)));
            }
        }
    };
    for (number, choice) in found {
        fill(&mut ranges, next, number);
        ranges.push((number, choice));
        next = number + 1;
    }
    fill(&mut ranges, next, u32::MAX);
    // The first was a place holder; neighbours of one mind are one range.
    ranges.remove(0);
    ranges.dedup_by(|later, earlier| later.1 == earlier.1);
    ranges
}

/// How an argument is compared, with all its 64 bits, as libseccomp does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compare {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    MaskedEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Test {
    index: u32,
    compare: Compare,
    /// The mask of a masked comparison, else all bits.
    mask: u64,
    value: u64,
}

fn tests(entry: &Entry) -> Result<Vec<Test>, String> {
    let mut tests = Vec::new();
    for (i, argument) in entry.args.iter().flatten().enumerate() {
        let compare = match argument.op.as_str() {
            "SCMP_CMP_EQ" => Compare::Equal,
            "SCMP_CMP_NE" => Compare::NotEqual,
            "SCMP_CMP_LT" => Compare::Less,
            "SCMP_CMP_LE" => Compare::LessOrEqual,
            "SCMP_CMP_GT" => Compare::Greater,
            "SCMP_CMP_GE" => Compare::GreaterOrEqual,
            "SCMP_CMP_MASKED_EQ" => Compare::MaskedEqual,
            other => return Err(format!("args[{i}].op: {other:?} is unknown")),
        };
        if argument.index > 5 {
            return Err(format!(
                "args[{i}].index: {}; a call has arguments 0 to 5",
                argument.index
            ));
        }
        let (mask, value) = match compare {
            Compare::MaskedEqual => (argument.value, argument.value_two.unwrap_or(0)),
            _ => (u64::MAX, argument.value),
        };
        tests.push(Test {
            index: argument.index,
            compare,
            mask,
            value,
        });
    }
    Ok(tests)
}

/// Where a step goes on.
#[derive(Clone, Copy)]
enum Goal {
    Next,
    /// After this test.
    Pass,
    /// After this case: it does not hold.
    Fail,
}

enum Step {
    Plain(Instruction),
    Jump(u16, u32, Goal, Goal),
    /// A test ends here.
    End,
}

impl Test {
    fn steps(&self) -> Vec<Step> {
        let (low, high) = (self.value as u32, (self.value >> 32) as u32);
        let load = |half: u32| {
            let mask = (self.mask >> (32 * half)) as u32;
            let load = instruction(LOAD, 16 + 8 * self.index + 4 * half);
            let and = (mask != u32::MAX).then(|| Step::Plain(instruction(AND, mask)));
            [Step::Plain(load)].into_iter().chain(and)
        };
        use Goal::{Fail, Next, Pass};
        let (above, first, last) = match self.compare {
            Compare::Equal | Compare::MaskedEqual => (
                None,
                Step::Jump(JUMP_EQ, high, Next, Fail),
                Step::Jump(JUMP_EQ, low, Pass, Fail),
            ),
            Compare::NotEqual => (
                None,
                Step::Jump(JUMP_EQ, high, Next, Pass),
                Step::Jump(JUMP_EQ, low, Fail, Pass),
            ),
            Compare::Greater => (
                Some(Pass),
                Step::Jump(JUMP_EQ, high, Next, Fail),
                Step::Jump(JUMP_GT, low, Pass, Fail),
            ),
            Compare::GreaterOrEqual => (
                Some(Pass),
                Step::Jump(JUMP_EQ, high, Next, Fail),
                Step::Jump(JUMP_GE, low, Pass, Fail),
            ),
            Compare::Less => (
                Some(Fail),
                Step::Jump(JUMP_EQ, high, Next, Pass),
                Step::Jump(JUMP_GE, low, Fail, Pass),
            ),
            Compare::LessOrEqual => (
                Some(Fail),
                Step::Jump(JUMP_EQ, high, Next, Pass),
                Step::Jump(JUMP_GT, low, Fail, Pass),
            ),
        };
        let above = above.map(|goal| Step::Jump(JUMP_GT, high, goal, Next));
        load(1)
            .chain(above)
            .chain([first])
            .chain(load(0))
            .chain([last, Step::End])
            .collect()
    }
}

/// Gives the jumps of one case their distances; a case is short enough for all of them.
fn link(steps: &[Step]) -> Vec<Instruction> {
    let place = |at: usize| {
        steps[..at]
            .iter()
            .filter(|step| !matches!(step, Step::End))
            .count()
    };
    let length = place(steps.len());
    let distance = |at: usize, goal: Goal| {
        let target = match goal {
            Goal::Next => place(at) + 1,
            Goal::Pass => {
                let end = steps[at..]
                    .iter()
                    .position(|step| matches!(step, Step::End))
                    .unwrap_or(0);
                place(at + end)
            }
            Goal::Fail => length,
        };
        (target - place(at) - 1) as u8
    };
    let linked = |(at, step): (usize, &Step)| match *step {
        Step::Plain(instruction) => Some(instruction),
        Step::Jump(code, value, yes, no) => Some(jump(code, value, distance(at, yes), distance(at, no))),
        Step::End => None,
    };
    steps.iter().enumerate().filter_map(linked).collect()
}

#[cfg(test)]
#[path = "profile_tests.rs"]
mod tests;
