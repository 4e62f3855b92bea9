//! Runs the SQL of README.md and docs/*.md, each document's blocks in order in one psql session in a database
//! of its own: what a reader would do. The database has the extension unless the document itself creates it.
//! Where a document shows the output of its SQL (`bqx_tests::document` says how), it is what psql shows;
//! `BLESS=1` accepts what was seen.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bqx_tests::document::Document;
use bqx_tests::{Db, histdata, transcript};
use libtest_mimic::{Arguments, Failed, Trial};
use similar::TextDiff;

fn main() -> ExitCode {
    let trials = documents().into_iter().map(|(name, path)| {
        let markdown = fs::read_to_string(&path).expect("a readable document");
        let document = Document::parse(&markdown);
        for block in &document.not_run {
            println!("{name}, line {}, is not run: {}", block.line, block.reason);
        }
        Trial::test(name.clone(), move || {
            let seen = document.seen(&screen_of(&name, &document)?);
            if std::env::var_os("BLESS").is_some() {
                return Ok(fs::write(&path, document.with_outputs(&markdown, &seen))?);
            }
            compare(&name, &document, &seen)
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

/// README.md and docs/*.md with SQL in them, by name.
fn documents() -> Vec<(String, PathBuf)> {
    let root = pgcluster::workspace_root();
    let docs = fs::read_dir(root.join("docs")).into_iter().flatten();
    let mut files: Vec<PathBuf> = docs.map(|entry| entry.expect("a readable folder").path()).collect();
    files.push(root.join("README.md"));
    files.retain(|file| {
        file.extension().is_some_and(|extension| extension == "md")
            && fs::read_to_string(file).is_ok_and(|text| Document::parse(&text).blocks > 0)
    });
    files.sort();
    let name_of = |file: &Path| file.strip_prefix(root).expect("all lie there").display().to_string();
    files.into_iter().map(|file| (name_of(&file), file)).collect()
}

/// What psql shows when it is fed the document's SQL.
fn screen_of(name: &str, document: &Document) -> Result<String, Failed> {
    if let Some(line) = document.unfinished.first() {
        return Err(format!("{name}:{line}: the block ends amid a statement (no semicolon?)").into());
    }
    let db = if document.script.contains("CREATE EXTENSION") {
        Db::without_extension(name)
    } else {
        Db::new(name)
    };
    let folder = tempfile::tempdir()?;
    for file in histdata::file_names(&document.script) {
        fs::write(folder.path().join(file), histdata::file(file).expect("names of this kind have contents"))?;
    }
    let script = folder.path().join("script.sql");
    fs::write(&script, &document.script)?;
    let mut psql = db.psql_command();
    psql.args(["-v", "ON_ERROR_STOP=1", "--file", "script.sql"]).current_dir(&folder);
    psql.envs([("PGTZ", "UTC"), ("PGDATESTYLE", "ISO"), ("LC_ALL", "C"), ("PAGER", "")]);
    let ran = transcript(psql, b"")?;
    if ran.success {
        Ok(ran.output)
    } else {
        Err(ran.output.replace("psql:script.sql:", &format!("{name}:")).into())
    }
}

/// Fails with the difference of each output that is not what psql showed.
fn compare(name: &str, document: &Document, seen: &[String]) -> Result<(), Failed> {
    let mut differences = String::new();
    for (output, seen) in document.outputs.iter().zip(seen).filter(|(output, seen)| output.text != **seen) {
        let diff = TextDiff::from_lines(&output.text, seen);
        let mut unified = diff.unified_diff();
        let shown = unified.context_radius(5).header(&format!("{name}:{}", output.line), "seen").to_string();
        differences.push_str(&shown);
    }
    if differences.is_empty() {
        return Ok(());
    }
    Err(format!("{differences}\n(BLESS=1 cargo test -p bqx-tests --test docs {name} accepts what was seen)")
        .into())
}
