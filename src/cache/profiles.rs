use std::{io::Read, sync::Arc};

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{
    Cache, CacheError,
    index::{self, now},
    rows,
    store::Command,
};

/// Profiles that are kept; the oldest goes first.
const KEPT: u32 = 256;
/// Part of the quota that they may take together, and what they may take of any.
const PART: u64 = 32;
const MIN_BYTES: u64 = 1 << 20;
/// The longest text of one, in bytes.
const MAX_TEXT: u64 = 64 << 20;
/// Of zstd.
const LEVEL: i32 = 3;

/// What a mount has read, as text. The cache does not look into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredProfile {
    /// The tree that it is of.
    pub tree: String,
    /// The name by which that was mounted.
    pub name: Option<String>,
    /// Seconds since 1970.
    pub recorded_at: u64,
    pub text: String,
}

/// One that is to be kept.
pub(super) struct NewProfile {
    tree: String,
    name: Option<String>,
    /// Its text, by zstd.
    compressed: Vec<u8>,
}

impl Cache {
    /// The profile of a tree, or the latest of a tree that was mounted by the same name.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub async fn profile(
        self: &Arc<Self>,
        tree: String,
        name: Option<String>,
    ) -> Result<Option<StoredProfile>, CacheError> {
        self.query(move |connection| {
            let own = "SELECT tree, name, recorded_at, profile FROM profiles WHERE tree = ?";
            let own = connection.prepare_cached(own)?;
            let by_name = "SELECT tree, name, recorded_at, profile FROM profiles WHERE name = ? \
                           ORDER BY recorded_at DESC LIMIT 1";
            match (one(own, &tree)?, name) {
                (Some(profile), _) => Ok(Some(profile)),
                (None, Some(name)) => one(connection.prepare_cached(by_name)?, &name),
                (None, None) => Ok(None),
            }
        })
        .await
    }

    /// Keeps a profile, as text, in place of what was kept of its tree. Written in a while, by the writer.
    pub fn keep_profile(&self, tree: String, name: Option<String>, text: &str) {
        // Here, and not while the index is locked.
        match zstd::encode_all(text.as_bytes(), LEVEL) {
            Ok(compressed) => self.send(Command::Row(rows::Row::Profile(NewProfile {
                tree,
                name,
                compressed,
            }))),
            Err(error) => tracing::warn!(%error, tree, "the profile cannot be kept"),
        }
    }
}

fn one(
    mut statement: rusqlite::CachedStatement<'_>,
    key: &str,
) -> rusqlite::Result<Option<StoredProfile>> {
    let row = statement.query_row([key], |row: &Row<'_>| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
    });
    let found: Option<(String, Option<String>, i64, Vec<u8>)> = row.optional()?;
    // One that cannot be read is none: it will be recorded again.
    Ok(found.and_then(|(tree, name, recorded_at, profile)| {
        let mut text = String::new();
        let decoder = zstd::Decoder::new(&profile[..]).ok()?;
        decoder.take(MAX_TEXT).read_to_string(&mut text).ok()?;
        Some(StoredProfile {
            tree,
            name,
            recorded_at: u64::try_from(recorded_at).unwrap_or_default(),
            text,
        })
    }))
}

/// Keeps a profile, unless it takes more by itself than all may together.
pub(super) fn insert(connection: &Connection, profile: &NewProfile) -> rusqlite::Result<()> {
    let quota = index::meta(connection, "quota")?.unwrap_or_default();
    let most = (quota / PART).max(MIN_BYTES);
    if profile.compressed.len() as u64 > most {
        tracing::warn!(
            tree = profile.tree,
            bytes = profile.compressed.len(),
            most,
            "the profile is too large to be kept (see --cache-size)"
        );
        return Ok(());
    }
    connection
        .prepare_cached(
            "INSERT INTO profiles (tree, name, recorded_at, profile) VALUES (?, ?, ?, ?) \
             ON CONFLICT (tree) DO UPDATE SET name = coalesce(excluded.name, name), \
             recorded_at = excluded.recorded_at, profile = excluded.profile",
        )?
        .execute(params![
            profile.tree,
            profile.name,
            i64::try_from(now()).unwrap_or(i64::MAX),
            profile.compressed
        ])?;
    connection
        .prepare_cached(
            "DELETE FROM profiles WHERE tree IN (SELECT tree FROM (SELECT tree, \
             row_number() OVER newest AS number, sum(length(profile)) OVER newest AS bytes \
             FROM profiles WINDOW newest AS (ORDER BY recorded_at DESC, tree)) \
             WHERE number > ? OR bytes > ?)",
        )?
        .execute(params![KEPT, index::signed(most)?])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// They took more than half of the quota, and all directories went for them.
    #[test]
    fn they_take_a_part_of_the_quota() {
        let connection = index::in_memory(usize::MAX);
        index::set_meta(&connection, "quota", 64 << 20).unwrap();
        let insert_one = |number: u32, bytes: usize| {
            let profile = NewProfile {
                tree: number.to_string(),
                name: None,
                compressed: vec![1; bytes],
            };
            insert(&connection, &profile).unwrap();
            // In the order in which they came.
            let update = "UPDATE profiles SET recorded_at = ?1 WHERE tree = ?1";
            connection.execute(update, [number]).unwrap();
        };
        let kept = || -> Vec<u32> {
            let query = "SELECT recorded_at FROM profiles ORDER BY recorded_at";
            let mut statement = connection.prepare(query).unwrap();
            let rows = statement.query_map([], |row| row.get(0)).unwrap();
            rows.collect::<rusqlite::Result<_>>().unwrap()
        };
        for number in 0..10 {
            insert_one(number, 500 << 10);
        }
        assert_eq!(kept(), [6, 7, 8, 9]);
        insert_one(10, 3 << 20);
        assert_eq!(kept(), [6, 7, 8, 9], "one is too large by itself");
        for number in 20..320 {
            insert_one(number, 10);
        }
        assert_eq!(kept(), (64..320).collect::<Vec<_>>());
    }
}
