//! The emulated board's power, disk and console.
//!
//! Always holds: one command at a time is on the console; a machine does not outlive its value, and only its own process
//! is signalled.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::disk::{Account, Cut, Disk};
use crate::harness::process::{Process, Said, tail};

/// How long a boot may take: emulated, on a machine with other work.
const BOOT: Duration = Duration::from_secs(180);

/// How long one command may take.
const COMMAND: Duration = Duration::from_secs(120);

/// What a boot is asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Boot {
    /// More words for the kernel and for the board's process 1.
    pub(crate) words: String,
    /// More words for QEMU.
    pub(crate) qemu: Vec<String>,
}

impl Boot {
    /// One with more words for the kernel.
    pub(crate) fn with(words: &str) -> Self {
        Self {
            words: words.to_owned(),
            ..Self::default()
        }
    }
}

/// A board that is on.
pub(crate) struct Machine {
    process: Process,
    console: UnixStream,
    /// What came over the console and was not looked at yet.
    said: String,
    /// All that came over it, for a failure.
    log: PathBuf,
    commands: u64,
    disk: Disk,
}

impl Machine {
    /// Switches it on with `image` as its disk, and waits for its console. `dir` is for sockets and logs.
    #[track_caller]
    pub(crate) fn boot(dir: &Path, image: &Path, boot: &Boot) -> Self {
        let disk = Disk::plug(image, &dir.join("disk.sock"));
        let (socket, log) = (dir.join("console.sock"), dir.join("console.log"));
        std::fs::remove_file(&socket).ok();
        let mut command = Command::new(crate::node::file("start"));
        command
            .args(["-no-reboot", "-chardev"])
            .arg(format!(
                "socket,id=s0,path={},server=on,wait=off,logfile={},logappend=on",
                socket.display(),
                log.display()
            ))
            .args(["-serial", "chardev:s0", "-append"])
            .arg(format!(
                "console=ttyAMA0,115200 panic=5 quiet loglevel=4 {}",
                boot.words
            ))
            .arg("-blockdev")
            .arg(format!(
                "node-name=d0,driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={}",
                disk.socket().display()
            ))
            .args(["-device", "virtio-blk-pci,drive=d0"])
            .args(&boot.qemu);
        let mut process = Process::start(command, &dir.join("qemu.log"));
        let console = connect(&socket, &mut process);
        let mut machine = Self {
            process,
            console,
            said: String::new(),
            log,
            commands: 0,
            disk,
        };
        machine.read_until(|said| said.contains("board: up "), BOOT, "the board to boot");
        machine.read_until(|said| said.contains("board# "), BOOT, "the board's shell");
        // The shell's line editor asks the terminal questions and repeats what it is sent: neither is wanted here.
        machine.send("exec sh -c 'stty -echo; echo plain; while read -r line; do eval \"$line\"; done'\n");
        machine.read_until(|said| said.contains("\nplain\r\n"), BOOT, "a plain shell");
        machine.said.clear();
        machine
    }

    /// Runs a command of the board's shell, and gives back its exit status and output.
    #[track_caller]
    pub(crate) fn run(&mut self, command: &str) -> Said {
        self.run_within(command, COMMAND)
    }

    /// The same with a time of its own.
    #[track_caller]
    pub(crate) fn run_within(&mut self, command: &str, within: Duration) -> Said {
        self.commands += 1;
        let end = format!("@@{} ", self.commands);
        assert!(
            command.len() < 4000 && !command.contains('\n'),
            "the console takes one line of less than 4096 bytes"
        );
        self.send(&format!("{{ {command}; }} 2>&1; echo \"{end}$?\"\n"));
        let whole = |said: &str| said.find(&end).is_some_and(|at| said[at..].contains('\n'));
        self.read_until(whole, within, command);
        let at = self.said.find(&end).unwrap();
        let rest = self.said.split_off(at);
        let out = std::mem::take(&mut self.said).replace('\r', "");
        let code = rest[end.len()..].trim().parse().unwrap_or(-1);
        Said {
            line: command.to_owned(),
            code,
            out,
            err: String::new(),
        }
    }

    /// Runs a command that succeeds, and gives back its output without the last line's end.
    #[track_caller]
    pub(crate) fn ok(&mut self, command: &str) -> String {
        self.run(command).ok().trim_end().to_owned()
    }

    /// The disk.
    pub(crate) fn disk(&self) -> &Disk {
        &self.disk
    }

    /// The power goes: the disk takes nothing more, then the machine is gone.
    pub(crate) fn cut(self, how: Cut) -> Account {
        let account = self.disk.cut(how);
        self.process.kill();
        account
    }

    /// Waits until the machine is reset by itself, which is its end here.
    #[track_caller]
    pub(crate) fn resets(mut self, seconds: u64) {
        self.process.ends(seconds);
    }

    fn send(&mut self, text: &str) {
        self.console.write_all(text.as_bytes()).unwrap();
    }

    /// Reads the console until what was said is enough.
    #[track_caller]
    fn read_until(&mut self, enough: impl Fn(&str) -> bool, within: Duration, what: &str) {
        let deadline = Instant::now() + within;
        let mut bytes = [0; 16_384];
        while !enough(&self.said) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "waited {} s in vain for {what}; the console: {}",
                within.as_secs(),
                tail(&self.said, 40)
            );
            self.console.set_read_timeout(Some(left)).unwrap();
            match self.console.read(&mut bytes) {
                Ok(0) => panic!(
                    "the board went off while {what}; the console: {}",
                    tail(&crate::harness::process::read(&self.log), 40)
                ),
                Ok(count) => self.said.push_str(&String::from_utf8_lossy(&bytes[..count])),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("the console: {error}"),
            }
        }
    }
}

#[track_caller]
fn connect(socket: &Path, process: &mut Process) -> UnixStream {
    crate::harness::wait("the board's console", 30, || {
        assert!(process.runs(), "QEMU ended: {}", tail(&process.text(), 20));
        UnixStream::connect(socket).map_err(|error| error.to_string())
    })
}
