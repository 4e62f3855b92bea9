//! Who is fed: databases with more or less of ours on M1, and more or less behind the newest bar.

use std::io::Write;

use anyhow::{Result, ensure};
use pgcluster::Cluster;
use postgres::{Client, Statement};
use serde::Serialize;

use super::bars::{Bar, COLUMNS, Feed};
use crate::bench::growth::layout::MANY;
use crate::bench::market::{month, simulate_months};
use crate::bench::server::session;

/// Months after the history that can be fed.
pub const MONTHS_AHEAD: u32 = 4;

/// What happens to a bar that comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Nothing of ours: the floor.
    Plain,
    /// Its `rate_index` is set.
    RateIndex,
    /// And it is noted for `bqx.refresh`: M1 as `bqx.index_m1` leaves it.
    Noted,
    /// And the rows of both families that it affects are computed.
    Live,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Kind {
    pub mode: Mode,
    /// Of history.
    pub months: u32,
    /// Of each table.
    pub partitions: u32,
}

impl Kind {
    /// All of them: the floor first, and last what is to be as fast as what comes before it. So many months of history are
    /// the most.
    pub fn all(months: u32) -> Vec<Kind> {
        let short = |mode| Kind { mode, months: 1, partitions: 1 + MONTHS_AHEAD };
        let live = short(Mode::Live);
        let mut kinds = vec![short(Mode::Plain), short(Mode::RateIndex), short(Mode::Noted), live];
        kinds.push(Kind { partitions: MANY.2, ..live });
        kinds.extend((months > 1).then_some(Kind { months, partitions: MANY.2, ..live }));
        kinds
    }

    pub fn title(self) -> &'static str {
        match self.mode {
            Mode::Plain => "no triggers",
            Mode::RateIndex => "rate_index",
            Mode::Noted => "noted",
            Mode::Live => "live",
        }
    }

    fn database(self) -> String {
        format!("{:?}_{}_{}", self.mode, self.months, self.partitions).to_lowercase()
    }
}

pub struct Contender<'a> {
    pub kind: Kind,
    pub cluster: &'a Cluster,
    pub pairs: Vec<String>,
    /// Where each pair's feed is.
    fed: Vec<usize>,
    session: Session,
}

/// A session that feeds.
pub struct Session {
    pub client: Client,
    /// For each pair, once it was fed.
    inserts: Vec<Option<Statement>>,
}

impl Session {
    pub fn open(cluster: &Cluster, kind: Kind, pairs: usize) -> Result<Session> {
        Ok(Session { client: session(cluster, &kind.database())?, inserts: vec![None; pairs] })
    }

    /// Sends one bar, as its own transaction unless there is one.
    pub fn insert(&mut self, pairs: &[String], pair: usize, bar: &Bar) -> Result<()> {
        let statement = match &self.inserts[pair] {
            Some(statement) => statement,
            None => {
                let insert =
                    format!("INSERT INTO bqx.m1_{} ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6)", pairs[pair]);
                self.inserts[pair].insert(self.client.prepare(&insert)?)
            }
        };
        let [open, high, low, close, volume] = &bar.values;
        self.client.execute(statement, &[&bar.time, open, high, low, close, volume])?;
        Ok(())
    }
}

impl<'a> Contender<'a> {
    /// Makes and fills the database: history up to the month before `first_fed`, and partitions for what will be fed.
    pub fn fill(cluster: &'a Cluster, kind: Kind, pairs: &[String], first_fed: u32) -> Result<Self> {
        cluster.create_database(&kind.database())?;
        let mut session = Session::open(cluster, kind, pairs.len())?;
        fill(&mut session.client, kind, pairs, first_fed)?;
        Ok(Contender { kind, cluster, pairs: pairs.to_vec(), fed: vec![0; pairs.len()], session })
    }

    /// Closes the session, and opens another one.
    pub fn session_anew(&mut self) -> Result<()> {
        self.session = Session::open(self.cluster, self.kind, self.pairs.len())?;
        Ok(())
    }

    /// Runs SQL in the session that feeds.
    pub fn execute(&mut self, sql: &str) -> Result<()> {
        Ok(self.session.client.batch_execute(sql)?)
    }

    pub fn client(&mut self) -> &mut Client {
        &mut self.session.client
    }

    /// The coming bars of a pair, which must then be inserted.
    pub fn next_bars(&mut self, feed: &mut Feed, pair: usize, count: usize) -> Result<Vec<Bar>> {
        let bars = feed.bars(pair, self.fed[pair], count)?;
        self.fed[pair] += count;
        Ok(bars)
    }

    /// The same as COPY has them.
    pub fn next_lines(&mut self, feed: &mut Feed, pair: usize, count: usize) -> Result<Vec<u8>> {
        let lines = feed.lines(pair, self.fed[pair], count)?;
        self.fed[pair] += count;
        Ok(lines)
    }

    pub fn insert(&mut self, pair: usize, bar: &Bar) -> Result<()> {
        self.session.insert(&self.pairs, pair, bar)
    }

    pub fn copy(&mut self, pair: usize, lines: &[u8]) -> Result<()> {
        let copy = format!("COPY bqx.m1_{} ({COLUMNS}) FROM STDIN", self.pairs[pair]);
        let mut writer = self.session.client.copy_in(&copy)?;
        writer.write_all(lines)?;
        writer.finish()?;
        Ok(())
    }

    /// Makes sure that derived tables are what they would be after a backfill: nothing is known to be stale, and a pair's
    /// fed months are right.
    pub fn check(&mut self, first_fed: u32) -> Result<()> {
        if self.kind.mode != Mode::Live {
            return Ok(());
        }
        let database = self.kind.database();
        let stale: i64 = self.client().query_one("SELECT count(*) FROM bqx.stale()", &[])?.get(0);
        ensure!(stale == 0, "{stale} stretches of {database} are stale");
        let verify = format!(
            "SELECT ok, concat_ws(' ', check_name, family, pair, month, detail) \
               FROM bqx.verify(pairs => $1, from_month => {})",
            month(first_fed)
        );
        let findings = self.session.client.query(&verify, &[&&self.pairs[..1]])?;
        let bad: Vec<String> =
            findings.iter().filter(|row| !row.get::<_, bool>(0)).map(|row| row.get(1)).collect();
        ensure!(!findings.is_empty() && bad.is_empty(), "{database}: {}", bad.join("\n"));
        Ok(())
    }
}

fn fill(client: &mut Client, kind: Kind, pairs: &[String], first_fed: u32) -> Result<()> {
    let first = first_fed - kind.months;
    let (from, to) = if kind.partitions == MANY.2 {
        (format!("'{}'", MANY.0), format!("'{}'", MANY.1))
    } else {
        (month(first), month(first_fed + MONTHS_AHEAD - 1))
    };
    let of_pairs = format!("pairs => '{{{}}}'", pairs.join(","));
    let span = format!("{of_pairs}, from_month => {from}, to_month => {to}");
    client.batch_execute("CREATE EXTENSION bqx")?;
    client.batch_execute(&format!("CALL bqx.create_m1({span})"))?;
    simulate_months(client, pairs, first..first_fed)?;
    if kind.mode != Mode::Plain {
        client.batch_execute(&format!("CALL bqx.set_baselines({}, {of_pairs})", month(first)))?;
        client.batch_execute(&format!("CALL bqx.index_m1({of_pairs})"))?;
    }
    if kind.mode == Mode::RateIndex {
        for pair in pairs {
            client.batch_execute(&format!("DROP TRIGGER bqx_note_change ON bqx.m1_{pair}"))?;
        }
    }
    if kind.mode == Mode::Live {
        client.batch_execute(&format!("CALL bqx.create_tables({span})"))?;
    }
    client.batch_execute("VACUUM ANALYZE")?;
    if kind.mode == Mode::Live {
        client.batch_execute(&format!("CALL bqx.backfill({of_pairs}, workers => 2)"))?;
        client.batch_execute(&format!("CALL bqx.enable_live({of_pairs})"))?;
    }
    let triggers: i64 = client
        .query_one(
            "SELECT count(DISTINCT tgname) FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid \
              WHERE c.relname ~ '^m1_' AND NOT t.tgisinternal",
            &[],
        )?
        .get(0);
    ensure!(triggers == kind.mode.triggers(), "M1 of {} has {triggers} triggers", kind.database());
    client.batch_execute("CHECKPOINT")?;
    Ok(())
}

impl Mode {
    /// Of M1.
    fn triggers(self) -> i64 {
        match self {
            Mode::Plain => 0,
            Mode::RateIndex => 1,
            Mode::Noted => 2,
            Mode::Live => 4,
        }
    }
}
