//! Sessions that fill months side by side, each with the next month that nobody has begun.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result};
use pgcluster::Cluster;
use postgres::{Client, Transaction};

use super::months::{FAMILIES, PairMonth};
use crate::bench::server::observer;

pub trait Session: Send {
    /// Makes the month's tables, fills them and commits.
    fn fill(&mut self, month: &PairMonth) -> Result<()>;

    /// The process that works outside the server, if there is one.
    fn process(&self) -> Option<i32> {
        None
    }
}

/// Has the sessions fill all months.
pub fn fill_all(sessions: &mut [Box<dyn Session>], months: &[PairMonth]) -> Result<()> {
    let begun = AtomicUsize::new(0);
    let work = |session: &mut Box<dyn Session>| -> Result<()> {
        while let Some(month) = months.get(begun.fetch_add(1, Ordering::Relaxed)) {
            session.fill(month).with_context(|| format!("{} from {}", month.pair, month.from))?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = sessions.iter_mut().map(|session| scope.spawn(move || work(session))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("sessions don't panic"))
    })
}

/// Where the server itself gets a month's rows.
#[derive(Clone)]
pub enum Source {
    /// The finished rows, from tables.
    Tables,
    /// The finished rows, from files in this folder.
    Files(PathBuf),
    /// Queries over the bars, for `bqx` and for `reg`. Variables are psql's.
    Queries([&'static str; 2]),
}

impl Source {
    fn statement(&self, month: &PairMonth, number: usize) -> String {
        let family = FAMILIES[number];
        let target = month.fresh(family);
        match self {
            Source::Tables => format!("INSERT INTO {target} SELECT * FROM {}", month.finished(family)),
            Source::Files(folder) => {
                let file = month.file(folder, family);
                format!("COPY {target} FROM '{}' (FORMAT binary, FREEZE)", file.display())
            }
            Source::Queries(queries) => queries[number]
                .replace(":bars", &month.bars())
                .replace(":target", &target)
                .replace(":'month'", &format!("'{}'", month.from))
                .replace(":'until'", &format!("'{}'", month.until)),
        }
    }
}

/// A session in which the server does everything.
pub struct SqlSession {
    client: Client,
    source: Source,
}

impl SqlSession {
    pub fn open(cluster: &Cluster, source: Source) -> Result<Self> {
        Ok(Self { client: observer(cluster)?, source })
    }
}

impl Session for SqlSession {
    fn fill(&mut self, month: &PairMonth) -> Result<()> {
        let mut transaction: Transaction<'_> = self.client.transaction()?;
        transaction.batch_execute(&month.make_tables())?;
        for number in 0..FAMILIES.len() {
            transaction.batch_execute(&self.source.statement(month, number))?;
        }
        transaction.batch_execute(&month.add_keys())?;
        transaction.commit()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use anyhow::ensure;

    use super::*;

    #[test]
    fn a_query_is_about_the_month_and_casts_stay() {
        let month = PairMonth::example_of("eurusd");
        let source =
            Source::Queries(["INSERT INTO :target SELECT p::float8 FROM :bars", "< :'until', >= :'month'"]);
        assert_eq!(
            source.statement(&month, 0),
            "INSERT INTO fresh.bqx_eurusd_2024_07 SELECT p::float8 FROM bqx.m1_eurusd"
        );
        assert_eq!(source.statement(&month, 1), "< '2024-08-01 00:00+00:00', >= '2024-07-01 00:00+00:00'");
    }

    #[test]
    fn every_month_is_filled_once_and_an_error_names_it() {
        static FILLED: Mutex<Vec<String>> = Mutex::new(Vec::new());
        struct Noting;
        impl Session for Noting {
            fn fill(&mut self, month: &PairMonth) -> Result<()> {
                ensure!(month.pair != "usdxxx", "no such pair");
                FILLED.lock().unwrap().push(month.pair.clone());
                Ok(())
            }
        }
        let months: Vec<PairMonth> =
            (0..9).map(|number| PairMonth::example_of(&format!("pair{number}"))).collect();
        let mut sessions: Vec<Box<dyn Session>> = vec![Box::new(Noting), Box::new(Noting)];
        fill_all(&mut sessions, &months).unwrap();
        let mut filled = FILLED.lock().unwrap().clone();
        filled.sort();
        assert_eq!(filled, months.iter().map(|month| month.pair.clone()).collect::<Vec<_>>());
        let bad = PairMonth::example_of("usdxxx");
        let error = fill_all(&mut sessions, &[bad]).unwrap_err();
        assert_eq!(format!("{error:#}"), "usdxxx from 2024-07-01 00:00+00:00: no such pair");
    }
}
