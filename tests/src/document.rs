//! The SQL in Markdown documents, made ready for psql, and the output that the documents show.
//!
//! A block fenced by "```sql" is run. A block fenced by "```text" that follows it, with nothing but blank
//! lines between, is what psql shows for it and is compared line by line; trailing blanks and blank lines at
//! both ends don't count:
//!
//! ````text
//! ```sql
//! SELECT pair FROM bqx.pairs WHERE quote = 'JPY' ORDER BY pair LIMIT 1;
//! ```
//!
//! ```text
//!   pair
//! --------
//!  audjpy
//! (1 row)
//! ```
//! ````
//!
//! `BLESS=1 cargo test -p bqx-tests --test docs` writes what psql shows into these blocks, so a new one may
//! start empty. Any other text between two blocks makes the second a block of its own: output that varies is
//! shown that way. Comments before an SQL block:
//!
//! * `<!-- not run: reason -->`: it is not run, and why;
//! * `<!-- shows errors -->`: psql goes on after an error in it and leaves out CONTEXT lines; its output must follow.

use std::ops::Range;

/// What psql prints where a block ends whose output a document shows. Where it begins has the line of the
/// output.
const END: &str = "@@ end";

/// What makes psql go on after errors, and stop at them again.
const GO_ON_AFTER_ERRORS: (&str, &str) = (
    "\\set ON_ERROR_STOP off \\set SHOW_CONTEXT never ",
    " \\set ON_ERROR_STOP on \\set SHOW_CONTEXT errors",
);

/// A Markdown document's SQL.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// What to run: the lines of all SQL blocks at the places they have in the document, so that psql's line
    /// numbers are the document's. On the fences of blocks with output psql prints marks, for
    /// [`Document::seen`].
    pub script: String,
    /// How many blocks that is.
    pub blocks: usize,
    /// Blocks that are not to be run.
    pub not_run: Vec<NotRun>,
    /// Lines at which a block ends amid a statement, which psql would not notice.
    pub unfinished: Vec<usize>,
    /// What the document says that psql shows.
    pub outputs: Vec<Output>,
}

/// A block of SQL that is not to be run with the others.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct NotRun {
    /// Line of its opening fence.
    pub line: usize,
    pub reason: String,
    /// Its lines, for a test that can run them.
    pub sql: String,
}

/// A block of text after an SQL block.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Line of its opening fence.
    pub line: usize,
    /// Its lines, [tidied](tidy).
    pub text: String,
    /// How many lines that is in the document.
    length: usize,
}

impl Document {
    /// Reads a document.
    pub fn parse(markdown: &str) -> Self {
        let mut reader = Reader::default();
        for line in markdown.lines() {
            reader.read(line);
        }
        reader.document()
    }

    /// The SQL of the only block that is not to be run for this reason.
    pub fn sql_not_run(&self, reason: &str) -> &str {
        let blocks: Vec<&NotRun> = self.not_run.iter().filter(|block| block.reason == reason).collect();
        let [block] = blocks[..] else { panic!("{} blocks are not run because: {reason}", blocks.len()) };
        &block.sql
    }

    /// Picks what psql showed for each of [`Document::outputs`], tidied, out of everything that it printed
    /// when it ran the script to its end.
    pub fn seen(&self, screen: &str) -> Vec<String> {
        let seen_at = |line: usize| {
            let shown = screen.lines().skip_while(move |&text| text != begin(line)).skip(1);
            tidy(shown.take_while(|&text| text != END).map(without_position))
        };
        self.outputs.iter().map(|output| seen_at(output.line)).collect()
    }

    /// The document with other outputs.
    pub fn with_outputs(&self, markdown: &str, seen: &[String]) -> String {
        let lines: Vec<&str> = markdown.lines().collect();
        let mut new = Vec::new();
        let mut rest = 0;
        for (output, seen) in self.outputs.iter().zip(seen) {
            new.extend_from_slice(&lines[rest..output.line]);
            new.extend(seen.lines());
            rest = output.line + output.length;
        }
        new.extend_from_slice(&lines[rest..]);
        new.join("\n") + "\n"
    }
}

/// A document that has been read up to some line.
#[derive(Default)]
struct Reader {
    document: Document,
    script: Vec<String>,
    block: Block,
    /// What a comment says of the next block.
    remark: Option<Remark>,
    /// Whether the SQL block shows errors.
    errors: bool,
    /// The last line of code in this SQL block.
    last_line: String,
    /// Where the last SQL block's fences are, until something else than a blank line comes.
    sql: Option<Range<usize>>,
    /// The lines of this output.
    output: Vec<String>,
}

/// What a comment says of an SQL block.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Remark {
    NotRun(String),
    ShowsErrors,
}

/// What the lines of a document are in.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Block {
    #[default]
    None,
    Sql,
    NotRun,
    Output,
    Other,
}

impl Reader {
    fn read(&mut self, line: &str) {
        let text = line.trim();
        let mut sql = "";
        match self.block {
            Block::None if text.starts_with("```") => self.open(text),
            Block::None if !text.is_empty() => {
                self.remark = remark(text);
                self.sql = None;
            }
            Block::None => {}
            _ if text == "```" => self.close(),
            Block::Sql => {
                sql = line;
                if !text.is_empty() && !text.starts_with("--") {
                    text.clone_into(&mut self.last_line);
                }
            }
            Block::NotRun => {
                let block = self.document.not_run.last_mut().expect("opening it has added it");
                block.sql.extend([line, "\n"]);
            }
            Block::Output => self.output.push(line.to_owned()),
            Block::Other => {}
        }
        self.script.push(sql.to_owned());
    }

    /// The place of the line that is being read.
    fn here(&self) -> usize {
        self.script.len()
    }

    fn open(&mut self, fence: &str) {
        let sql = self.sql.take();
        let remark = self.remark.take();
        self.block = match (fence, sql, remark) {
            ("```sql", _, Some(Remark::NotRun(reason))) => {
                self.document.not_run.push(NotRun { line: self.here() + 1, reason, sql: String::new() });
                Block::NotRun
            }
            ("```sql", _, remark) => {
                self.document.blocks += 1;
                self.last_line.clear();
                self.sql = Some(self.here()..self.here());
                self.errors = remark.is_some();
                Block::Sql
            }
            ("```text", Some(sql), _) => {
                let (before, after) = if self.errors { GO_ON_AFTER_ERRORS } else { ("", "") };
                self.script[sql.start] = format!("{before}\\echo '{}'", begin(self.here() + 1));
                self.script[sql.end] = format!("\\echo '{END}'{after}");
                self.document.outputs.push(Output { line: self.here() + 1, ..Output::default() });
                Block::Output
            }
            _ => Block::Other,
        };
    }

    fn close(&mut self) {
        let here = self.here();
        match self.block {
            Block::Sql => {
                if !ends_a_statement(&self.last_line) {
                    self.document.unfinished.push(here);
                }
                self.sql = self.sql.take().map(|sql| sql.start..here);
            }
            Block::Output => {
                let lines = std::mem::take(&mut self.output);
                let output = self.document.outputs.last_mut().expect("opening it has added it");
                output.text = tidy(lines.iter().map(String::as_str));
                output.length = lines.len();
            }
            Block::None | Block::NotRun | Block::Other => {}
        }
        self.block = Block::None;
    }

    fn document(self) -> Document {
        let script = self.script.iter().flat_map(|line| [line, "\n"]).collect();
        Document { script, ..self.document }
    }
}

/// What psql prints where a block begins whose output starts after this line of the document.
fn begin(line: usize) -> String {
    format!("@@ output of line {line}")
}

/// Lines without trailing blanks, and without blank lines at both ends.
fn tidy<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    let lines: Vec<&str> = lines.map(str::trim_end).collect();
    let text = lines.join("\n");
    let text = text.trim_matches('\n');
    if text.is_empty() { String::new() } else { format!("{text}\n") }
}

/// A line of psql's without the `psql:FILE:LINE: ` that messages have when a file is run.
fn without_position(line: &str) -> &str {
    let after_position = || {
        let (position, message) = line.strip_prefix("psql:")?.split_once(": ")?;
        let (_file, number) = position.rsplit_once(':')?;
        number.parse::<usize>().ok().map(|_| message)
    };
    after_position().unwrap_or(line)
}

fn remark(text: &str) -> Option<Remark> {
    let comment = text.strip_prefix("<!--")?.strip_suffix("-->")?.trim();
    match comment.strip_prefix("not run:") {
        Some(reason) => Some(Remark::NotRun(reason.trim().to_owned())),
        None => (comment == "shows errors").then_some(Remark::ShowsErrors),
    }
}

/// Whether psql has run everything after this line: an SQL statement, or one of its own commands (`\copy`, or
/// `\gx` and the like after a statement).
fn ends_a_statement(line: &str) -> bool {
    let code = line.split(" --").next().unwrap_or_default().trim_end();
    code.is_empty() || code.ends_with(';') || code.starts_with('\\') || code.contains(" \\g")
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "\
# Title
```sql
SELECT 1; -- one
```
```sh
ls
```
<!-- not run: takes hours -->

```sql
CALL everything();
```
```sql
SELECT 2
```
";

    #[test]
    fn sql_keeps_its_line_numbers_and_everything_else_is_blank() {
        let document = Document::parse(EXAMPLE);
        let blank_lines = "\n".repeat(10);
        assert_eq!(document.script, format!("\n\nSELECT 1; -- one\n{blank_lines}SELECT 2\n\n"));
        assert_eq!(document.blocks, 2);
    }

    #[test]
    fn exclusions_and_unfinished_statements_are_reported_with_their_lines() {
        let document = Document::parse(EXAMPLE);
        let block = NotRun { line: 10, reason: "takes hours".into(), sql: "CALL everything();\n".into() };
        assert_eq!(document.not_run, [block]);
        assert_eq!(document.sql_not_run("takes hours"), "CALL everything();\n");
        assert_eq!(document.unfinished, [14]);
    }

    const WITH_OUTPUTS: &str = "\
```sql
SELECT 1;
```

```text
 old
```
```text
no output
```
```sql
SELECT 2;
```
So:
```text
no output either
```
```sql
SELECT 3;
```
```text

 3  x

```
";

    #[test]
    fn text_right_after_sql_is_its_output() {
        let document = Document::parse(WITH_OUTPUTS);
        let outputs = document.outputs.iter().map(|output| (output.line, output.text.as_str()));
        assert_eq!(outputs.collect::<Vec<_>>(), [(5, " old\n"), (21, " 3  x\n")]);
        let script: Vec<&str> = document.script.lines().collect();
        assert_eq!(script[..4], ["\\echo '@@ output of line 5'", "SELECT 1;", "\\echo '@@ end'", ""]);
        assert_eq!(script[10..13], ["", "SELECT 2;", ""]);
        assert_eq!(script.len(), WITH_OUTPUTS.lines().count());
    }

    #[test]
    fn psql_goes_on_after_errors_just_where_the_document_shows_them() {
        let markdown = "<!-- shows errors -->\n\n```sql\nSELEC 1;\n```\n```text\nERROR\n```\n";
        let script = Document::parse(&format!("{markdown}{WITH_OUTPUTS}")).script;
        let script: Vec<&str> = script.lines().collect();
        assert_eq!(
            script[2..5],
            [
                "\\set ON_ERROR_STOP off \\set SHOW_CONTEXT never \\echo '@@ output of line 6'",
                "SELEC 1;",
                "\\echo '@@ end' \\set ON_ERROR_STOP on \\set SHOW_CONTEXT errors"
            ]
        );
        assert!(!script[5..].concat().contains("ON_ERROR_STOP"));
    }

    #[test]
    fn what_psql_shows_is_found_and_written_into_the_document() {
        let document = Document::parse(WITH_OUTPUTS);
        let screen = "SET\n@@ output of line 5\n\nnew  \n\n1\n@@ end\nno\n\
                      @@ output of line 21\npsql:a.sql:19: NOTICE:  hm: 3\n@@ end\n";
        let seen = document.seen(screen);
        assert_eq!(seen, ["new\n\n1\n", "NOTICE:  hm: 3\n"]);
        let blessed = document.with_outputs(WITH_OUTPUTS, &seen);
        let expected =
            WITH_OUTPUTS.replace(" old\n", "new\n\n1\n").replace("\n 3  x\n\n", "NOTICE:  hm: 3\n");
        assert_eq!(blessed, expected);
    }
}
