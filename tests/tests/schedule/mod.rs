//! Random schedules: transactions that change bars, calls and settings in between, and what must hold after each.

mod model;
mod steps;
mod tally;
mod trial;

pub use trial::Trial;
