//! Roles: named sets of scopes. Three are built in; others are an operator's own.

use serde::Serialize;
use serde_json::json;
use sqlx::{AnyConnection, FromRow};

use super::events::Event;
use super::{Store, StoreError, changed};
use crate::claims::Scope;
use crate::header::is_kid;

/// Roles there may be: an operator reads them all.
const ROLES_MAX: u64 = 200;

/// A role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// What its keys may do.
    pub scopes: Vec<Scope>,
    /// Whether it is one of the three that can't be changed.
    pub builtin: bool,
}

#[derive(FromRow)]
struct Row {
    name: String,
    scopes: String,
    builtin: i64,
}

impl Row {
    fn into_role(self) -> Role {
        Role { name: self.name, scopes: parse(&self.scopes), builtin: self.builtin == 1 }
    }
}

/// Scopes as stored. A name that this version does not know gives nothing.
pub(super) fn parse(scopes: &str) -> Vec<Scope> {
    scopes.split(' ').filter_map(|name| name.parse().ok()).collect()
}

impl Store {
    /// All roles by name.
    pub async fn roles(&self) -> Result<Vec<Role>, StoreError> {
        let rows: Vec<Row> =
            sqlx::query_as("SELECT name, scopes, builtin FROM roles ORDER BY name").fetch_all(&self.pool).await?;
        Ok(rows.into_iter().map(Row::into_role).collect())
    }

    /// Creates a role.
    pub async fn create_role(&self, name: &str, scopes: &[Scope], actor: &str) -> Result<Role, StoreError> {
        if !is_kid(name) {
            return Err(StoreError::BadSetting(
                "a role's name is 1 to 64 characters of A-Z, a-z, 0-9, '-', '_'".into(),
            ));
        }
        let mut transaction = self.write().await?;
        if find(&mut transaction, name).await?.is_some() {
            return Err(StoreError::RoleExists(name.to_owned()));
        }
        let there: i64 = sqlx::query_scalar("SELECT count(*) FROM roles").fetch_one(&mut *transaction).await?;
        if super::count(there)? >= ROLES_MAX {
            return Err(StoreError::TooMany { what: "roles", max: ROLES_MAX, remedy: "delete one that no key has" });
        }
        let role = Role { name: name.to_owned(), scopes: distinct(scopes), builtin: false };
        sqlx::query("INSERT INTO roles (name, scopes, builtin) VALUES ($1, $2, 0)")
            .bind(name)
            .bind(Scope::join(&role.scopes))
            .execute(&mut *transaction)
            .await?;
        let event = Event { actor, action: "role.create", subject: name, after: Some(json!(role)), ..Event::default() };
        event.record(&mut transaction).await?;
        transaction.commit().await?;
        Ok(role)
    }

    /// Gives a role other scopes, for its keys' next tokens.
    pub async fn set_role(&self, name: &str, scopes: &[Scope], actor: &str) -> Result<Role, StoreError> {
        let mut transaction = self.write().await?;
        let before = changeable(&mut transaction, name).await?;
        let role = Role { scopes: distinct(scopes), ..before.clone() };
        sqlx::query("UPDATE roles SET scopes = $1 WHERE name = $2")
            .bind(Scope::join(&role.scopes))
            .bind(name)
            .execute(&mut *transaction)
            .await?;
        let (before, after) = (Some(json!(before)), Some(json!(role)));
        let event = Event { actor, action: "role.set", subject: name, before, after, ..Event::default() };
        event.record(&mut transaction).await?;
        changed(&mut transaction).await?;
        transaction.commit().await?;
        Ok(role)
    }

    /// Deletes a role that no key has.
    pub async fn delete_role(&self, name: &str, actor: &str) -> Result<(), StoreError> {
        let mut transaction = self.write().await?;
        let before = changeable(&mut transaction, name).await?;
        let used = sqlx::query("SELECT 1 FROM api_keys WHERE role = $1 LIMIT 1").bind(name);
        if used.fetch_optional(&mut *transaction).await?.is_some() {
            return Err(StoreError::RoleInUse(name.to_owned()));
        }
        sqlx::query("DELETE FROM roles WHERE name = $1").bind(name).execute(&mut *transaction).await?;
        let before = Some(json!(before));
        let event = Event { actor, action: "role.delete", subject: name, before, ..Event::default() };
        event.record(&mut transaction).await?;
        Ok(transaction.commit().await?)
    }
}

fn distinct(scopes: &[Scope]) -> Vec<Scope> {
    Scope::ALL.into_iter().filter(|scope| scopes.contains(scope)).collect()
}

async fn find(connection: &mut AnyConnection, name: &str) -> Result<Option<Role>, StoreError> {
    let row: Option<Row> = sqlx::query_as("SELECT name, scopes, builtin FROM roles WHERE name = $1")
        .bind(name)
        .fetch_optional(connection)
        .await?;
    Ok(row.map(Row::into_role))
}

async fn changeable(connection: &mut AnyConnection, name: &str) -> Result<Role, StoreError> {
    match find(connection, name).await? {
        None => Err(StoreError::NoRole(name.to_owned())),
        Some(role) if role.builtin => Err(StoreError::RoleBuiltin(name.to_owned())),
        Some(role) => Ok(role),
    }
}
