//! What a test wants to know of a session beside results: notices and errors, in all their fields.

use std::sync::{Arc, Mutex, PoisonError};

use postgres::{Client, Config, NoTls};

/// The notices and warnings that a session got so far.
#[derive(Clone, Debug, Default)]
pub struct Notices(Arc<Mutex<Vec<String>>>);

impl Notices {
    /// Takes them out, each as `NOTICE: message`.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, notice: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(notice);
    }
}

pub(crate) fn connect_with_notices(mut config: Config) -> (Client, Notices) {
    let notices = Notices::default();
    let inbox = notices.clone();
    config.notice_callback(move |notice| inbox.add(format!("{}: {}", notice.severity(), notice.message())));
    (config.connect(NoTls).expect("a connection"), notices)
}

/// An error as the server reported it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlError {
    /// SQLSTATE, e.g. `22023`.
    pub code: String,
    pub message: String,
    /// Empty where the server sent none; so is `hint`.
    pub detail: String,
    pub hint: String,
}

impl From<&postgres::error::DbError> for SqlError {
    fn from(error: &postgres::error::DbError) -> Self {
        SqlError {
            code: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().unwrap_or_default().to_owned(),
            hint: error.hint().unwrap_or_default().to_owned(),
        }
    }
}

/// Runs one statement that must fail in the server; returns how it did.
pub fn error_of(client: &mut Client, sql: &str) -> SqlError {
    let Err(error) = client.batch_execute(sql) else { panic!("this was to fail: {sql}") };
    let Some(error) = error.as_db_error() else { panic!("not an error of the server: {error}") };
    SqlError::from(error)
}

/// An error in one line: the driver's own text only says "db error".
pub(crate) fn describe(error: &postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string)
}
