//! Runs programs as a person at a terminal would see them.

use std::io::{Read, Result, Write, pipe};
use std::process::{Command, Stdio};
use std::thread;

/// What a program printed, results and messages in the order in which they came.
#[derive(Debug)]
pub struct Transcript {
    pub success: bool,
    pub output: String,
}

/// Runs a command with this input.
pub fn transcript(mut command: Command, input: &[u8]) -> Result<Transcript> {
    let (mut screen, output) = pipe()?;
    command.stdin(Stdio::piped()).stderr(output.try_clone()?).stdout(output);
    let mut process = command.spawn()?;
    drop(command); // with our ends of the pipe, else it would never be at its end
    let mut keyboard = process.stdin.take().expect("it is piped");
    let mut printed = Vec::new();
    thread::scope(|scope| {
        scope.spawn(move || keyboard.write_all(input)); // fails when the program stops early, and may
        screen.read_to_end(&mut printed)
    })?;
    let success = process.wait()?.success();
    Ok(Transcript { success, output: String::from_utf8_lossy(&printed).into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_results_keep_their_order() {
        let mut sh = Command::new("sh");
        sh.args(["-c", "cat; echo oops >&2; echo end; exit 3"]);
        let ran = transcript(sh, b"start\n").unwrap();
        assert_eq!((ran.success, ran.output.as_str()), (false, "start\noops\nend\n"));
    }
}
