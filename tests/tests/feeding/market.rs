//! The pairs, and how their rows are kept up to date.

#[derive(Debug)]
pub struct Pair {
    pub name: &'static str,
    /// About what its bars cost.
    pub price: f64,
    pub live: Live,
    /// Whether its M1 is partitioned by month.
    pub partitioned: bool,
}

/// When a pair is followed live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Live {
    /// From before the first change to the end, in every session: its rows are right at any time.
    Always,
    /// Now and then, and not in every session.
    Sometimes,
    Never,
}

impl Pair {
    pub fn is_always_live(&self) -> bool {
        self.live == Live::Always
    }
}

const fn pair(name: &'static str, price: f64, live: Live, partitioned: bool) -> Pair {
    Pair { name, price, live, partitioned }
}

pub const PAIRS: [Pair; 4] = [
    pair("audusd", 0.66, Live::Always, false),
    pair("eurusd", 1.08, Live::Always, true),
    pair("gbpusd", 1.27, Live::Sometimes, true),
    pair("usdjpy", 157.0, Live::Never, true),
];

pub const FAMILIES: [&str; 2] = ["bqx", "reg"];

/// The months of the bars that are there from the beginning; feeds go on from there. The first bars, of which baselines are
/// made, are never changed.
pub const MONTHS: [&str; 3] = ["2024-07", "2024-08", "2024-09"];

/// All tables, whose rows come and go.
pub fn tables() -> Vec<String> {
    let of = |pair: &Pair| ["m1", "bqx", "reg"].map(|kind| format!("bqx.{kind}_{}", pair.name));
    PAIRS.iter().flat_map(of).collect()
}

/// Bars of every twentieth minute, with complete derived tables.
pub fn prepared() -> Vec<String> {
    let names: Vec<&str> = PAIRS.iter().map(|pair| pair.name).collect();
    let live: Vec<&str> = PAIRS.iter().filter(|pair| pair.is_always_live()).map(|pair| pair.name).collect();
    let array = |pairs: &[&str]| format!("'{{{}}}'", pairs.join(","));
    let (first, last) = (MONTHS[0], MONTHS[MONTHS.len() - 1]);
    let mut steps = vec![format!("CALL bqx.simulate_m1({}, '{first}-01', '{last}-01')", array(&names))];
    for Pair { name, partitioned, .. } in &PAIRS {
        steps.push(format!("DELETE FROM bqx.m1_{name} WHERE extract(minute FROM time)::int % 20 <> 0"));
        if !partitioned {
            steps.extend([
                format!("CREATE TABLE public.m1_{name} (LIKE bqx.m1_{name} INCLUDING ALL)"),
                format!("INSERT INTO public.m1_{name} SELECT * FROM bqx.m1_{name}"),
                format!("DROP TABLE bqx.m1_{name}"),
                format!("ALTER TABLE public.m1_{name} SET SCHEMA bqx"),
            ]);
        }
        steps.push(format!("VACUUM FULL bqx.m1_{name}"));
    }
    let rest = ["set_baselines()", "index_m1()", "create_tables()", "backfill()"];
    steps.extend(rest.map(|call| format!("CALL bqx.{call}")));
    steps.push(format!("CALL bqx.enable_live({})", array(&live)));
    steps
}
