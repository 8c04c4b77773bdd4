use std::{collections::BTreeMap, sync::Arc, time::Instant};

use super::{Cache, CacheError, flights::Flights, index, rows::Row, store::Command};
use crate::{
    model::{Name, Node, OutputHash, StorePath},
    remote::{PathInfo, Patience},
};

/// Questions about names that are under way, so that those who ask the same wait for one answer.
#[derive(Default)]
pub(super) struct NameFlights {
    roots: Flights<Name, Node>,
    all_roots: Flights<(), Vec<(Name, Node)>>,
    path_infos: Flights<(OutputHash, Option<StorePath>), PathInfo>,
    all_path_infos: Flights<(), Vec<PathInfo>>,
}

// What changes: names, and what stores say of Nix store paths. The remotes know, and the index remembers what they said
// last.
impl Cache {
    /// The node that a name stands for: as the remote says, or where no remote answers, as it said last.
    ///
    /// # Errors
    /// When there is no such name, or no remote answers and the name was never asked for.
    pub async fn root(self: &Arc<Self>, name: &Name) -> Result<Node, CacheError> {
        let (cache, wanted) = (Arc::clone(self), name.clone());
        let ask = |_| async move { cache.ask_root(&wanted).await };
        self.names.roots.join(name.clone(), true, ask).await
    }

    async fn ask_root(self: &Arc<Self>, name: &Name) -> Result<Node, CacheError> {
        let started = Instant::now();
        let mut answer = self.remote.root(name, Patience::Once).await;
        if let Err(error) = &answer
            && !error.is_not_found()
        {
            let (remote, wanted) = (self.remote_name(), name.clone());
            let offline = self.remote.is_offline();
            let known =
                self.look_up(move |connection| index::name(connection, &remote, &wanted, offline));
            if let Some(node) = known.await? {
                if !offline {
                    tracing::info!(%name, %error, "the name is taken from the cache");
                }
                return Ok(node);
            }
            if error.is_transient() {
                answer = self.remote.root(name, Patience::Since(started)).await;
            }
        }
        match answer {
            Ok(node) => {
                self.send(Command::Row(Row::Name(
                    self.remote_name(),
                    name.clone(),
                    node.clone(),
                )));
                Ok(node)
            }
            Err(error) => {
                if error.is_not_found() {
                    self.send(Command::Row(Row::ForgetName(
                        self.remote_name(),
                        name.clone(),
                    )));
                }
                Err(error.into())
            }
        }
    }

    /// All names, as [`Cache::root`] says of one.
    ///
    /// # Errors
    /// When no remote answers and no name is known.
    pub async fn roots(self: &Arc<Self>) -> Result<Vec<(Name, Node)>, CacheError> {
        let cache = Arc::clone(self);
        let ask = |_| async move { cache.ask_roots().await };
        self.names.all_roots.join((), true, ask).await
    }

    async fn ask_roots(self: &Arc<Self>) -> Result<Vec<(Name, Node)>, CacheError> {
        let (remote, offline) = (self.remote_name(), self.remote.is_offline());
        let known = self.query(move |connection| index::names(connection, &remote, offline));
        match self.remote.roots().await {
            Ok((roots, complete)) => {
                for (name, node) in &roots {
                    self.send(Command::Row(Row::Name(
                        self.remote_name(),
                        name.clone(),
                        node.clone(),
                    )));
                }
                if complete {
                    return Ok(roots);
                }
                // Those of a remote that is away are what it said last.
                let mut all: BTreeMap<_, _> = known.await?.into_iter().collect();
                all.extend(roots);
                Ok(all.into_iter().collect())
            }
            Err(error) => {
                let known = known.await?;
                if known.is_empty() && !offline {
                    return Err(error.into());
                }
                if !offline {
                    tracing::info!(%error, "the names are taken from the cache");
                }
                Ok(known)
            }
        }
    }

    /// What is known of a store path: from the index where it has it, since a store path's content does not change.
    ///
    /// # Errors
    /// When neither the index nor a remote knows it.
    pub async fn path_info(self: &Arc<Self>, hash: OutputHash) -> Result<PathInfo, CacheError> {
        self.find_path_info(hash, None).await
    }

    /// The node of a store path. Its whole name counts: whoever has the hash of one path must not be shown another.
    ///
    /// # Errors
    /// As [`Cache::path_info`].
    pub async fn store_path(self: &Arc<Self>, path: &StorePath) -> Result<Node, CacheError> {
        let info = self.find_path_info(path.hash(), Some(path.clone())).await?;
        Ok(info.node)
    }

    async fn find_path_info(
        self: &Arc<Self>,
        hash: OutputHash,
        expected: Option<StorePath>,
    ) -> Result<PathInfo, CacheError> {
        let known = self.look_up(move |connection| index::path_info(connection, hash));
        // One with another name may be what a remote said that was wrong.
        let fits = |info: &PathInfo| expected.as_ref().is_none_or(|path| *path == info.path);
        if let Some(info) = known.await?.filter(fits) {
            return Ok(info);
        }
        let (cache, wanted) = (Arc::clone(self), expected.clone());
        let ask = |_| async move {
            let asked = cache.remote.path_info(hash, wanted, Patience::Policy);
            let info = asked.await?;
            cache.send(Command::Row(Row::PathInfo(info.clone())));
            Ok(info)
        };
        let key = (hash, expected);
        self.names.path_infos.join(key, true, ask).await
    }

    /// All store paths that the remotes list, or where none answers, those that are known here.
    ///
    /// # Errors
    /// When no remote answers and none is known.
    pub async fn path_infos(self: &Arc<Self>) -> Result<Vec<PathInfo>, CacheError> {
        let cache = Arc::clone(self);
        let ask = |_| async move { cache.ask_path_infos().await };
        self.names.all_path_infos.join((), true, ask).await
    }

    async fn ask_path_infos(self: &Arc<Self>) -> Result<Vec<PathInfo>, CacheError> {
        match self.remote.path_infos().await {
            Ok(infos) => Ok(infos),
            Err(error) => {
                let known = self.query(index::path_infos).await?;
                if known.is_empty() {
                    return Err(error.into());
                }
                tracing::info!(%error, "the store paths are taken from the cache");
                Ok(known)
            }
        }
    }

    fn remote_name(&self) -> Arc<str> {
        self.remote.address().into()
    }
}
