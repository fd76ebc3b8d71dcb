//! The signal that asks a container to end, as images write it.

/// What a container is asked to end with unless it or its image says otherwise.
pub(super) const SIGTERM: i32 = 15;

/// `STOPSIGNAL` of an image: a number, or a name with or without `SIG`.
pub(super) fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let names = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let text = text.strip_prefix("SIG").unwrap_or(text);
    names
        .iter()
        .position(|name| *name == text)
        .map(|at| at as i32 + 1)
}
