//! The rights that the relay's role needs and lacks.

use pillarbox_relay::status;
use sqlx::{PgConnection, Row};

use super::{Doctor, Report};
use pillarbox_store::grants::{self, Duty};

/// Compares the role's rights with those that the relay is granted by `pillarbox migrate --print-grants`.
pub(super) async fn examine(doctor: &Doctor, connection: &mut PgConnection, report: &mut Report) {
    const CHECK: &str = "outbox.privileges";
    let schema = &doctor.config.schema;
    let role = match &doctor.role {
        Some(role) => role.clone(),
        None => {
            let current =
                sqlx::query_scalar("select current_user::text").fetch_one(&mut *connection);
            match report.got(CHECK, current).await {
                Some(role) => role,
                None => return,
            }
        }
    };
    let mut needs = grants::needs(Duty::Relay);
    let mut missing = Vec::new();
    let usage = sqlx::query_scalar("select has_schema_privilege($1, $2, 'usage')")
        .bind(&role)
        .bind(schema)
        .fetch_one(&mut *connection);
    match report.got(CHECK, usage).await {
        Some(true) => {
            // The table may have another sequence than the one that it was made with.
            let sequence = status::sequence_name(&mut *connection, schema);
            if let Some(Some(name)) = report.got(CHECK, sequence).await
                && let Some((_, name)) = name.split_once('.')
            {
                let name = name.trim_matches('"');
                for need in needs.iter_mut().filter(|need| need.relation == "outbox_position_seq") {
                    name.clone_into(&mut need.relation);
                }
            }
        }
        Some(false) => missing.push(format!("grant usage on schema {schema} to \"{role}\";")),
        None => return,
    }
    let of = |read: fn(&grants::Need) -> &str| {
        needs.iter().map(|need| read(need).to_owned()).collect::<Vec<_>>()
    };
    let denied = sqlx::query(include_str!("privileges.sql"))
        .bind(&role)
        .bind(schema)
        .bind(of(|need| &need.relation))
        .bind(of(|need| &need.privilege))
        .bind(needs.iter().map(|need| need.column.clone()).collect::<Vec<_>>())
        .fetch_all(connection);
    let Some(denied) = report.got(CHECK, denied).await else {
        return;
    };
    for row in denied {
        let text =
            |at: usize| row.try_get::<Option<String>, _>(at).ok().flatten().unwrap_or_default();
        let (relation, privilege, column) = (text(0), text(1), text(2));
        let column = if column.is_empty() { column } else { format!(" ({column})") };
        let kind = if relation.contains('(') { "function " } else { "" };
        missing
            .push(format!("grant {privilege}{column} on {kind}{schema}.{relation} to \"{role}\";"));
    }
    if missing.is_empty() {
        report.ok(CHECK, format!("role {role} has all rights that the relay needs"));
    } else {
        report.fail(
            CHECK,
            format!("role {role} lacks {} of the relay's rights", missing.len()),
            format!(
                "{} (`pillarbox migrate outbox --print-grants --role relay={role}` prints them all; if the relay runs as another role, give it with --role)",
                missing.join(" ")
            ),
        );
    }
}
