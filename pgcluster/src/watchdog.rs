//! Ends a cluster together with the process that started it.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// Reads one line from us. It gets none if we close the pipe or end without a word, be it by a panic, by Ctrl-C or
/// by a kill -9: then it runs the command that stops the server, and removes its directories. Told `keep`, it
/// leaves everything alone.
const SCRIPT: &str = r#"
directory=$1 socket_dir=$2
shift 2
read -r order
[ "$order" = keep ] && exit
"$@"
rm -rf -- "$directory" "$socket_dir"
"#;

/// A small process beside a cluster that outlives its owner by just as long as cleaning up takes.
#[derive(Debug)]
pub struct Watchdog {
    process: Child,
}

impl Watchdog {
    /// Watches over a server, given the command that stops it and the directories with all of its files.
    pub fn start(stop: &Command, directories: &[&Path; 2]) -> Result<Self> {
        let process = Command::new("sh")
            .args(["-c", SCRIPT, "watchdog"])
            .args(directories)
            .arg(stop.get_program())
            .args(stop.get_args())
            .current_dir("/")
            .process_group(0) // Ctrl-C in a terminal is not meant for it
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start the cluster's watchdog")?;
        Ok(Self { process })
    }

    /// Leaves the cluster alone from now on.
    pub fn dismiss(mut self) -> Result<()> {
        let mut pipe = self.process.stdin.take().expect("only drop takes it, too");
        writeln!(pipe, "keep").context("the cluster's watchdog is gone")
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.process.stdin.take()); // this is its sign
        let _ = self.process.wait();
    }
}
