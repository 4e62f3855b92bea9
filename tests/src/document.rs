//! The SQL in Markdown documents, made ready for psql.

/// A Markdown document's SQL.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// What to run: the lines of all SQL blocks at the places they have in the document, so that psql's line numbers
    /// are the document's.
    pub script: String,
    /// How many blocks that is.
    pub blocks: usize,
    /// Line and reason of each block that is not to be run.
    pub not_run: Vec<(usize, String)>,
    /// Lines at which a block ends amid a statement, which psql would not notice.
    pub unfinished: Vec<usize>,
}

impl Document {
    /// Reads a document. Its SQL stands in blocks fenced by "```sql"; a comment `<!-- not run: reason -->` before one
    /// excludes it.
    pub fn parse(markdown: &str) -> Self {
        let mut document = Self::default();
        let mut block = Block::None;
        let mut reason = None;
        let mut last_line = "";
        for (index, line) in markdown.lines().enumerate() {
            let text = line.trim();
            let mut sql = "";
            match block {
                Block::None if text.starts_with("```") => {
                    block = document.open(text, index + 1, reason.take());
                    last_line = "";
                }
                Block::None if !text.is_empty() => reason = reason_not_to_run(text),
                Block::None => {}
                _ if text == "```" => {
                    if block == Block::Sql && !ends_a_statement(last_line) {
                        document.unfinished.push(index);
                    }
                    block = Block::None;
                }
                Block::Sql => {
                    sql = line;
                    if !text.is_empty() && !text.starts_with("--") {
                        last_line = text;
                    }
                }
                Block::Other => {}
            }
            document.script.push_str(sql);
            document.script.push('\n');
        }
        document
    }

    fn open(&mut self, fence: &str, line: usize, reason: Option<String>) -> Block {
        if fence != "```sql" {
            return Block::Other;
        }
        if let Some(reason) = reason {
            self.not_run.push((line, reason));
            return Block::Other;
        }
        self.blocks += 1;
        Block::Sql
    }
}

/// What the lines of a document are in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    None,
    Sql,
    Other,
}

fn reason_not_to_run(text: &str) -> Option<String> {
    let reason = text.strip_prefix("<!-- not run:")?.strip_suffix("-->")?;
    Some(reason.trim().to_owned())
}

/// Whether psql has run everything after this line: an SQL statement, or one of its own commands (`\copy`, or `\gx`
/// and the like after a statement).
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
        assert_eq!(document.not_run, [(10, "takes hours".to_owned())]);
        assert_eq!(document.unfinished, [14]);
    }
}
