//! Vendors' files of one-minute bars: which kind a file is, and what each of its lines says.
//!
//! The kind and everything else that holds for a whole file (the delimiter, which column is which) is settled
//! once, from the file's first lines ([`sniff`], [`layout_for`]); each line is then read by itself
//! ([`Layout::parse_line`]). Times stay as they are written: which zone's clock they show is not in most
//! files, and converting them is the business of whoever has a time-zone database.
//!
//! | format | a line |
//! |---|---|
//! | `csv` | `2024-07-01 00:00,1.1,1.2,1.0,1.15,12` with `,` or `;`, a space or `T`, with or without seconds, a fraction, an offset, a header, a volume |
//! | `histdata` | `20240701 000000;1.1;1.2;1.0;1.15;12` |
//! | `metatrader` | `2024.07.01,00:00,1.1,1.2,1.0,1.15,12`, or date and time in one field; anything with tabs |
//! | `dukascopy` | `01.07.2024 00:00:00.000,1.1,1.2,1.0,1.15,12`, also with `GMT+0100` after the time |

use std::fmt;

use crate::calendar::Month;
use chrono::{NaiveDate, NaiveDateTime, Timelike};

/// How many lines that are not blank the sniffing looks at.
const SNIFFED_LINES: usize = 200;
/// Columns beyond these are not looked at. No known file has half as many.
const MAX_FIELDS: usize = 32;
/// Longest piece of a line, in characters, that a message quotes.
const QUOTED_CHARS: usize = 60;

/// The kinds of bar files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// ISO dates, `,` or `;`.
    Csv,
    /// HistData's "Generic ASCII".
    HistData,
    /// MetaTrader 4 and 5, HistData's "MetaTrader".
    MetaTrader,
    /// Dukascopy's historical data feed.
    Dukascopy,
}

impl Format {
    pub const ALL: [Format; 4] = [Format::Csv, Format::HistData, Format::MetaTrader, Format::Dukascopy];

    /// `csv`, `histdata`, `metatrader` or `dukascopy`.
    pub fn name(self) -> &'static str {
        match self {
            Format::Csv => "csv",
            Format::HistData => "histdata",
            Format::MetaTrader => "metatrader",
            Format::Dukascopy => "dukascopy",
        }
    }

    /// Case-insensitive inverse of [`Format::name`]. `auto` is none of them: it asks for [`sniff`].
    pub fn parse(name: &str) -> Option<Format> {
        Format::ALL.into_iter().find(|f| f.name().eq_ignore_ascii_case(name))
    }

    /// What a line of this kind looks like, for messages.
    pub fn example(self) -> &'static str {
        match self {
            Format::Csv => "YYYY-MM-DD HH:MM[:SS][offset],open,high,low,close[,volume]",
            Format::HistData => "YYYYMMDD HHMMSS;open;high;low;close;volume",
            Format::MetaTrader => "YYYY.MM.DD,HH:MM,open,high,low,close,volume",
            Format::Dukascopy => "DD.MM.YYYY HH:MM:SS.000,open,high,low,close,volume",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How a date is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DateStyle {
    /// `2024-07-01`
    Dashes,
    /// `2024.07.01`
    Dots,
    /// `20240701`, with times as `HHMMSS`
    Compact,
    /// `01.07.2024`
    DayFirst,
}

impl DateStyle {
    const ALL: [DateStyle; 4] = [DateStyle::Dashes, DateStyle::Dots, DateStyle::Compact, DateStyle::DayFirst];

    /// The pattern that a date has: `Y`, `M`, `D` are digits, all else stands for itself.
    fn pattern(self) -> &'static str {
        match self {
            DateStyle::Dashes => "YYYY-MM-DD",
            DateStyle::Dots => "YYYY.MM.DD",
            DateStyle::Compact => "YYYYMMDD",
            DateStyle::DayFirst => "DD.MM.YYYY",
        }
    }

    /// The pattern of a time of day, without what may follow it.
    fn time_pattern(self) -> &'static str {
        match self {
            DateStyle::Compact => "HHMMSS",
            _ => "HH:MM[:SS[.fff]]",
        }
    }

    /// Which style the field begins with, and what follows the date. Only digits and separators are looked
    /// at: `2024-99-99` is a (wrong) date with dashes.
    fn of(field: &str) -> Option<(DateStyle, &str)> {
        DateStyle::ALL.into_iter().find_map(|style| {
            let date = field.get(..style.pattern().len())?;
            let fits = |(p, b): (u8, u8)| if p.is_ascii_alphabetic() { b.is_ascii_digit() } else { b == p };
            let rest = &field[date.len()..];
            let whole = !rest.starts_with(|c: char| c.is_ascii_digit());
            (whole && style.pattern().bytes().zip(date.bytes()).all(fits)).then_some((style, rest))
        })
    }
}

/// Which field holds what, counted from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Columns {
    /// Date, or date and time.
    time: usize,
    /// Time of day, where it has a field of its own.
    time_of_day: Option<usize>,
    /// Open, high, low, close.
    prices: [usize; 4],
    volume: Option<usize>,
}

impl Columns {
    /// The usual order from the first field on.
    fn usual(separate_time: bool, volume: bool) -> Columns {
        let o = 1 + usize::from(separate_time);
        Columns {
            time: 0,
            time_of_day: separate_time.then_some(1),
            prices: [o, o + 1, o + 2, o + 3],
            volume: volume.then_some(o + 4),
        }
    }

    /// The columns that a header names. `None` for anything that is no header of bars: one names open, high,
    /// low, close and, unless its column has no name at all, the time.
    fn of_header(fields: &[&str]) -> Option<Columns> {
        let names: Vec<String> = fields.iter().map(|f| column_name(f)).collect();
        let find = |known: &[&str]| names.iter().position(|n| known.contains(&n.as_str()));
        let prices =
            [find(&["open", "o"])?, find(&["high", "h"])?, find(&["low", "l"])?, find(&["close", "c"])?];
        let volume = find(&["volume", "vol", "v", "tickvol", "tickvolume"]);
        let date = find(&["date", "day"]);
        let time = find(&[
            "datetime",
            "timestamp",
            "time",
            "gmttime",
            "localtime",
            "utctime",
            "opentime",
            "timeutc",
            "tsutc",
        ]);
        let (time, time_of_day) = match (date, time) {
            (Some(date), time) => (date, time),
            (None, Some(time)) => (time, None),
            // What pandas writes for an index without a name.
            (None, None) if names.first().is_some_and(|n| n.is_empty()) => (0, None),
            (None, None) => return None,
        };
        Some(Columns { time, time_of_day, prices, volume })
    }

    /// Fields that a line must have.
    fn required(&self) -> usize {
        let prices = self.prices.iter().copied();
        prices.chain([self.time]).chain(self.time_of_day).chain(self.volume).max().map_or(0, |last| last + 1)
    }

    fn same_but_for_volume(&self, other: &Columns) -> bool {
        (self.time, self.time_of_day, self.prices) == (other.time, other.time_of_day, other.prices)
    }
}

/// `<OPEN>`, `"Open"`, `Tick_Volume`, `Time (UTC)` as `open`, `open`, `tickvolume`, `time`.
fn column_name(field: &str) -> String {
    let name = field.split('(').next().unwrap_or("");
    name.chars()
        .filter(|c| !matches!(c, ' ' | '_' | '-' | '<' | '>' | '"' | '\''))
        .flat_map(char::to_lowercase)
        .collect()
}

/// What holds for all lines of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    format: Format,
    delimiter: char,
    date_style: DateStyle,
    columns: Columns,
}

/// Why a file cannot be read as bars at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnknownFormat {
    /// There is no line but blank ones.
    Empty,
    /// No line begins with a time as any known kind writes it.
    Unrecognized { first_line: String },
    /// A named format, and lines of another one.
    Mismatch { asked: Format, found: Format, line: String },
}

impl fmt::Display for UnknownFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnknownFormat::Empty => f.write_str("there are no lines"),
            UnknownFormat::Unrecognized { first_line } => {
                write!(f, "the lines are of no known kind, the first is {}; known are ", quoted(first_line))?;
                for (i, format) in Format::ALL.into_iter().enumerate() {
                    let comma = if i == 0 { "" } else { ", " };
                    write!(f, "{comma}{format} ({})", format.example())?;
                }
                Ok(())
            }
            UnknownFormat::Mismatch { asked, found, line } => {
                write!(f, "the lines are not {asked} ({}) but look like {found}: ", asked.example())?;
                f.write_str(&quoted(line))
            }
        }
    }
}

impl std::error::Error for UnknownFormat {}

/// A one-minute bar as its line has it. Prices are finite and positive with `low <= open, close <= high`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bar {
    /// The bar's open time on the clock that the file shows; a whole minute.
    pub time: NaiveDateTime,
    /// How far that clock is ahead of UTC, where the line says so: UTC is `time` minus this. Seconds, always
    /// whole minutes, less than 16 hours either way.
    pub utc_offset_seconds: Option<i32>,
    pub open: f64,
    pub high: f64,
    pub low: f64,
    pub close: f64,
    /// Finite and not negative, in the vendor's unit. `None` where the file or this line has none.
    pub volume: Option<f64>,
}

impl Bar {
    /// Do the two bars say the same, time aside?
    pub fn same_values(&self, other: &Bar) -> bool {
        (self.open, self.high, self.low, self.close, self.volume)
            == (other.open, other.high, other.low, other.close, other.volume)
    }
}

/// What a line is.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// Nothing but white space.
    Blank,
    /// Column names.
    Header,
    Bar(Bar),
    /// Not a bar; the reason, as a part of a sentence.
    Bad(String),
}

/// Finds out what kind of file begins with these lines (format `auto`).
///
/// The kind is the one that most of the first 200 lines have, so that a bad line among them does no harm.
///
/// # Errors
/// The lines are of no known kind, or there are none.
pub fn sniff<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Layout, UnknownFormat> {
    let sample = Sample::of(lines)?;
    sample.layout(sample.format().ok_or_else(|| sample.unrecognized())?)
}

/// The layout of a file whose format is given: only the delimiter and the columns are found out.
///
/// Lines that are of no kind at all are no error here: each of them will be a [`Line::Bad`] with its reason.
///
/// # Errors
/// The lines are visibly of another format, or there are none.
pub fn layout_for<'a>(format: Format, lines: impl Iterator<Item = &'a str>) -> Result<Layout, UnknownFormat> {
    let sample = Sample::of(lines)?;
    if let Some(found) = sample.format()
        && found != format
    {
        let kind = sample.kind();
        let line = sample.data.iter().find(|s| kind.is_some_and(|k| s.kind == Some(k)));
        let line = line.map_or(sample.first_line, |s| s.line).to_string();
        return Err(UnknownFormat::Mismatch { asked: format, found, line });
    }
    sample.layout(format)
}

/// What sets files apart, of one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    delimiter: char,
    date_style: DateStyle,
    separate_time: bool,
}

impl Kind {
    fn format(self) -> Option<Format> {
        match (self.delimiter, self.date_style) {
            ('\t', DateStyle::Dashes | DateStyle::Dots) => Some(Format::MetaTrader),
            ('\t', _) => None,
            (_, DateStyle::Dashes) => Some(Format::Csv),
            (_, DateStyle::Dots) => Some(Format::MetaTrader),
            (_, DateStyle::Compact) => (!self.separate_time).then_some(Format::HistData),
            (_, DateStyle::DayFirst) => Some(Format::Dukascopy),
        }
    }
}

/// A line that is no header.
struct SampleLine<'a> {
    line: &'a str,
    kind: Option<Kind>,
    fields: usize,
}

/// The first lines of a file.
struct Sample<'a> {
    first_line: &'a str,
    /// The first header: its line, its delimiter, its columns.
    header: Option<(&'a str, char, Columns)>,
    data: Vec<SampleLine<'a>>,
}

impl<'a> Sample<'a> {
    fn of(lines: impl Iterator<Item = &'a str>) -> Result<Sample<'a>, UnknownFormat> {
        let mut lines = lines.map(trim_line).filter(|line| !line.is_empty()).take(SNIFFED_LINES).peekable();
        let first_line = *lines.peek().ok_or(UnknownFormat::Empty)?;
        let mut sample = Sample { first_line, header: None, data: Vec::new() };
        for line in lines {
            let delimiter = delimiter_of(line);
            let mut buffer = [""; MAX_FIELDS];
            let fields = split(line, delimiter, &mut buffer);
            if let Some(columns) = header_columns(line, fields) {
                sample.header.get_or_insert((line, delimiter, columns));
            } else {
                let time = sample.header.as_ref().map_or(0, |(_, _, columns)| columns.time);
                let kind = DateStyle::of(fields.get(time).unwrap_or(&"")).map(|(date_style, rest)| {
                    let separate_time = rest.is_empty() && fields.get(time + 1).is_some_and(|f| is_time(f));
                    Kind { delimiter, date_style, separate_time }
                });
                sample.data.push(SampleLine { line, kind, fields: fields.len() });
            }
        }
        Ok(sample)
    }

    /// The kind that most lines have, among equals the one seen first.
    fn kind(&self) -> Option<Kind> {
        let known = || self.data.iter().filter_map(|line| line.kind).filter(|k| k.format().is_some());
        let votes = |kind: Kind| known().filter(|k| *k == kind).count();
        let mut best: Option<(Kind, usize)> = None;
        for kind in known() {
            if best.is_none_or(|(b, n)| b != kind && votes(kind) > n) {
                best = Some((kind, votes(kind)));
            }
        }
        best.map(|(kind, _)| kind)
    }

    /// The format of the lines; of a file that has only a header, what the header looks like.
    fn format(&self) -> Option<Format> {
        if let Some(kind) = self.kind() {
            return kind.format();
        }
        let (line, delimiter, _) = self.header.as_ref().filter(|_| self.data.is_empty())?;
        let line = line.to_ascii_lowercase();
        Some(if *delimiter == '\t' || line.contains("<open>") {
            Format::MetaTrader
        } else if line.contains("gmt time") || line.contains("local time") {
            Format::Dukascopy
        } else {
            Format::Csv
        })
    }

    fn layout(&self, format: Format) -> Result<Layout, UnknownFormat> {
        let header = self.header.as_ref();
        let kind = self.kind().unwrap_or_else(|| {
            let guess = |line: &SampleLine| delimiter_of(line.line);
            let delimiter = header.map(|h| h.1).or_else(|| self.data.first().map(guess)).unwrap_or(',');
            let date_style = match format {
                Format::Csv => DateStyle::Dashes,
                Format::HistData => DateStyle::Compact,
                Format::MetaTrader => DateStyle::Dots,
                Format::Dukascopy => DateStyle::DayFirst,
            };
            let separate_time = format == Format::MetaTrader;
            Kind { delimiter, date_style, separate_time }
        });
        let columns = match header {
            // A header may call date and time `date`, or the date `time`: the lines know better.
            Some((_, _, columns)) if kind.separate_time && columns.time_of_day.is_none() => {
                Columns { time_of_day: Some(columns.time + 1), ..columns.clone() }
            }
            Some((_, _, columns)) => columns.clone(),
            None => {
                // The volume is there if most lines have it; a line without is then a torn one.
                let without = Columns::usual(kind.separate_time, false).required();
                let of_kind = || self.data.iter().filter(|line| line.kind == Some(kind));
                let more = of_kind().filter(|line| line.fields > without).count();
                Columns::usual(kind.separate_time, 2 * more >= of_kind().count().max(1))
            }
        };
        Ok(Layout { format, delimiter: kind.delimiter, date_style: kind.date_style, columns })
    }

    fn unrecognized(&self) -> UnknownFormat {
        UnknownFormat::Unrecognized { first_line: self.first_line.to_string() }
    }
}

impl Layout {
    /// The kind of file.
    pub fn format(&self) -> Format {
        self.format
    }

    /// What stands between two fields: `,`, `;` or a tab.
    pub fn delimiter(&self) -> char {
        self.delimiter
    }

    /// Do the lines carry a volume?
    pub fn has_volume(&self) -> bool {
        self.columns.volume.is_some()
    }

    /// Reads one line, with or without its line end.
    ///
    /// A byte order mark, white space and quotes around the line or its fields are ignored, and so are
    /// columns after those that a bar needs. A header is one wherever it stands, as in files that are several
    /// put together.
    pub fn parse_line(&self, line: &str) -> Line {
        let line = trim_line(line);
        if line.is_empty() {
            return Line::Blank;
        }
        let mut buffer = [""; MAX_FIELDS];
        let fields = split(line, self.delimiter, &mut buffer);
        match self.bar(fields) {
            Ok(bar) => Line::Bar(bar),
            Err(reason) => match header_columns(line, fields) {
                None => Line::Bad(reason),
                Some(columns) if self.agrees_with(&columns) => Line::Header,
                Some(_) => Line::Bad("a header with other columns than the lines before it".into()),
            },
        }
    }

    fn agrees_with(&self, header: &Columns) -> bool {
        let mut header = header.clone();
        if let (None, Some(_)) = (header.time_of_day, self.columns.time_of_day) {
            header.time_of_day = self.columns.time_of_day;
        }
        self.columns.same_but_for_volume(&header)
    }

    fn bar(&self, fields: &[&str]) -> Result<Bar, String> {
        let columns = &self.columns;
        let (time, utc_offset_seconds) = self.time(fields)?;
        let required = columns.required();
        if fields.len() < required {
            let (n, s) = (fields.len(), if fields.len() == 1 { "" } else { "s" });
            return Err(format!("{n} field{s} where {required} are needed, the line seems torn"));
        }
        if self.delimiter == ',' && decimal_commas(&fields[columns.prices[0].min(fields.len())..]) {
            return Err("the numbers seem to have decimal commas, expected decimal points".into());
        }
        let [open, high, low, close] = columns.prices;
        let (open, high) = (price("open", fields[open])?, price("high", fields[high])?);
        let (low, close) = (price("low", fields[low])?, price("close", fields[close])?);
        if high < low {
            return Err(format!("high {high} is below low {low}"));
        }
        for (name, value) in [("open", open), ("close", close)] {
            if value < low {
                return Err(format!("{name} {value} is below low {low}"));
            }
            if value > high {
                return Err(format!("{name} {value} is above high {high}"));
            }
        }
        let volume = match columns.volume.map(|v| fields[v]) {
            None | Some("") => None,
            Some(text) => {
                let volume = finite("volume", text)?;
                if volume < 0.0 {
                    return Err(format!("volume {volume} is negative"));
                }
                // Not a minus zero.
                Some(volume + 0.0)
            }
        };
        Ok(Bar { time, utc_offset_seconds, open, high, low, close, volume })
    }

    /// The time of a line and its offset from UTC in seconds.
    fn time(&self, fields: &[&str]) -> Result<(NaiveDateTime, Option<i32>), String> {
        let style = self.date_style;
        let first = fields.get(self.columns.time).copied().unwrap_or("");
        let second = self.columns.time_of_day.map(|t| fields.get(t).copied().unwrap_or(""));
        let found = || match second {
            Some(second) => quoted(&format!("{first}{}{second}", self.delimiter)),
            None => quoted(first),
        };
        let unreadable = || {
            let between = if second.is_some() { self.delimiter } else { ' ' };
            let (date, time) = (style.pattern(), style.time_pattern());
            format!("the time is {}, expected {date}{between}{time}", found())
        };
        let Some((written, rest)) = DateStyle::of(first).filter(|(written, _)| *written == style) else {
            return Err(unreadable());
        };
        let date = read_date(written, first)
            .ok_or_else(|| format!("the time is {}, and there is no such day", found()))?;
        let time = match second {
            Some(second) => rest.is_empty().then_some(second),
            None => rest.strip_prefix([' ', 'T', 't']).map(str::trim_start),
        };
        let clock = time.and_then(|time| Clock::read(style, time)).ok_or_else(unreadable)?;
        let time = date
            .and_hms_opt(clock.hour, clock.minute, clock.second)
            .ok_or_else(|| format!("the time is {}, and there is no such time of day", found()))?;
        if time.second() != 0 || clock.fraction {
            return Err(format!("the time {} is not on a whole minute", found()));
        }
        Ok((time, clock.offset))
    }
}

/// A time of day as written, its numbers not yet checked.
struct Clock {
    hour: u32,
    minute: u32,
    second: u32,
    /// Is there a fraction of a second other than zero?
    fraction: bool,
    offset: Option<i32>,
}

impl Clock {
    fn read(style: DateStyle, text: &str) -> Option<Clock> {
        let mut clock = Clock { hour: 0, minute: 0, second: 0, fraction: false, offset: None };
        let mut rest;
        (clock.hour, rest) = two_digits(text)?;
        if style == DateStyle::Compact {
            (clock.minute, rest) = two_digits(rest)?;
            (clock.second, rest) = two_digits(rest)?;
        } else {
            (clock.minute, rest) = two_digits(rest.strip_prefix(':')?)?;
            if let Some(seconds) = rest.strip_prefix(':') {
                (clock.second, rest) = two_digits(seconds)?;
                if let Some(fraction) = rest.strip_prefix('.') {
                    rest = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
                    let digits = &fraction[..fraction.len() - rest.len()];
                    clock.fraction = digits.bytes().any(|b| b != b'0');
                    if digits.is_empty() {
                        return None;
                    }
                }
            }
        }
        clock.offset = read_offset(rest)?;
        Some(clock)
    }
}

/// What may follow a time: nothing, `Z`, `UTC`, `GMT`, `+01`, `+0100`, `+01:00`, or a name and an offset as in
/// `GMT+0100`. The outer `None` is for anything else.
fn read_offset(text: &str) -> Option<Option<i32>> {
    let text = text.trim_start();
    if text.is_empty() {
        return Some(None);
    }
    let name = ["Z", "UTC", "GMT"]
        .into_iter()
        .find(|name| text.get(..name.len()).is_some_and(|t| t.eq_ignore_ascii_case(name)));
    let signed = text[name.map_or(0, str::len)..].trim_start();
    if signed.is_empty() {
        return Some(Some(0));
    }
    if name == Some("Z") {
        return None;
    }
    let sign = match signed.as_bytes()[0] {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, rest) = two_digits(&signed[1..])?;
    let (minutes, rest) = match rest.strip_prefix(':').unwrap_or(rest) {
        "" if rest.is_empty() => (0, ""),
        digits => two_digits(digits)?,
    };
    let valid = rest.is_empty() && hours < 16 && minutes < 60;
    valid.then_some(Some(sign * (hours * 3600 + minutes * 60) as i32))
}

/// Is this the beginning of `HH:MM` or `HHMMSS`?
fn is_time(field: &str) -> bool {
    two_digits(field)
        .and_then(|(_, rest)| two_digits(rest.strip_prefix(':').unwrap_or(rest)))
        .is_some_and(|(_, rest)| !rest.starts_with('.'))
}

fn two_digits(text: &str) -> Option<(u32, &str)> {
    let rest = text.get(2..)?;
    let [a, b] = [text.as_bytes()[0], text.as_bytes()[1]];
    let digits = a.is_ascii_digit() && b.is_ascii_digit();
    digits.then(|| (u32::from(a - b'0') * 10 + u32::from(b - b'0'), rest))
}

/// The date at the start of `field`, which has the style's pattern.
fn read_date(style: DateStyle, field: &str) -> Option<NaiveDate> {
    let number = |range: std::ops::Range<usize>| field.get(range)?.parse::<u32>().ok();
    let (year, month, day) = match style {
        DateStyle::Dashes | DateStyle::Dots => (number(0..4)?, number(5..7)?, number(8..10)?),
        DateStyle::Compact => (number(0..4)?, number(4..6)?, number(6..8)?),
        DateStyle::DayFirst => (number(6..10)?, number(3..5)?, number(0..2)?),
    };
    let date = NaiveDate::from_ymd_opt(year as i32, month, day)?;
    // A year like 24 or 9024 is a typing error, and would ask for thousands of months.
    Month::from_date(date).map(|_| date)
}

/// A number that is finite.
fn finite(name: &str, text: &str) -> Result<f64, String> {
    if text.is_empty() {
        return Err(format!("{name} is missing, the line seems torn"));
    }
    let value: f64 = text.parse().map_err(|_| {
        let comma = text.contains(',') && text.replacen(',', ".", 1).parse::<f64>().is_ok();
        let hint = if comma { ", expected a decimal point" } else { "" };
        format!("{name} is {}, which is not a number{hint}", quoted(text))
    })?;
    if value.is_finite() {
        Ok(value)
    } else {
        Err(format!("{name} is {}, which is not finite", quoted(text)))
    }
}

/// A price: finite and positive.
fn price(name: &str, text: &str) -> Result<f64, String> {
    let value = finite(name, text)?;
    if value > 0.0 { Ok(value) } else { Err(format!("{name} is {}, which is not positive", quoted(text))) }
}

/// Are these the fields, from the open on, of a line whose commas are decimal marks as well as delimiters? Read
/// as it stands, `…,1,1032,1,1032,1,1029,1,1032` would be a bar with open 1 and high 1032 that nothing else
/// gives away. Its mark: whole numbers only, and every other one, the integer parts, (nearly) the same.
fn decimal_commas(fields: &[&str]) -> bool {
    let Some(prices) = fields.first_chunk::<8>() else { return false };
    let whole = |f: &&str| !f.is_empty() && f.bytes().all(|b| b.is_ascii_digit());
    // They differ by one where the price crosses a whole number.
    let integer_part = |i: usize| prices[i].parse::<u64>().unwrap_or(u64::MAX / 2);
    prices.iter().all(whole) && [2, 4, 6].into_iter().all(|i| integer_part(i).abs_diff(integer_part(0)) <= 1)
}

/// Without byte order mark, white space at both ends and quotes around the whole line.
fn trim_line(line: &str) -> &str {
    // The mark's bytes may have been read as Latin-1.
    let line = line.trim_start_matches('\u{feff}').trim_start_matches("\u{ef}\u{bb}\u{bf}");
    let line = line.trim_matches([' ', '\r', '\n', '\u{b}', '\u{c}']);
    // A tab at an end may be an empty field's; a line of nothing but tabs is blank. `\.` ends COPY's text format:
    // PostgreSQL takes it for the end of a CSV file up to 17, and hands it on from 18.
    if line.bytes().all(|b| b == b'\t') || line == "\\." {
        return "";
    }
    let inner = line.strip_prefix('"').and_then(|l| l.strip_suffix('"'));
    inner.filter(|l| !l.contains('"')).unwrap_or(line)
}

/// The delimiter of a line: a tab if there is one, else the more frequent of `;` and `,`. A line with `;`
/// may have decimal commas, so that any four `;` are enough.
fn delimiter_of(line: &str) -> char {
    let count = |c: u8| line.bytes().filter(|b| *b == c).count();
    match (count(b'\t'), count(b';'), count(b',')) {
        (1.., _, _) => '\t',
        (0, 4.., _) => ';',
        (0, semicolons, commas) if semicolons > commas => ';',
        _ => ',',
    }
}

/// The fields of a line, without white space and quotes around them.
fn split<'a, 'b>(line: &'a str, delimiter: char, buffer: &'b mut [&'a str; MAX_FIELDS]) -> &'b [&'a str] {
    let mut n = 0;
    for field in line.split(delimiter).take(MAX_FIELDS) {
        let field = field.trim();
        let bare = field.strip_prefix('"').and_then(|f| f.strip_suffix('"'));
        buffer[n] = bare.map_or(field, str::trim);
        n += 1;
    }
    &buffer[..n]
}

/// The columns, if the line is a header. One that is begins with a letter, `<`, or, where the first column has
/// no name, with a delimiter.
fn header_columns(line: &str, fields: &[&str]) -> Option<Columns> {
    let first = line.trim_start_matches('"').chars().next()?;
    let may_be = first.is_alphabetic() || matches!(first, '<' | ',' | ';' | '\t');
    if may_be { Columns::of_header(fields) } else { None }
}

/// A piece of a file for a message: in quotes, on one line, not too long.
fn quoted(text: &str) -> String {
    let visible = |c: char| match c {
        '\t' => ' ',
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    let mut shown: String = text.chars().take(QUOTED_CHARS).map(visible).collect();
    if text.chars().nth(QUOTED_CHARS).is_some() {
        shown.push('…');
    }
    format!("\"{shown}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> NaiveDateTime {
        NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M").unwrap()
    }

    fn layout(file: &str) -> Layout {
        sniff(file.lines()).unwrap_or_else(|e| panic!("{file}: {e}"))
    }

    /// The only line of `file` that is a bar, read with the layout sniffed from the whole file.
    fn only_bar(file: &str) -> (Format, Bar) {
        let layout = layout(file);
        let mut bars = file.lines().filter_map(|line| match layout.parse_line(line) {
            Line::Bar(bar) => Some(bar),
            Line::Bad(reason) => panic!("{line}: {reason}"),
            Line::Blank | Line::Header => None,
        });
        let bar = bars.next().unwrap_or_else(|| panic!("no bar in {file}"));
        assert_eq!(bars.next(), None);
        (layout.format(), bar)
    }

    fn reason(layout: &Layout, line: &str) -> String {
        match layout.parse_line(line) {
            Line::Bad(reason) => reason,
            other => panic!("{line}: {other:?}"),
        }
    }

    /// A csv file with a volume.
    fn csv() -> Layout {
        layout("2024-07-01 00:00,1.5,1.75,1.25,1.625,12")
    }

    #[test]
    fn every_way_of_writing_a_bar_is_read_alike() {
        let values = "1.5;1.75;1.25;1.625";
        let commas = values.replace(';', ",");
        let tabs = values.replace(';', "\t");
        #[rustfmt::skip]
        let files = [
            // format, file, offset, volume
            (Format::Csv, format!("2024-07-01 00:00,{commas}"), None, None),
            (Format::Csv, format!("2024-07-01T00:00:00,{commas},7"), None, Some(7.0)),
            (Format::Csv, format!("2024-07-01 00:00:00.000;{values};7"), None, Some(7.0)),
            (Format::Csv, format!("2024-07-01,00:00,{commas},7"), None, Some(7.0)),
            (Format::Csv, format!("2024-07-01T00:00:00Z,{commas},7,extra,8"), Some(0), Some(7.0)),
            (Format::Csv, format!("2024-07-01 00:00+00:00,{commas},"), Some(0), None),
            (Format::Csv, format!("2024-07-01 00:00:00+0530,{commas}"), Some(19_800), None),
            (Format::Csv, format!("2024-07-01 00:00:00.0 -05,{commas}"), Some(-18_000), None),
            (Format::Csv, format!("2024-07-01 00:00:00 UTC,{commas}"), Some(0), None),
            (Format::Csv, format!("\u{feff}time,open,high,low,close,volume\r\n2024-07-01 00:00,{commas},7.5\r\n"), None, Some(7.5)),
            (Format::Csv, format!("datetime;open;high;low;close\n\n  \n2024-07-01 00:00;{values}"), None, None),
            (Format::Csv, format!("\"timestamp\",\"open\",\"high\",\"low\",\"close\"\n\"2024-07-01 00:00\",{commas}"), None, None),
            (Format::Csv, "Date,Open,Close,High,Low,Adj Close,Volume\n2024-07-01 00:00,1.5,1.625,1.75,1.25,9,7".into(), None, Some(7.0)),
            (Format::Csv, format!(",time,open,high,low,close\n0,2024-07-01 00:00,{commas}"), None, None),
            (Format::Csv, format!(",open,high,low,close\n2024-07-01 00:00,{commas}"), None, None),
            (Format::HistData, format!("20240701 000000;{values};7"), None, Some(7.0)),
            (Format::MetaTrader, format!("2024.07.01,00:00,{commas},7"), None, Some(7.0)),
            (Format::MetaTrader, format!("2024.07.01,00:00:00,{commas},7"), None, Some(7.0)),
            (Format::MetaTrader, format!("Date;Open;High;Low;Close\n2024.07.01 00:00;{values}"), None, None),
            (Format::MetaTrader, format!("Date,Time,Open,High,Low,Close,Volume\n2024.07.01,00:00,{commas},7"), None, Some(7.0)),
            (Format::MetaTrader, format!("2024.07.01 00:00:00,{commas},7"), None, Some(7.0)),
            (Format::MetaTrader, format!("<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\t<VOL>\t<SPREAD>\n2024.07.01\t00:00:00\t{tabs}\t7\t0\t3"), None, Some(7.0)),
            (Format::MetaTrader, format!("\"Time\tOpen\tHigh\tLow\tClose\tVolume\"\r\n\"2024-07-01 00:00:00\t{tabs}\t7\"\r\n"), None, Some(7.0)),
            (Format::Dukascopy, format!("01.07.2024 00:00:00.000,{commas},7"), None, Some(7.0)),
            (Format::Dukascopy, format!("Gmt time,Open,High,Low,Close,Volume\n01.07.2024 00:00:00.000,{commas},7"), None, Some(7.0)),
            (Format::Dukascopy, format!("Local time,Open,High,Low,Close,Volume\n01.07.2024 00:00:00.000 GMT+0100,{commas},7"), Some(3600), Some(7.0)),
        ];
        for (format, file, utc_offset_seconds, volume) in files {
            let time = at("2024-07-01 00:00");
            let bar =
                Bar { time, utc_offset_seconds, open: 1.5, high: 1.75, low: 1.25, close: 1.625, volume };
            assert_eq!(only_bar(&file), (format, bar), "{file}");
            // The format by name finds the same.
            assert_eq!(layout_for(format, file.lines()), Ok(layout(&file)), "{file}");
            assert_eq!(layout(&file).has_volume(), volume.is_some() || file.ends_with(','), "{file}");
        }
    }

    #[test]
    fn numbers_are_the_nearest_doubles() {
        for text in ["1.08537", "0.1", "157.123", "1e-5", "179769313486231570000", "1.00000000000000011102"] {
            let line = format!("2024-07-01 00:00,{text},{text},{text},{text},{text}");
            let Line::Bar(bar) = csv().parse_line(&line) else { panic!("{line}") };
            assert_eq!(bar.close.to_bits(), text.parse::<f64>().unwrap().to_bits());
        }
        let Line::Bar(bar) = csv().parse_line("2024-07-01 00:00,1,1,1,1,-0") else { panic!() };
        assert_eq!(bar.volume.map(f64::to_bits), Some(0));
    }

    #[test]
    fn bad_lines_say_why() {
        for (line, expected) in [
            ("2024-07-01 00:01,1.5,1.75,1.25", "4 fields where 6 are needed, the line seems torn"),
            ("2024-07-01 00:01,1.5,1.75,1.25,1.6", "5 fields where 6 are needed, the line seems torn"),
            ("2024-07-01 00:01", "1 field where 6 are needed, the line seems torn"),
            ("2024-07-01 00:01,1.5,1.75,1.25,,", "close is missing, the line seems torn"),
            ("2024-07-01 00:0", "the time is \"2024-07-01 00:0\", expected YYYY-MM-DD HH:MM[:SS[.fff]]"),
            (
                "yesterday,1.5,1.75,1.25,1.6,1",
                "the time is \"yesterday\", expected YYYY-MM-DD HH:MM[:SS[.fff]]",
            ),
            (
                "2024.07.01 00:01,1.5,1.75,1.25,1.6,1",
                "the time is \"2024.07.01 00:01\", expected YYYY-MM-DD HH:MM[:SS[.fff]]",
            ),
            (
                "2024-07-01 00:01 CEST,1.5,1.75,1.25,1.6,1",
                "the time is \"2024-07-01 00:01 CEST\", expected YYYY-MM-DD HH:MM[:SS[.fff]]",
            ),
            (
                "2024-07-01,1.5,1.75,1.25,1.6,1",
                "the time is \"2024-07-01\", expected YYYY-MM-DD HH:MM[:SS[.fff]]",
            ),
            (
                "2023-02-29 00:01,1.5,1.75,1.25,1.6,1",
                "the time is \"2023-02-29 00:01\", and there is no such day",
            ),
            (
                "2024-07-01 24:00,1.5,1.75,1.25,1.6,1",
                "the time is \"2024-07-01 24:00\", and there is no such time of day",
            ),
            (
                "2024-07-01 00:01:30,1.5,1.75,1.25,1.6,1",
                "the time \"2024-07-01 00:01:30\" is not on a whole minute",
            ),
            (
                "2024-07-01 00:01:00.001,1.5,1.75,1.25,1.6,1",
                "the time \"2024-07-01 00:01:00.001\" is not on a whole minute",
            ),
            ("2024-07-01 00:01,1.5,abc,1.25,1.6,1", "high is \"abc\", which is not a number"),
            ("2024-07-01 00:01,1.5,\"1,75\",1.25,1.6,1", "high is \"\"1\", which is not a number"),
            ("2024-07-01 00:01,NaN,1.75,1.25,1.6,1", "open is \"NaN\", which is not finite"),
            ("2024-07-01 00:01,1.5,inf,1.25,1.6,1", "high is \"inf\", which is not finite"),
            ("2024-07-01 00:01,1.5,1e999,1.25,1.6,1", "high is \"1e999\", which is not finite"),
            ("2024-07-01 00:01,1.5,1.75,0,1.6,1", "low is \"0\", which is not positive"),
            ("2024-07-01 00:01,1.5,1.75,1.25,-1.6,1", "close is \"-1.6\", which is not positive"),
            ("2024-07-01 00:01,1.5,1.25,1.75,1.6,1", "high 1.25 is below low 1.75"),
            ("2024-07-01 00:01,1.2,1.75,1.25,1.6,1", "open 1.2 is below low 1.25"),
            ("2024-07-01 00:01,1.8,1.75,1.25,1.6,1", "open 1.8 is above high 1.75"),
            ("2024-07-01 00:01,1.5,1.75,1.25,1.2,1", "close 1.2 is below low 1.25"),
            ("2024-07-01 00:01,1.5,1.75,1.25,1.8,1", "close 1.8 is above high 1.75"),
            ("2024-07-01 00:01,1.5,1.75,1.25,1.6,-1", "volume -1 is negative"),
            ("2024-07-01 00:01,1.5,1.75,1.25,1.6,nan", "volume is \"nan\", which is not finite"),
            ("2024-07-01 00:01,1.5,1.75,1.25,1.6,n/a", "volume is \"n/a\", which is not a number"),
            (
                "2024-07-01 00:01,1,1032,1,1032,1,1029,1,1032",
                "the numbers seem to have decimal commas, expected decimal points",
            ),
            (
                "2024-07-01 00:01,0,9998,1,0004,0,9997,1,0001,12",
                "the numbers seem to have decimal commas, expected decimal points",
            ),
        ] {
            assert_eq!(reason(&csv(), line), expected, "{line}");
        }
    }

    #[test]
    fn the_expected_time_is_the_formats() {
        let metatrader = layout("2024.07.01,00:00,1.5,1.75,1.25,1.625,12");
        assert_eq!(
            reason(&metatrader, "2024.07.01,0:01,1.5,1.75,1.25,1.625,12"),
            "the time is \"2024.07.01,0:01\", expected YYYY.MM.DD,HH:MM[:SS[.fff]]"
        );
        let histdata = layout("20240701 000000;1.5;1.75;1.25;1.625;12");
        assert_eq!(
            reason(&histdata, "20240701 00:01;1.5;1.75;1.25;1.625;12"),
            "the time is \"20240701 00:01\", expected YYYYMMDD HHMMSS"
        );
        assert_eq!(
            reason(&histdata, "20240701 000015;1.5;1.75;1.25;1.625;12"),
            "the time \"20240701 000015\" is not on a whole minute"
        );
        let dukascopy = layout("31.07.2024 00:00:00.000,1.5,1.75,1.25,1.625,12");
        assert_eq!(
            reason(&dukascopy, "07.31.2024 00:00:00.000,1.5,1.75,1.25,1.625,12"),
            "the time is \"07.31.2024 00:00:00.000\", and there is no such day"
        );
    }

    #[test]
    fn decimal_commas_in_a_file_with_semicolons_are_named() {
        let layout = layout("2024-07-01 00:00;1,5;1,75;1,25;1,625;12");
        assert_eq!(layout.delimiter(), ';');
        assert_eq!(
            reason(&layout, "2024-07-01 00:00;1,5;1,75;1,25;1,625;12"),
            "open is \"1,5\", which is not a number, expected a decimal point"
        );
    }

    #[test]
    fn offsets_are_checked() {
        for (text, expected) in [
            ("+15:59", Some(57_540)),
            ("-15:59", Some(-57_540)),
            ("z", Some(0)),
            (" UTC+2", None),
            ("+16:00", None),
            ("+05:60", None),
            ("+5", None),
            ("+05:", None),
            ("+05:30:00", None),
            ("Z+01", None),
            ("+é0", None),
        ] {
            let line = format!("2024-07-01 00:00{text},1.5,1.75,1.25,1.625,12");
            match (csv().parse_line(&line), expected) {
                (Line::Bar(bar), Some(_)) => assert_eq!(bar.utc_offset_seconds, expected, "{text}"),
                (Line::Bad(_), None) => {}
                (line, _) => panic!("{text}: {line:?}"),
            }
        }
    }

    #[test]
    fn headers_are_known_wherever_they_stand_and_swallow_nothing() {
        for line in [
            "time,open,high,low,close,volume",
            "Time,Open,High,Low,Close",
            "\u{feff}<DATE>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<VOL>\r",
            "\"datetime\",\"open\",\"high\",\"low\",\"close\"",
            "timestamp,o,h,l,c,v",
        ] {
            assert_eq!(csv().parse_line(line), Line::Header, "{line}");
        }
        for line in
            ["time,close", "time,open,high,low", "time;open;high;low;close", "time", "open,high,low,close"]
        {
            assert!(matches!(csv().parse_line(line), Line::Bad(_)), "{line}");
        }
        assert_eq!(
            reason(&csv(), "time,open,close,high,low,volume"),
            "a header with other columns than the lines before it"
        );
        for line in ["", "\r\n", "   ", "\t\t", "\u{feff}", "\\.\r"] {
            assert_eq!(csv().parse_line(line), Line::Blank, "{line:?}");
        }
    }

    #[test]
    fn a_header_says_whether_there_is_a_volume() {
        let with = layout("time,open,high,low,close,volume\n2024-07-01 00:00,1.5,1.75,1.25,1.625");
        assert!(matches!(with.parse_line("2024-07-01 00:00,1.5,1.75,1.25,1.625"), Line::Bad(_)));
        let without = layout("time,open,high,low,close\n2024-07-01 00:00,1.5,1.75,1.25,1.625,9");
        let Line::Bar(bar) = without.parse_line("2024-07-01 00:00,1.5,1.75,1.25,1.625,9") else { panic!() };
        assert_eq!(bar.volume, None);
    }

    #[test]
    fn a_bad_beginning_does_not_hide_the_format() {
        let file = "EURUSD, M1\n20240701 0000\n2024.07.01,00:00,1.5,1.75,1.25,1.625,12\n\
                    2024.07.01,00:01,1.5,1.75,1.25,1.625,12";
        let layout = layout(file);
        assert_eq!(
            (layout.format(), layout.delimiter(), layout.has_volume()),
            (Format::MetaTrader, ',', true)
        );
        let lines: Vec<_> = file.lines().map(|line| layout.parse_line(line)).collect();
        assert!(matches!(lines[..], [Line::Bad(_), Line::Bad(_), Line::Bar(_), Line::Bar(_)]), "{lines:?}");
    }

    #[test]
    fn unknown_files_are_refused_with_their_first_line() {
        assert_eq!(sniff("\n\r\n".lines()), Err(UnknownFormat::Empty));
        assert_eq!(layout_for(Format::Csv, [].into_iter()), Err(UnknownFormat::Empty));
        let error = sniff("hello,\tworld\n2\n".lines()).unwrap_err().to_string();
        assert!(
            error.starts_with(
                "the lines are of no known kind, the first is \"hello, world\"; known are csv ("
            ),
            "{error}"
        );
        assert!(error.contains("dukascopy (DD.MM.YYYY"), "{error}");
        // Dates without times are days, not minutes; but the kind is known.
        assert_eq!(sniff(["2024-07-01,1,1,1,1"].into_iter()).map(|l| l.format()), Ok(Format::Csv));
        let long = sniff(["x".repeat(1000).as_str()].into_iter()).unwrap_err().to_string();
        assert!(long.contains("xx…\""), "{long}");
    }

    #[test]
    fn a_named_format_refuses_the_lines_of_another() {
        let lines = ["time,open,high,low,close", "2024.07.01 00:00,1.5,1.75,1.25,1.625"];
        assert_eq!(
            layout_for(Format::Csv, lines.into_iter()).unwrap_err().to_string(),
            "the lines are not csv (YYYY-MM-DD HH:MM[:SS][offset],open,high,low,close[,volume]) but look like \
             metatrader: \"2024.07.01 00:00,1.5,1.75,1.25,1.625\""
        );
        assert!(layout_for(Format::MetaTrader, lines.into_iter()).is_ok());
        // Of no kind at all: the lines themselves will be bad.
        let layout = layout_for(Format::HistData, ["hello;world"].into_iter()).unwrap();
        assert_eq!(reason(&layout, "hello;world"), "the time is \"hello\", expected YYYYMMDD HHMMSS");
        // Nothing but a header.
        let layout = layout_for(Format::Dukascopy, ["Gmt time,Open,High,Low,Close,Volume"].into_iter());
        assert_eq!(layout.map(|l| l.format()), Ok(Format::Dukascopy));
    }

    #[test]
    fn formats_have_names() {
        for format in Format::ALL {
            assert_eq!(Format::parse(&format.to_string().to_uppercase()), Some(format));
        }
        assert_eq!(Format::parse("auto"), None);
    }

    mod any_text {
        use proptest::prelude::*;

        use super::*;

        proptest! {
            /// Whatever the lines are, they are read without a panic, and a bar is one that can be trusted.
            #[test]
            fn is_read(lines in prop::collection::vec("\\PC*|[-+0-9TZ.:,; \t\"]{0,60}", 0..4)) {
                let good = "2024-07-01 00:00,1.5,1.75,1.25,1.625,12";
                let lines = || lines.iter().map(String::as_str);
                let _ = layout_for(Format::HistData, lines());
                let sniffed = sniff(lines().chain([good])).unwrap();
                for line in lines() {
                    check(&sniffed.parse_line(line));
                    check(&csv().parse_line(line));
                }
            }

            /// A good line with a piece overwritten.
            #[test]
            fn near_a_bar_is_read(at in 0..39usize, piece in "[-+0-9TZ.:,; \t\"eé]{0,3}") {
                let mut line = "2024-07-01 00:00,1.5,1.75,1.25,1.625,12".to_string();
                line.replace_range(at..(at + piece.chars().count()).min(39), &piece);
                check(&csv().parse_line(&line));
            }
        }

        fn check(line: &Line) {
            if let Line::Bar(bar) = line {
                assert!(bar.low > 0.0 && bar.high.is_finite() && bar.low <= bar.high);
                assert!(
                    (bar.low..=bar.high).contains(&bar.open) && (bar.low..=bar.high).contains(&bar.close)
                );
                assert!(bar.volume.is_none_or(|v| v.is_finite() && v >= 0.0));
                assert_eq!(bar.time.second(), 0);
            }
        }
    }
}
