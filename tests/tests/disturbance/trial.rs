//! The trial: rounds of change, call, disturbance and check.

use std::fmt::Write as _;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postgres::Client;
use rand::prelude::{RngExt, SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::allow_more;
use super::calls::{Call, Caller, Report};
use super::changes::{Change, Subject};
use super::invariants::{self, violations};
use super::kinds::Kind;
use super::months::{Contents, Month, PAIRS};
use super::reader::{History, reader};
use super::scene::Scene;
use super::tally::Tally;
use crate::common::{checksums, try_rows};
use crate::soak::bystanders::{Curfew, caretaker};
use crate::soak::site::workers;
use crate::soak::soundness::{corruption, faults};
use crate::soak::{BETWEEN_LOOKS, Limits};

/// So often, a backfill is left in peace and has to complete everything.
const ROUNDS_BETWEEN_COMPLETIONS: usize = 10;

/// Streams of random numbers under one seed, beside those of the rounds, which have their own numbers.
const KINDS: u64 = u64::MAX;
const READER: u64 = u64::MAX - 1;
const CARETAKER: u64 = u64::MAX - 2;

/// Disturbs backfills up to the limits; an error says what did not hold.
pub fn run(scene: &Scene, limits: &Limits) -> Result<Tally> {
    let (history, curfew) = (History::default(), Curfew::default());
    let mut trial = Trial::new(scene, &history, limits)?;
    let tables: Vec<String> = Month::all().map(Month::table).collect();
    thread::scope(|scope| {
        let end = curfew.at_the_end_of();
        let reader = scope.spawn(|| reader(scene, &history, &curfew, limits.random(READER)));
        let caretaker = scope.spawn(|| caretaker(&scene.site, &tables, &curfew, limits.random(CARETAKER)));
        let rounds = trial.rounds(|| !reader.is_finished() && !caretaker.is_finished());
        drop(end);
        trial.tally.rows_read_meanwhile = reader.join().expect("the reader does not panic")?;
        trial.tally.vacuums = caretaker.join().expect("the caretaker does not panic")?;
        rounds
    })
    .and_then(|()| trial.compare_with_twin())
    .with_context(|| format!("BQX_SEED={} repeats this", limits.seed))?;
    Ok(trial.tally)
}

/// What is to happen in a round.
struct Plan {
    changes: Vec<Change>,
    /// The first one's is disturbed.
    calls: Vec<Call>,
    kind: Kind,
    /// When, as a part of the time that a backfill takes.
    instant: f64,
    lot: usize,
}

impl Plan {
    fn draw(rng: &mut ChaCha8Rng, kind: Kind) -> Self {
        let changes = (0..rng.random_range(1..=5)).map(|_| Change::random(rng)).collect();
        let count = if rng.random_ratio(1, 4) { 2 } else { 1 };
        let mut calls: Vec<Call> = (0..count).map(|_| Call::random(rng)).collect();
        if kind.needs_worker() {
            calls[0].workers = rng.random_range(1..=3);
        }
        if kind.needs_caller() {
            calls[0].wait = true;
        }
        Self { changes, calls, kind, instant: rng.random(), lot: rng.random_range(0..12) }
    }
}

/// What was done and said in a round, for whoever has to find out why it went wrong.
fn story(plan: &Plan, struck: bool, reports: &[Report]) -> String {
    let mut story = format!("{}{}\n", plan.kind, if struck { "" } else { " (came too late)" });
    for change in &plan.changes {
        let _ = writeln!(story, "before: {change}");
    }
    for report in reports {
        let ended = if report.succeeded { "succeeded" } else { "failed" };
        let _ = writeln!(story, "{}: {ended}\n{}", report.call, report.said.trim_end());
    }
    story
}

struct Trial<'a> {
    scene: &'a Scene<'a>,
    history: &'a History,
    limits: &'a Limits,
    /// What the derived tables would hold if all was complete.
    computed: Contents,
    kinds: Vec<Kind>,
    /// How long a backfill takes, about: it follows from which disturbances came too late.
    duration: Duration,
    crashes: usize,
    began: Instant,
    tally: Tally,
}

impl<'a> Trial<'a> {
    fn new(scene: &'a Scene<'a>, history: &'a History, limits: &'a Limits) -> Result<Self> {
        let mut control = scene.site.connect()?;
        let mut computed = Contents::default();
        for pair in PAIRS {
            computed.replace_pair(pair, scene.checksums.computed(&mut control, pair)?);
        }
        ensure!(Month::all().all(|month| computed.of(month) != Contents::default().of(month)));
        history.add_round(Contents::default(), computed.clone());
        let mut kinds = Kind::ALL.to_vec();
        kinds.shuffle(&mut limits.random(KINDS));
        Ok(Self {
            scene,
            history,
            limits,
            computed,
            kinds,
            duration: Duration::from_secs(1),
            crashes: 0,
            began: Instant::now(),
            tally: Tally::default(),
        })
    }

    /// All rounds, as long as the bystanders are well.
    fn rounds(&mut self, bystanders_are_well: impl Fn() -> bool) -> Result<()> {
        while bystanders_are_well() && allow_more(self.limits, &self.tally, self.began.elapsed()) {
            let number = self.tally.rounds + 1;
            // The next kind has its turn when the last one has struck: so all kinds come equally often.
            let kind = self.kinds[self.tally.struck() % self.kinds.len()];
            let plan = Plan::draw(&mut self.limits.random(number as u64), kind);
            self.round(&plan).with_context(|| format!("round {number}"))?;
            if number.is_multiple_of(ROUNDS_BETWEEN_COMPLETIONS) {
                self.complete().with_context(|| format!("completion after round {number}"))?;
            }
        }
        self.complete().context("completion in the end")
    }

    fn round(&mut self, plan: &Plan) -> Result<()> {
        let began = Instant::now();
        let mut control = self.scene.site.connect()?;
        let last_run =
            try_rows(&mut control, "SELECT coalesce(max(run_id), 0) FROM bqx.run_ledger")?[0].parse()?;
        let before = self.make_changes(&mut control, &plan.changes).context("changes before the round")?;
        let (struck, reports) = self.disturbed_calls(&mut control, plan)?;
        let mut control = self.scene.site.connect()?;
        self.scene.settle(&mut control).with_context(|| story(plan, struck, &reports))?;
        let after = self.scene.checksums.all_stored(&mut control)?;
        let round = invariants::Round { before: &before, after: &after, computed: &self.computed, last_run };
        let innocent = if plan.kind.spares_other_runs() { &reports[1..] } else { &[] };
        let found = violations(&mut control, &round, &reports, innocent)?;
        ensure!(
            found.is_empty(),
            "{}what does not hold:\n{}",
            story(plan, struck, &reports),
            found.join("\n")
        );
        self.tally.rows_compared += after.rows();
        self.count(plan, struck);
        println!(
            "round {}: {}{}; {} rows then; {:.1} s",
            self.tally.rounds,
            plan.kind,
            if struck { "" } else { " (came too late)" },
            after.rows(),
            began.elapsed().as_secs_f64()
        );
        Ok(())
    }

    /// Changes bars, in both databases, and derived rows. Returns what the derived tables then hold.
    fn make_changes(&mut self, control: &mut Client, changes: &[Change]) -> Result<Contents> {
        let mut twin = self.scene.twin.connect();
        control.batch_execute("BEGIN")?;
        for change in changes {
            if let Subject::Derived { family, pair } = change.of {
                // All of its locks at once: readers, who hold one table's, then can't be in a deadlock with us.
                control.batch_execute(&format!("LOCK TABLE bqx.{family}_{pair} IN ACCESS EXCLUSIVE MODE"))?;
            } else {
                twin.batch_execute(&change.sql)?;
            }
            control.batch_execute(&change.sql).with_context(|| change.to_string())?;
        }
        for pair in PAIRS {
            if changes.iter().any(|change| change.of == Subject::Bars { pair }) {
                let computed = self.scene.checksums.computed(control, pair)?;
                self.computed.replace_pair(pair, computed);
            }
        }
        let before = self.scene.checksums.all_stored(control)?;
        self.history.add_round(before.clone(), self.computed.clone());
        control.batch_execute("COMMIT")?;
        Ok(before)
    }

    /// Calls, and disturbs the first call. Returns whether the disturbance found something to disturb, and how the
    /// calls ended.
    fn disturbed_calls(&self, control: &mut Client, plan: &Plan) -> Result<(bool, Vec<Report>)> {
        let numbered = plan.calls.iter().enumerate();
        let mut callers = numbered
            .map(|(number, call)| Caller::start(&self.scene.site.db, number, call.clone()))
            .collect::<Result<Vec<_>>>()?;
        let victim = &mut callers[0];
        while victim.backend(control)?.is_none() && workers(control)?.is_empty() && !victim.has_ended()? {
            sleep(BETWEEN_LOOKS);
        }
        sleep(self.duration.mul_f64(plan.instant));
        let struck = plan
            .kind
            .strike(&self.scene.site, control, victim, plan.lot)
            .with_context(|| format!("{} of {}", plan.kind, plan.calls[0]))?;
        let reports = callers.into_iter().map(Caller::finish).collect::<Result<_>>();
        Ok((struck, reports.with_context(|| format!("{} of {}", plan.kind, plan.calls[0]))?))
    }

    fn count(&mut self, plan: &Plan, struck: bool) {
        self.tally.rounds += 1;
        if struck {
            *self.tally.strikes.entry(plan.kind).or_default() += 1;
            self.crashes += usize::from(plan.kind.crashes_the_server());
        }
        let factor = if struck { 1.1 } else { 0.7 };
        let bounds = (Duration::from_millis(10), Duration::from_secs(5));
        self.duration = self.duration.mul_f64(factor).clamp(bounds.0, bounds.1);
    }

    /// An undisturbed call completes everything, whatever happened before.
    fn complete(&mut self) -> Result<()> {
        let mut control = self.scene.site.connect()?;
        control.batch_execute("CALL bqx.backfill()")?;
        let stored = self.scene.checksums.all_stored(&mut control)?;
        for month in Month::all() {
            let (stored, computed) = (stored.of(month), self.computed.of(month));
            ensure!(stored == computed, "{month}: {stored}; complete: {computed}");
        }
        self.tally.rows_compared += stored.rows();
        let faults = faults(&mut control)?;
        ensure!(faults.is_empty(), "verify() finds:\n{}", faults.join("\n"));
        Ok(())
    }

    /// In the end: bars and derived rows are those of a database that nobody disturbed, and PostgreSQL has no complaint.
    fn compare_with_twin(&mut self) -> Result<()> {
        let Scene { site, twin, .. } = self.scene;
        twin.connect().batch_execute("CALL bqx.backfill(workers => 0)")?;
        let (found, expected) = (checksums(&site.db), checksums(twin));
        ensure!(found.len() == 3 * PAIRS.len(), "{found:?}");
        ensure!(found == expected, "{found:#?}\nand undisturbed:\n{expected:#?}");
        let mut control = self.scene.site.connect()?;
        let corrupt = corruption(&mut control)?;
        self.tally.amcheck = corrupt.is_some();
        ensure!(corrupt.iter().flatten().next().is_none(), "amcheck finds: {corrupt:#?}");
        let errors = site.unexplained_errors(&[])?;
        ensure!(errors.is_empty(), "the server's log has:\n{}", errors.join("\n"));
        self.tally.recoveries = site.recoveries()?;
        let (recoveries, crashes) = (self.tally.recoveries, self.crashes);
        ensure!(recoveries == crashes, "{recoveries} recoveries of the server, but {crashes} crashes");
        let written = "SELECT count(*) FROM bqx.job_ledger WHERE rows_written > 0";
        self.tally.months_written = try_rows(&mut control, written)?[0].parse()?;
        self.tally.took = self.began.elapsed();
        ensure!(self.tally.months_written > 0, "nothing was written");
        Ok(())
    }
}
