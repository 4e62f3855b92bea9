//! `cargo xtask demo`: the whole pipeline in a private cluster, from bars to verified tables.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use indicatif::{HumanCount, ProgressBar};
use pgcluster::{Cluster, cluster_dir};
use postgres::{Client, NoTls};
use xshell::Shell;

use crate::build::{self, Profile};
use crate::setup::{self, Purpose};
use crate::{console, data, watch};

const DATABASE: &str = "bqx";

/// The month that simulated markets begin with, and the usual baseline date.
const USUAL_START: &str = "2024-07-01";

/// What a small server that does nothing else is given; everything else, durability too, is as PostgreSQL has it.
const SERVER_OPTIONS: [(&str, &str); 3] =
    [("shared_buffers", "512MB"), ("max_wal_size", "8GB"), ("timezone", "UTC")];

#[derive(clap::Args)]
pub struct DemoArgs {
    /// Load the files of bars in this folder: *.csv or *.txt, also .gz or .xz, with the pair in their names. Without
    /// it, a market is simulated
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Only these pairs
    #[arg(long, value_delimiter = ',', value_name = "PAIR,PAIR")]
    pairs: Vec<String>,
    /// Months to simulate [default: 3], or the first months of the data to work on [default: all]
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..=1200))]
    months: Option<i32>,
    /// Background workers of the backfill; 0 works in the calling session [default: one for each processor]
    #[arg(long)]
    workers: Option<i32>,
    /// Leave the server running at the end
    #[arg(long)]
    keep: bool,
    /// The clock of the files, where their format does not tell it
    #[arg(long, value_name = "TZ")]
    time_zone: Option<String>,
}

pub fn command(shell: &Shell, pg_config: Option<&Path>, args: &DemoArgs) -> Result<ExitCode> {
    let pg_config = setup::prepare(shell, pg_config, Purpose::Build)?;
    console::timed("build and install", || build::install(shell, &pg_config, Profile::Release)).0?;
    let directory = cluster_dir("demo")?;
    Cluster::remove_kept(&pg_config, &directory)?;
    let (cluster, _) = console::timed("private cluster", || {
        let cluster = Cluster::start(&pg_config, &directory, &SERVER_OPTIONS)?;
        cluster.create_database(DATABASE)?;
        anyhow::Ok(cluster)
    });
    let cluster = cluster?;
    let mut demo = Demo::new(&cluster, args)?;
    let all_is_well = demo.run()?;
    drop(demo);
    if args.keep {
        explain_kept(&cluster);
        cluster.keep()?;
    } else {
        println!(
            "\nThe server goes now, with its data; --keep leaves it running, to be looked at with psql."
        );
    }
    Ok(if all_is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Demo<'a> {
    cluster: &'a Cluster,
    args: &'a DemoArgs,
    client: Client,
    /// The pairs that have bars.
    pairs: Vec<String>,
    /// First and last month to work on; None: what the data have.
    months: Option<(String, String)>,
    /// What was done, for how long, and how many rows that made.
    stages: Vec<(&'static str, Duration, Option<u64>)>,
}

/// When a pair's bars begin and end, as text that sorts like the times.
struct Span {
    pair: String,
    bars: u64,
    first: String,
    last: String,
}

impl<'a> Demo<'a> {
    fn new(cluster: &'a Cluster, args: &'a DemoArgs) -> Result<Self> {
        let mut config = cluster.connection_config(DATABASE);
        config.application_name("demo").notice_callback(|notice| {
            console::dimmed(&format!("{}: {}", notice.severity(), notice.message()));
        });
        let client = config.connect(NoTls)?;
        Ok(Self { cluster, args, client, pairs: Vec::new(), months: None, stages: Vec::new() })
    }

    /// Runs everything; returns whether all checks found the tables right.
    fn run(&mut self) -> Result<bool> {
        self.client.batch_execute("CREATE EXTENSION bqx")?;
        self.stage("load", Self::load)?;
        self.stage("set_baselines", Self::set_baselines)?;
        self.stage("index_m1", Self::index_m1)?;
        self.stage("create_tables", Self::create_tables)?;
        self.stage("backfill", Self::backfill)?;
        let mut all_is_well = false;
        self.stage("verify", |demo| {
            all_is_well = demo.verify()?;
            Ok(None)
        })?;
        self.report()?;
        Ok(all_is_well)
    }

    /// Does a piece of work that returns how many rows it made, under its headline.
    fn stage(
        &mut self,
        name: &'static str,
        work: impl FnOnce(&mut Self) -> Result<Option<u64>>,
    ) -> Result<()> {
        let (rows, elapsed) = console::timed(name, || work(self));
        let rows = rows.with_context(|| format!("{name} failed"))?;
        self.stages.push((name, elapsed, rows));
        Ok(())
    }

    fn load(&mut self) -> Result<Option<u64>> {
        match &self.args.data {
            Some(folder) => self.load_files(folder)?,
            None => self.simulate()?,
        }
        let spans = self.spans()?;
        Ok(Some(spans.iter().map(|span| span.bars).sum()))
    }

    fn load_files(&mut self, folder: &Path) -> Result<()> {
        let registered = self.client.query("SELECT pair FROM bqx.pairs", &[])?;
        let registered: Vec<String> = registered.iter().map(|row| row.get(0)).collect();
        let mut found = data::find(folder, &registered)?;
        for path in &found.without_pair {
            println!("   skipped, no known pair in its name: {}", path.display());
        }
        if !self.args.pairs.is_empty() {
            let wanted = self.wanted_pairs();
            found.bars.retain(|file| wanted.contains(&file.pair));
        }
        ensure!(!found.bars.is_empty(), "{} holds no files of bars to load", folder.display());
        for file in &found.bars {
            self.load_file(file).with_context(|| format!("cannot load {}", file.path.display()))?;
        }
        self.pairs = found.bars.into_iter().map(|file| file.pair).collect();
        self.pairs.dedup(); // they are sorted
        if let Some(months) = self.args.months {
            let first_month = self.spans()?.iter().map(|span| format!("{}-01", &span.first[..7])).min();
            let first_month = first_month.context("the files hold no bars")?;
            let last_month = self.months_later(&first_month, months - 1)?;
            self.months = Some((first_month, last_month));
        }
        Ok(())
    }

    fn load_file(&mut self, file: &data::BarFile) -> Result<()> {
        let start = Instant::now();
        let spinner = console::BARS.add(ProgressBar::new_spinner());
        spinner.set_message(file.path.display().to_string());
        spinner.enable_steady_tick(Duration::from_millis(100));
        // Each line as it stands: neither of these two characters occurs in a text file.
        let copy =
            r"COPY bqx.m1_staging(line) FROM STDIN WITH (format csv, delimiter E'\x01', quote E'\x02')";
        let mut staging = self.client.copy_in(copy)?;
        std::io::copy(&mut data::open(&file.path)?, &mut staging)?;
        staging.flush()?;
        let lines = staging.finish()?;
        let call = "CALL bqx.ingest_m1($1, time_zone => $2)";
        self.client.execute(call, &[&file.pair, &self.args.time_zone])?;
        spinner.finish_and_clear();
        let name = file.path.file_name().unwrap_or_default().to_string_lossy();
        println!(
            "   {name} → {}: {} lines, {}",
            file.pair,
            HumanCount(lines),
            console::seconds(start.elapsed())
        );
        Ok(())
    }

    fn simulate(&mut self) -> Result<()> {
        let pairs = (!self.args.pairs.is_empty()).then(|| self.wanted_pairs());
        let last_month = self.months_later(USUAL_START, self.args.months.unwrap_or(3) - 1)?;
        let call = format!("CALL bqx.simulate_m1($1, '{USUAL_START}', $2::text::date)");
        self.client.execute(&call, &[&pairs, &last_month])?;
        self.pairs = match pairs {
            Some(pairs) => pairs,
            None => {
                let builtin =
                    self.client.query("SELECT pair FROM bqx.pairs WHERE builtin ORDER BY pair", &[])?;
                builtin.iter().map(|row| row.get(0)).collect()
            }
        };
        Ok(())
    }

    fn wanted_pairs(&self) -> Vec<String> {
        self.args.pairs.iter().map(|pair| pair.trim().to_lowercase()).collect()
    }

    fn months_later(&mut self, month: &str, count: i32) -> Result<String> {
        let row = self.client.query_one(
            "SELECT ($1::text::date + make_interval(months => $2))::date::text",
            &[&month, &count],
        )?;
        Ok(row.get(0))
    }

    fn spans(&mut self) -> Result<Vec<Span>> {
        let mut spans = Vec::new();
        for pair in self.pairs.clone() {
            let row = self.client.query_one(
                &format!("SELECT count(*), min(time AT TIME ZONE 'UTC')::text || '+00', max(time AT TIME ZONE 'UTC')::text || '+00' FROM bqx.m1_{pair}"),
                &[],
            )?;
            let (Some(first), Some(last)) = (row.get(1), row.get(2)) else { bail!("{pair} has no bars") };
            spans.push(Span { pair, bars: row.get::<_, i64>(0) as u64, first, last });
        }
        Ok(spans)
    }

    /// The usual baseline where a pair's bars reach over it, else the pair's first bar.
    fn set_baselines(&mut self) -> Result<Option<u64>> {
        let spans = self.spans()?;
        let has_usual = |span: &Span| &span.first[..10] <= USUAL_START && span.last.as_str() >= USUAL_START;
        let (usual, own): (Vec<Span>, Vec<Span>) = spans.into_iter().partition(has_usual);
        let usual: Vec<String> = usual.into_iter().map(|span| span.pair).collect();
        if !usual.is_empty() {
            let call = format!("CALL bqx.set_baselines('{USUAL_START} 00:00+00', $1)");
            self.client.execute(&call, &[&usual])?;
        }
        for span in own {
            self.client.execute(
                "CALL bqx.set_baselines($1::text::timestamptz, ARRAY[$2])",
                &[&span.first, &span.pair],
            )?;
        }
        Ok(None)
    }

    fn index_m1(&mut self) -> Result<Option<u64>> {
        self.client.execute("CALL bqx.index_m1($1)", &[&self.pairs])?;
        Ok(Some(self.spans()?.iter().map(|span| span.bars).sum()))
    }

    fn create_tables(&mut self) -> Result<Option<u64>> {
        let (from, to) = self.months.clone().unzip();
        let call =
            "CALL bqx.create_tables(pairs => $1, from_month => $2::text::date, to_month => $3::text::date)";
        self.client.execute(call, &[&self.pairs, &from, &to])?;
        Ok(None)
    }

    fn backfill(&mut self) -> Result<Option<u64>> {
        let (from, to) = self.months.clone().unzip();
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as i32);
        let workers = self.args.workers.unwrap_or(processors);
        let mut watcher = self.cluster.connect(DATABASE)?;
        let last_run: i64 = watcher.query_one("SELECT coalesce(max(run_id), 0) FROM bqx.runs", &[])?.get(0);
        let (client, pairs) = (&mut self.client, &self.pairs);
        let progress = std::thread::scope(|scope| {
            let call = scope.spawn(move || {
                let call = "CALL bqx.backfill(pairs => $1, from_month => $2::text::date, \
                            to_month => $3::text::date, workers => $4)";
                client.execute(call, &[pairs, &from, &to, &workers])
            });
            let progress = watch::watch(&mut watcher, last_run, || call.is_finished());
            call.join().expect("the call does not panic")?;
            progress
        })?;
        Ok(Some(progress.rows_written))
    }

    /// Prints how many checks of each kind found the tables right, and every one that did not.
    fn verify(&mut self) -> Result<bool> {
        let (from, to) = self.months.clone().unzip();
        let rows = self.client.query(
            "SELECT check_name, coalesce(family, ''), coalesce(pair, ''), coalesce(to_char(month, 'YYYY-MM'), ''), \
                    coalesce(ok, false), coalesce(detail, '') \
               FROM bqx.verify(pairs => $1, from_month => $2::text::date, to_month => $3::text::date)",
            &[&self.pairs, &from, &to],
        )?;
        let mut counts: BTreeMap<String, [usize; 2]> = BTreeMap::new();
        for row in &rows {
            let ok: bool = row.get(4);
            counts.entry(row.get(0)).or_default()[usize::from(!ok)] += 1;
            if !ok {
                let words: Vec<&str> = [0, 1, 2, 3, 5].map(|column| row.get(column)).to_vec();
                println!("   FAILED  {}", words.join("  "));
            }
        }
        for (check, [ok, failed]) in &counts {
            println!("   {check:<20} {ok:>6} ok {failed:>6} failed");
        }
        ensure!(!rows.is_empty(), "verify checked nothing");
        Ok(counts.values().all(|[_, failed]| *failed == 0))
    }

    /// Prints the completion report, and what each stage took.
    fn report(&self) -> Result<()> {
        console::headline("completion report");
        let mut psql = self.cluster.psql(DATABASE);
        psql.args(["--pset", "pager=off", "--command", "SELECT * FROM bqx.completion_report()"]);
        ensure!(psql.status()?.success(), "the completion report failed");
        println!("   {:<14} {:>12} {:>14} {:>12}", "stage", "time", "rows", "rows/s");
        for (name, elapsed, rows) in &self.stages {
            let (rows, rate) = match rows {
                Some(rows) => {
                    let rate = *rows as f64 / elapsed.as_secs_f64();
                    (HumanCount(*rows).to_string(), HumanCount(rate as u64).to_string())
                }
                None => Default::default(),
            };
            println!("   {name:<14} {:>12} {rows:>14} {rate:>12}", console::seconds(*elapsed));
        }
        Ok(())
    }
}

/// How to use the server that is left, and how to be rid of it.
fn explain_kept(cluster: &Cluster) {
    let bindir = cluster.pg_config().bindir.display().to_string();
    let (data, log) = (cluster.data_dir(), cluster.log_file());
    let (data, log) = (data.display(), log.display());
    let pg_ctl = format!("{}{bindir}/pg_ctl -D {data}", cluster.account().shell_prefix());
    println!("\nThe server runs on.");
    println!(
        "   look at it:      {bindir}/psql -h {} -U postgres {DATABASE}",
        cluster.socket_dir().display()
    );
    println!("   stop it:         {pg_ctl} stop");
    println!("   start it again:  {pg_ctl} -l {log} start");
    println!(
        "   remove it:       stop it and remove {}; the next demo replaces it, too",
        cluster.directory().display()
    );
}
