//! docs/machine-learning.md as a reader would follow it: its SQL in psql, then its Python. The model scores what the page
//! says, and every file that the page takes training data out with has the database's values, to the bit.
//!
//! `BQX_ROUNDS=9 cargo test -p bqx-tests --test machine_learning ways_out -- --nocapture` measures the ways out, each so many
//! times, and prints the page's table: the median of what each takes in terms of a plain COPY right before it.

use std::fs::{self, File};
use std::io::{Write, copy};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use bqx_tests::document::Document;
use bqx_tests::python::{environment, no_python};
use bqx_tests::{Db, server, transcript};
use pgcluster::workspace_root;

const PACKAGES: [&str; 7] = [
    "adbc-driver-postgresql==1.*",
    "duckdb==2.*",
    "numpy==2.*",
    "polars==2.*",
    "psycopg[binary]==3.*",
    "pyarrow==26.*",
    "scikit-learn==1.*",
];

/// The section whose snippets are ways out; the first is what the others need.
const WAYS_OUT: &str = "Ways out";

/// What they write.
const FILES: [&str; 7] = [
    "psql.csv",
    "bars.csv",
    "table.parquet",
    "streamed.parquet",
    "polars.parquet",
    "pyarrow.parquet",
    "duckdb.parquet",
];

/// And this, which has the doubles only.
const NUMPY_FILE: &str = "metrics.npy";

/// A Python snippet of the page.
#[derive(Debug, Default, PartialEq, Eq)]
struct Snippet {
    /// The heading that it is under.
    title: String,
    code: String,
    /// The text block right after it: what it prints.
    output: String,
}

/// The Python snippets of a document, in order.
fn snippets(markdown: &str) -> Vec<Snippet> {
    let mut snippets: Vec<Snippet> = Vec::new();
    let mut title = "";
    let mut fence = None;
    let mut is_right_after = false;
    for line in markdown.lines() {
        match fence {
            None if line.starts_with("```") => {
                fence = Some(line);
                if line == "```python" {
                    snippets.push(Snippet { title: title.to_owned(), ..Snippet::default() });
                }
            }
            None if line.is_empty() => {}
            None => {
                is_right_after = false;
                if line.starts_with('#') {
                    title = line.trim_start_matches('#').trim();
                }
            }
            Some(opened) if line == "```" => {
                fence = None;
                is_right_after = opened == "```python";
            }
            Some("```python") => add_line(&mut snippets, line, |snippet| &mut snippet.code),
            Some("```text") if is_right_after => add_line(&mut snippets, line, |snippet| &mut snippet.output),
            Some(_) => {}
        }
    }
    snippets
}

fn add_line(snippets: &mut [Snippet], line: &str, part: fn(&mut Snippet) -> &mut String) {
    let snippet = snippets.last_mut().expect("its fence has been opened");
    part(snippet).extend([line, "\n"]);
}

fn page_path() -> PathBuf {
    workspace_root().join("docs/machine-learning.md")
}

fn page() -> &'static str {
    static PAGE: OnceLock<String> = OnceLock::new();
    PAGE.get_or_init(|| fs::read_to_string(page_path()).expect("a readable page"))
}

/// The page's snippets: the model's, and the ways out.
fn model_and_ways_out() -> (Snippet, Vec<Snippet>) {
    let mut snippets = snippets(page());
    let ways_out = snippets.iter().position(|snippet| snippet.title == WAYS_OUT).expect("ways out");
    assert_eq!(ways_out, 1, "before the ways out, one model");
    let ways_out = snippets.split_off(ways_out);
    (snippets.remove(0), ways_out)
}

/// A Python with all that the page uses.
fn python() -> Option<&'static Path> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    PYTHON.get_or_init(|| environment("machine-learning", &PACKAGES).ok()).as_deref()
}

/// Where a reader of the page works: a database, and a folder.
struct Desk {
    db: Db<'static>,
    folder: PathBuf,
}

impl Desk {
    /// The desk of a reader who has run the page's SQL.
    fn shared() -> &'static Self {
        static DESK: OnceLock<Desk> = OnceLock::new();
        DESK.get_or_init(|| {
            let folder = server().directory().join("desk");
            fs::create_dir(&folder).unwrap();
            let desk = Self { db: Db::without_extension("desk"), folder };
            let mut psql = desk.db.psql_command();
            psql.args(["-v", "ON_ERROR_STOP=1"]).env("PGTZ", "UTC").current_dir(&desk.folder);
            let ran = transcript(psql, Document::parse(page()).script.as_bytes()).unwrap();
            assert!(ran.success, "{}", ran.output);
            desk
        })
    }

    /// Runs Python in the folder, where it connects to the database by itself, in a session far from UTC; whether it
    /// succeeded, and what it printed.
    fn run(&self, python: &Path, arguments: &[&str]) -> (bool, String) {
        let mut command = Command::new(python);
        server().lead_to(self.db.name(), &mut command);
        command.env("PGTZ", "America/New_York").env("PYTHONDONTWRITEBYTECODE", "1");
        command.args(arguments).current_dir(&self.folder);
        let ran = transcript(command, b"").unwrap();
        (ran.success, ran.output)
    }

    /// Runs one of the scripts beside this test.
    fn run_script(&self, python: &Path, script: &str, arguments: &[&str]) -> (bool, String) {
        let script = workspace_root().join("tests/tests/machine_learning").join(script);
        self.run(python, &[&[script.to_str().unwrap()], arguments].concat())
    }

    /// Writes a query's rows in PostgreSQL's binary COPY format, after a line of the columns' names and types.
    fn write_rows(&self, query: &str, name: &str) {
        let mut session = self.db.connect();
        let statement = session.prepare(query).unwrap();
        let columns = statement.columns().iter();
        let columns = columns.map(|column| format!("{}:{}", column.name(), column.type_().name()));
        let mut file = File::create(self.folder.join(name)).unwrap();
        writeln!(file, "{}", columns.collect::<Vec<_>>().join(",")).unwrap();
        let mut rows = session.copy_out(&format!("COPY ({query}) TO STDOUT WITH (FORMAT binary)")).unwrap();
        copy(&mut rows, &mut file).unwrap();
    }

    /// Compares files with such rows: whether they have the same values, and what was found.
    fn compare(&self, python: &Path, rows: &str, files: &[&str]) -> (bool, String) {
        self.run_script(python, "files_compared.py", &[&[rows], files].concat())
    }

    /// Turns one bit of a file: the last of the last field, behind which comes the end of COPY.
    fn turn_last_bit(&self, name: &str) {
        let path = self.folder.join(name);
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 3;
        bytes[last] ^= 1;
        fs::write(path, bytes).unwrap();
    }
}

/// How often the ways out are measured.
fn rounds() -> String {
    std::env::var("BQX_ROUNDS").unwrap_or_else(|_| "0".to_owned())
}

#[test]
fn snippets_have_their_titles_and_outputs() {
    let markdown = "# A\n```python\nx = 1\n\nprint(x)\n```\n\n```text\n1\n```\n## B\n```sql\nSELECT 1;\n```\n\n\
                    ```text\n1\n```\n```python\ny\n```\nSo:\n```text\nno\n```\n";
    let snippet = |title: &str, code: &str, output: &str| Snippet {
        title: title.into(),
        code: code.into(),
        output: output.into(),
    };
    assert_eq!(snippets(markdown), [snippet("A", "x = 1\n\nprint(x)\n", "1\n"), snippet("B", "y\n", "")]);
}

#[test]
fn the_model_scores_what_the_page_says() {
    let Some(python) = python() else { return no_python("ADBC and scikit-learn") };
    let (model, _) = model_and_ways_out();
    let (succeeded, printed) = Desk::shared().run(python, &["-c", &model.code]);
    assert!(succeeded, "{printed}");
    assert_eq!(printed, model.output, "what the page's model prints");
}

#[test]
fn ways_out_keep_every_bit() {
    let Some(python) = python() else { return no_python("ADBC, polars and DuckDB") };
    let desk = Desk::shared();
    let (_, ways_out) = model_and_ways_out();
    for (number, way) in ways_out.iter().enumerate() {
        fs::write(desk.folder.join(format!("{number:02} {}.py", way.title)), &way.code).unwrap();
    }
    let (succeeded, measured) = desk.run_script(python, "ways_out.py", &[&rounds()]);
    assert!(succeeded, "{measured}");
    println!("{measured}");

    let (_, query) = ways_out[0].code.split_once("QUERY = \"").expect("the query of the ways out");
    let query = query.split('"').next().unwrap();
    desk.write_rows(query, "rows");
    let files = [&FILES[..], &[NUMPY_FILE]].concat();
    let (same, found) = desk.compare(python, "rows", &files);
    assert!(same, "{found}");

    // A single bit would have been seen, in each kind of file.
    desk.turn_last_bit("rows");
    let files = ["psql.csv", "table.parquet", NUMPY_FILE];
    let differing: String = files.iter().map(|file| format!("{file}: w630_reg_endpoint differs\n")).collect();
    assert_eq!(desk.compare(python, "rows", &files), (false, differing));
}
