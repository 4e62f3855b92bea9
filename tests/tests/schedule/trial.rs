//! Runs a schedule, and says what does not hold.

use std::io::{Read, Write};

use anyhow::{Context, Result, bail, ensure};
use bqx_tests::{Db, Notices};
use postgres::Client;
use rand::RngExt;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::model::{Pair, Part, instant, start_of};
use super::steps::{Act, Effect, Step};
use super::tally::Tally;
use crate::common::followed::{Followed, PAIRS, differences, row_versions};
use crate::common::{checksums, row, rows, run, run_each};

/// What the server may answer a change with: the bar is there, there is no partition for it.
const REFUSALS: [&str; 2] = ["23505", "23514"];

/// Sessions with other settings, which must make no difference; the last as logical replication has it.
const SETTINGS: [&str; 3] = [
    "SET TimeZone = 'UTC'",
    "SET TimeZone = 'America/New_York'; SET DateStyle = 'German, DMY'; SET search_path = public; SET extra_float_digits = 0",
    "SET session_replication_role = replica; SET TimeZone = 'Australia/Lord_Howe'; SET default_transaction_isolation = 'serializable'",
];

/// Steps after which a session is replaced by a new one.
const SESSION_LIFE: usize = 60;

pub struct Trial<'a> {
    db: Db<'a>,
    twin: Db<'a>,
    rng: ChaCha8Rng,
    pairs: Vec<Pair>,
    sessions: Vec<(Client, Notices)>,
    tally: Tally,
    seed: u64,
    /// What each pair has been through since its rows were last found right.
    story: [String; PAIRS.len()],
}

impl<'a> Trial<'a> {
    pub fn new(server: &'a Followed, seed: u64) -> Self {
        let db = server.db("schedule");
        let mut trial = Trial {
            twin: server.db("twin"),
            rng: ChaCha8Rng::seed_from_u64(seed),
            pairs: Pair::all(),
            sessions: Vec::new(),
            tally: Tally::default(),
            seed,
            story: Default::default(),
            db,
        };
        trial.sessions = SETTINGS.iter().map(|settings| trial.connect(settings)).collect();
        trial
    }

    fn connect(&self, settings: &str) -> (Client, Notices) {
        let (mut session, notices) = self.db.connect_with_notices();
        run(&mut session, settings);
        (session, notices)
    }

    pub fn run(mut self, steps: u64) -> Result<Tally> {
        for number in 1..=steps {
            let of = self.rng.random_range(0..self.pairs.len());
            let step = Step::random(&mut self.rng, &mut self.pairs[of]);
            let by = self.rng.random_range(0..self.sessions.len());
            self.tally.steps += 1;
            self.story[of] += &format!("-- step {number}, session {by}\n{step}");
            self.take(of, by, &step).with_context(|| {
                format!("BQX_SEED={}, {}\n{}", self.seed, self.pairs[of].name, self.story[of])
            })?;
            if self.tally.steps.is_multiple_of(SESSION_LIFE) {
                self.sessions[by] = self.connect(SETTINGS[by]);
            }
        }
        self.end().with_context(|| format!("BQX_SEED={}, in the end", self.seed))?;
        Ok(self.tally)
    }

    /// Takes a step, and looks at what must hold after it.
    fn take(&mut self, of: usize, by: usize, step: &Step) -> Result<()> {
        self.sessions[by].1.take();
        if let Err(error) = perform(&mut self.sessions[by].0, step) {
            let code = error.code().map(|code| code.code().to_owned()).unwrap_or_default();
            let changes_bars = matches!(
                step.effect,
                Effect::Bars | Effect::BarsUnfollowed | Effect::Truncate(_) | Effect::Nothing
            );
            ensure!(changes_bars && REFUSALS.contains(&code.as_str()), "{error}: {:?}", error.as_db_error());
            run(&mut self.sessions[by].0, "ROLLBACK");
            self.tally.refused += 1;
        } else {
            self.learn(of, step);
            self.find_new_parts()?;
        }
        self.check(of, by, step)
    }

    /// What a successful step means.
    fn learn(&mut self, of: usize, step: &Step) {
        let pair = &mut self.pairs[of];
        match &step.effect {
            Effect::Bars => pair.is_current &= pair.live,
            Effect::BarsUnfollowed => pair.is_current = false,
            Effect::Truncate(i) => {
                pair.is_current &=
                    pair.live && follows_truncate(&mut self.db.connect(), &pair.parts[*i].name);
            }
            Effect::Nothing => (),
            Effect::Detach(i) | Effect::Attach(i) => {
                pair.parts[*i].attached = matches!(step.effect, Effect::Attach(_));
                pair.is_current = false;
            }
            Effect::NewPart => (),
            Effect::NewBaseline(minute) => {
                pair.baseline = *minute;
                pair.is_current = false;
            }
            Effect::EnableLive => (pair.live, pair.is_current) = (true, true),
            Effect::DisableLive => pair.live = false,
            Effect::Backfill => pair.is_current = true,
            Effect::Refresh => {
                let everybody = step.acts.iter().any(|act| act.to_string() == "CALL bqx.refresh()");
                pair.is_current = true;
                if everybody {
                    self.pairs.iter_mut().for_each(|pair| pair.is_current = true);
                }
            }
        }
    }

    /// Partitions may have been made by the step, or by a refresh.
    fn find_new_parts(&mut self) -> Result<()> {
        let mut control = self.db.connect();
        for pair in self.pairs.iter_mut().filter(|pair| pair.is_partitioned()) {
            let Some(month) = pair.coming_month() else { continue };
            let found = rows(
                &mut control,
                &format!(
                    "SELECT p.partition FROM bqx._partitions('{}') AS p WHERE p.from_ts = {}",
                    pair.m1(),
                    instant(start_of(month))
                ),
            );
            pair.parts.extend(found.iter().map(|name| Part::month(name, month)));
        }
        Ok(())
    }

    fn check(&mut self, of: usize, by: usize, step: &Step) -> Result<()> {
        let Pair { name, live, is_current, .. } = self.pairs[of].clone();
        if !is_current {
            return Ok(());
        }
        let mut control = self.db.connect();
        let found = differences(&mut control, name);
        ensure!(found.is_empty(), "(live: {live}) {}", found.join("\n"));
        match step.effect {
            Effect::Bars if live => self.tally.live += 1,
            Effect::Backfill => self.tally.backfills += 1,
            Effect::Refresh | Effect::EnableLive => {
                self.tally.refreshes += 1;
                let stale = rows(&mut control, &format!("SELECT * FROM bqx.stale('{{{name}}}')"));
                ensure!(stale.is_empty(), "stale after a refresh: {stale:#?}");
                self.check_second_refresh(name, by)?;
            }
            _ => (),
        }
        self.story[of].clear();
        Ok(())
    }

    /// Once more, there is nothing to do, and nothing is done.
    fn check_second_refresh(&mut self, pair: &str, by: usize) -> Result<()> {
        let (session, notices) = &mut self.sessions[by];
        let before = row_versions(session, pair);
        notices.take();
        run(session, &format!("CALL bqx.refresh('{{{pair}}}')"));
        let mut said = notices.take();
        // a partition that was detached keeps its name
        said.retain(|notice| !notice.contains(" is in the way: it is no partition of bqx.m1_"));
        ensure!(said == [format!("NOTICE: {pair}: up to date")], "a second refresh said: {said:?}");
        ensure!(row_versions(session, pair) == before, "a second refresh wrote rows");
        self.tally.refreshes_of_nothing += 1;
        Ok(())
    }

    /// In the end: bars and derived rows are those of a database that got the bars at once, and one backfill.
    fn end(&mut self) -> Result<()> {
        let mut control = self.db.connect();
        let mut twin = self.twin.connect();
        run(&mut control, "CALL bqx.refresh()");
        for pair in &self.pairs {
            let (name, m1) = (pair.name, pair.m1());
            if pair.is_partitioned() {
                run(&mut twin, &format!("CALL bqx.create_m1('{{{name}}}', '2024-07-01', '2025-03-01')"));
            }
            run(&mut twin, &format!("TRUNCATE {m1}, bqx.bqx_{name}, bqx.reg_{name}"));
            self.tally.bars += copy_bars(&mut control, &mut twin, &m1)?;
            run_each(
                &mut twin,
                &[
                    format!("CALL bqx.set_baselines({}, '{{{name}}}')", instant(pair.baseline)),
                    format!("CALL bqx.index_m1('{{{name}}}')"),
                ],
            );
        }
        run(&mut twin, "CALL bqx.backfill(workers => 0)");
        let (found, expected) = (checksums(&self.db), checksums(&self.twin));
        ensure!(expected.len() == 3 * PAIRS.len(), "{expected:?}");
        ensure!(found == expected, "{found:#?}\nand after one backfill:\n{expected:#?}");
        let faults = rows(&mut control, "SELECT * FROM bqx.verify() WHERE ok IS NOT TRUE");
        ensure!(faults.is_empty(), "verify() finds: {faults:#?}");
        ensure!(row(&mut control, "SELECT count(*) FROM bqx.stale()") == "0");
        Ok(())
    }
}

fn perform(session: &mut Client, step: &Step) -> Result<(), postgres::Error> {
    for act in &step.acts {
        match act {
            Act::Sql(sql) => session.batch_execute(sql)?,
            Act::Copy { table, lines } => {
                let mut writer = session.copy_in(&format!("COPY {table} (time, close) FROM stdin"))?;
                writer.write_all(lines.as_bytes()).expect("a connection");
                writer.finish()?;
            }
        }
    }
    Ok(())
}

fn copy_bars(from: &mut Client, to: &mut Client, m1: &str) -> Result<u64> {
    let mut lines = Vec::new();
    from.copy_out(&format!("COPY (SELECT time, close, volume FROM {m1} ORDER BY time) TO stdout"))?
        .read_to_end(&mut lines)?;
    let mut writer = to.copy_in(&format!("COPY {m1} (time, close, volume) FROM stdin"))?;
    writer.write_all(&lines)?;
    let bars = writer.finish()?;
    if bars == 0 {
        bail!("{m1} is empty");
    }
    Ok(bars)
}

/// Whether a partition has the trigger for it: one made by hand gets it with the next refresh, enable_live or load.
fn follows_truncate(session: &mut Client, partition: &str) -> bool {
    let trigger = format!(
        "SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = '{partition}'::regclass AND tgname = 'bqx_live')"
    );
    rows(session, &trigger) == ["t"]
}
