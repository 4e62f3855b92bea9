//! What people see: headlines, times, notices of the server, progress bars.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use console::style;
use indicatif::MultiProgress;

/// All progress bars, so that lines can be printed above them.
pub static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Announces what comes now.
pub fn headline(text: &str) {
    println!("\n{}", style(format!("── {text}")).bold());
}

/// Announces a piece of work, does it, and says how long it took.
pub fn timed<T>(headline_text: &str, work: impl FnOnce() -> T) -> (T, Duration) {
    headline(headline_text);
    let start = Instant::now();
    let result = work();
    let elapsed = start.elapsed();
    println!("{}", style(format!("   {headline_text}: {}", seconds(elapsed))).green());
    (result, elapsed)
}

/// A line of minor interest, such as a NOTICE.
pub fn dimmed(line: &str) {
    BARS.suspend(|| println!("{}", style(format!("   {line}")).dim()));
}

/// Reports an error with all that led to it.
pub fn error(error: &anyhow::Error) {
    eprintln!("{} {error:#}", style("error:").red().bold());
}

/// A time span as people say it.
pub fn seconds(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{} min {:02} s", elapsed.as_secs() / 60, elapsed.as_secs() % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_are_told_from_one_on() {
        assert_eq!(seconds(Duration::from_millis(1_240)), "1.2 s");
        assert_eq!(seconds(Duration::from_secs(125)), "2 min 05 s");
    }
}
