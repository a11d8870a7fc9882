//! The rights that a role needs and lacks.

use pillarbox_relay::status;
use sqlx::{PgConnection, Row};

use super::{Doctor, Report};
use pillarbox_store::grants::{self, Duty};

/// Whose rights are checked.
pub(super) struct Whose {
    pub(super) check: &'static str,
    pub(super) duty: Duty,
    /// What `pillarbox migrate` calls the tables.
    pub(super) tables: &'static str,
}

/// The relay's rights on the outbox.
pub(super) const RELAY: Whose =
    Whose { check: "outbox.privileges", duty: Duty::Relay, tables: "outbox" };

/// Compares the role's rights with those that `pillarbox migrate --print-grants` grants for its duty.
pub(super) async fn examine(
    doctor: &Doctor,
    connection: &mut PgConnection,
    report: &mut Report,
    Whose { check, duty, tables }: Whose,
) {
    let name = duty.as_str();
    let schema = &doctor.config.schema;
    let role = match &doctor.role {
        Some(role) => role.clone(),
        None => {
            let current =
                sqlx::query_scalar("select current_user::text").fetch_one(&mut *connection);
            match report.got(check, current).await {
                Some(role) => role,
                None => return,
            }
        }
    };
    let mut needs = grants::needs(duty);
    let mut missing = Vec::new();
    let usage = sqlx::query_scalar("select has_schema_privilege($1, $2, 'usage')")
        .bind(&role)
        .bind(schema)
        .fetch_one(&mut *connection);
    match report.got(check, usage).await {
        Some(true) if duty == Duty::Relay => {
            // The table may have another sequence than the one that it was made with.
            let sequence = status::sequence_name(&mut *connection, schema);
            if let Some(Some(name)) = report.got(check, sequence).await
                && let Some((_, name)) = name.split_once('.')
            {
                let name = name.trim_matches('"');
                for need in needs.iter_mut().filter(|need| need.relation == "outbox_position_seq") {
                    name.clone_into(&mut need.relation);
                }
            }
        }
        Some(true) => {}
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
    let Some(denied) = report.got(check, denied).await else {
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
        report.ok(check, format!("role {role} has all rights that the {name} needs"));
    } else {
        report.fail(
            check,
            format!("role {role} lacks {} of the {name}'s rights", missing.len()),
            format!(
                "{} (`pillarbox migrate {tables} --print-grants --role {name}={role}` prints them all; if the {name} runs as another role, give it with --role)",
                missing.join(" ")
            ),
        );
    }
}
