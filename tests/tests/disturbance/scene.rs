//! Where the trial takes place: the server and database that suffer, and the twin that does not.

use std::thread;

use anyhow::Result;
use bqx_tests::Db;
use pgcluster::Cluster;
use postgres::Client;

use super::calls::CALLER;
use super::changes::PREPARED;
use super::months::Checksums;
use crate::common::run_each;
use crate::soak::site::Site;

pub struct Scene<'a> {
    pub site: Site<'a>,
    /// Another database, on another server, with the same bars. Nobody disturbs it.
    pub twin: Db<'static>,
    pub checksums: Checksums,
}

impl<'a> Scene<'a> {
    pub fn new(server: &'a Cluster, name: &str) -> Self {
        let site = Site::new(server, name);
        let twin = Db::new(&format!("{name}_twin"));
        thread::scope(|scope| {
            scope.spawn(|| run_each(&mut twin.connect(), PREPARED));
            run_each(&mut site.db.connect(), PREPARED);
        });
        let checksums = Checksums::new(&site.db);
        Self { site, twin, checksums }
    }

    /// Waits until no worker and no caller is left.
    pub fn settle(&self, control: &mut Client) -> Result<()> {
        self.site.settle(control, &[CALLER])
    }
}
