//! Errors as users see them: primary message, DETAIL, HINT and SQLSTATE.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

/// An error of ours, raised with [`Failure::raise`].
pub struct Failure {
    code: PgSqlErrorCode,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
}

impl Failure {
    pub fn new(code: PgSqlErrorCode, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into(), detail: None, hint: None }
    }

    /// 53200, for memory that is not PostgreSQL's: running out of it must not end the process.
    pub fn out_of_memory(detail: impl Into<String>) -> Failure {
        Failure::new(PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY, "out of memory").detail(detail)
    }

    pub fn detail(mut self, detail: impl Into<String>) -> Failure {
        self.detail = Some(detail.into());
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    /// Ends the current statement with this error.
    pub fn raise(self) -> ! {
        let mut report = ErrorReport::new(self.code, self.message, "bqx");
        if let Some(detail) = self.detail {
            report = report.set_detail(detail);
        }
        if let Some(hint) = self.hint {
            report = report.set_hint(hint);
        }
        report.report(PgLogLevel::ERROR);
        unreachable!("an ERROR does not return")
    }
}
