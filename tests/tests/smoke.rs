//! The extension comes and goes.

use bqx_tests::Db;

#[test]
fn the_extension_can_be_created_and_dropped() {
    let db = Db::without_extension("smoke");
    let mut session = db.connect();
    session.batch_execute("CREATE EXTENSION bqx").unwrap();
    let version: String =
        session.query_one("SELECT extversion FROM pg_extension WHERE extname = 'bqx'", &[]).unwrap().get(0);
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    session.batch_execute("DROP EXTENSION bqx").unwrap();
    session.batch_execute("CREATE EXTENSION bqx").unwrap();
}
