//! One kind: listed, then watched, for as long as somebody listens.

use std::{pin::pin, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow};
use kube::{
    Client,
    api::{ListParams, WatchParams},
    core::{Request, WatchEvent},
};
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_stream::StreamExt as _;

use super::{
    Contacts, Update,
    contacts::Contact,
    is_missing, jittered, limits,
    resources::{Resource, number},
    trim::{self, Seen},
};
use crate::kubernetes::Failure;

/// Nobody listens any more.
struct Unwanted;

/// Why a watch is over.
enum Over {
    /// It goes on from where it was.
    Resume,
    /// What happened since is not known any more: everything is listed again.
    Relist,
    Unwanted,
}

#[derive(Deserialize)]
struct List {
    metadata: ListMeta,
    #[serde(default)]
    items: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    #[serde(default)]
    resource_version: String,
    #[serde(default, rename = "continue")]
    more: String,
}

struct Reflector {
    client: Client,
    resource: Resource,
    contacts: Arc<Contacts>,
    found: mpsc::Sender<Update>,
    retry: Duration,
    /// How often in a row the kind was not served.
    unserved: u32,
    /// Something was sent.
    listed: bool,
    /// What went wrong last was said, and is not over.
    away: bool,
}

pub(super) async fn run(client: Client, resource: Resource, contacts: Arc<Contacts>, found: mpsc::Sender<Update>) {
    let retry = limits::RETRY_FIRST;
    let mut reflector = Reflector { client, resource, contacts, found, retry, unserved: 0, listed: false, away: false };
    while let Ok(()) = reflector.round().await {}
}

impl Reflector {
    /// From a list to the moment that another is needed.
    async fn round(&mut self) -> Result<(), Unwanted> {
        let served = match timeout(limits::CALL, self.resource.served(&self.client)).await {
            Ok(Ok(served)) => served,
            Ok(Err(error)) => {
                return self.failed("cannot tell whether the kind is served", Failure(error).into()).await;
            }
            Err(_) => return self.failed("cannot tell whether the kind is served", anyhow!("no answer")).await,
        };
        self.contact().heard();
        let Some(api) = served else { return self.is_not_served().await };
        let (objects, mut version) = match self.list(api).await {
            Ok(listed) => listed,
            Err(error) if error.downcast_ref().is_some_and(|Failure(error)| is_missing(error)) => {
                return self.is_not_served().await;
            }
            Err(error) => return self.failed("cannot list", error).await,
        };
        if !self.listed || self.unserved > 0 {
            let kind = self.resource.kind.as_str();
            tracing::debug!(kind, api, objects = objects.len(), "listed");
        }
        self.unserved = 0;
        self.send(Update::Listed(self.resource.kind, objects, number(Some(&version)))).await?;
        let mut refused = 0;
        loop {
            let began = Instant::now();
            let over = self.watch(api, &mut version).await;
            let lasted = began.elapsed() >= limits::WATCH_LASTED;
            if lasted {
                self.retry = limits::RETRY_FIRST;
                refused = 0;
            }
            match over {
                Ok(Over::Unwanted) => return Err(Unwanted),
                Ok(Over::Resume) if lasted => {}
                Ok(Over::Resume) => self.pause().await?,
                Ok(Over::Relist) => return self.pause().await,
                // Custom kinds go, and versions of them.
                Err(error) if error.downcast_ref().is_some_and(|Failure(error)| is_missing(error)) => {
                    return self.failed("cannot watch any more", error).await;
                }
                Err(error) => {
                    let answered = matches!(error.downcast_ref(), Some(Failure(kube::Error::Api(_))));
                    refused += u32::from(answered);
                    self.failed("cannot watch", error).await?;
                    if refused >= limits::REFUSALS_UNTIL_RELIST {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Once it is sure, there are no objects of the kind.
    async fn is_not_served(&mut self) -> Result<(), Unwanted> {
        self.unserved = self.unserved.saturating_add(1);
        if self.unserved < limits::LOOKS_UNTIL_GONE {
            // At the start everybody waits for the answer.
            return self.rest(jittered(if self.listed { limits::LOOK_AGAIN } else { limits::LOOK_AT_START })).await;
        }
        if self.unserved == limits::LOOKS_UNTIL_GONE {
            tracing::info!(
                kind = self.resource.kind.as_str(),
                group = self.resource.group,
                "the API server has no such kind"
            );
            self.send(Update::Listed(self.resource.kind, Vec::new(), 0)).await?;
        }
        self.rest(jittered(limits::LOOK_AGAIN)).await
    }

    async fn list(&self, api: &str) -> anyhow::Result<(Vec<Seen>, String)> {
        let mut objects = Vec::new();
        let mut params = ListParams { limit: Some(limits::PAGE), ..ListParams::default() };
        loop {
            let request = Request::new(self.resource.path(api)).list(&params)?;
            let page: List = timeout(limits::CALL, self.client.request(request))
                .await
                .context("no answer in time")?
                .map_err(Failure)?;
            objects.extend(page.items.into_iter().filter_map(|item| self.seen(api, item)));
            if page.metadata.more.is_empty() {
                return Ok((objects, page.metadata.resource_version));
            }
            params.continue_token = Some(page.metadata.more);
        }
    }

    /// From `version`, which goes on with what is seen.
    async fn watch(&mut self, api: &str, version: &mut String) -> anyhow::Result<Over> {
        let seconds = u32::try_from(jittered(limits::WATCH).as_secs()).unwrap_or(u32::MAX);
        let params = WatchParams { timeout: Some(seconds), bookmarks: true, ..WatchParams::default() };
        let request = Request::new(self.resource.path(api)).watch(&params, version)?;
        let events = timeout(limits::CALL, self.client.request_events::<Value>(request)).await;
        let events = match events.context("no answer in time")? {
            Ok(events) => events,
            Err(error) if is_gone(&error) => return Ok(Over::Relist),
            Err(error) => return Err(Failure(error).into()),
        };
        if std::mem::take(&mut self.away) {
            tracing::info!(kind = self.resource.kind.as_str(), "watched again");
        }
        self.contact().heard();
        let mut events = pin!(events);
        loop {
            let event = tokio::select! {
                event = timeout(limits::WATCH_SILENCE, events.next()) => event,
                () = self.found.closed() => return Ok(Over::Unwanted),
            };
            if matches!(event, Ok(Some(Ok(_)))) {
                self.contact().heard();
            }
            let update = match event {
                Err(_) | Ok(None) => return Ok(Over::Resume),
                Ok(Some(Err(error))) if is_gone(&error) => return Ok(Over::Relist),
                Ok(Some(Err(error))) => return Err(Failure(error).into()),
                Ok(Some(Ok(WatchEvent::Error(status)))) if status.code == 410 => return Ok(Over::Relist),
                Ok(Some(Ok(WatchEvent::Error(status)))) => return Err(Failure(kube::Error::Api(status)).into()),
                Ok(Some(Ok(WatchEvent::Bookmark(bookmark)))) => {
                    *version = bookmark.metadata.resource_version;
                    continue;
                }
                Ok(Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)))) => {
                    note_version(version, &object);
                    let file = trim::file(self.resource.kind, &object);
                    let seen = self.seen(api, object).map(|seen| Update::Is(self.resource.kind, seen));
                    // It may have left the mesh.
                    seen.or_else(|| Some(Update::IsNot(self.resource.kind, file?, number(Some(version)))))
                }
                Ok(Some(Ok(WatchEvent::Deleted(object)))) => {
                    note_version(version, &object);
                    let file = trim::file(self.resource.kind, &object);
                    file.map(|file| Update::IsNot(self.resource.kind, file, number(Some(version))))
                }
            };
            let Some(update) = update else { continue };
            if self.found.send(update).await.is_err() {
                return Ok(Over::Unwanted);
            }
        }
    }

    fn seen(&self, api: &str, object: Value) -> Option<Seen> {
        trim::seen(self.resource.kind, &self.resource.api_version(api), object)
    }

    async fn send(&mut self, update: Update) -> Result<(), Unwanted> {
        self.listed = true;
        self.found.send(update).await.map_err(|_| Unwanted)
    }

    fn contact(&self) -> &Contact {
        self.contacts.of(self.resource.kind)
    }

    async fn failed(&mut self, what: &'static str, error: anyhow::Error) -> Result<(), Unwanted> {
        let stays = if self.listed { "what is known stays in force" } else { "nothing is served before it is read" };
        let (kind, error) = (self.resource.kind.as_str(), format!("{error:#}"));
        self.contact().failed();
        // Once for each time that the API server is away.
        if std::mem::replace(&mut self.away, true) {
            tracing::debug!(kind, error, "{what}, still");
        } else {
            tracing::warn!(kind, error, "{what}: {stays}");
        }
        self.pause().await
    }

    /// Longer from time to time.
    async fn pause(&mut self) -> Result<(), Unwanted> {
        let rest = jittered(self.retry);
        self.retry = (self.retry * 2).min(limits::RETRY_LAST);
        self.rest(rest).await
    }

    async fn rest(&self, how_long: Duration) -> Result<(), Unwanted> {
        tokio::select! {
            () = sleep(how_long) => Ok(()),
            () = self.found.closed() => Err(Unwanted),
        }
    }
}

fn note_version(version: &mut String, object: &Value) {
    if let Some(now) = object.pointer("/metadata/resourceVersion").and_then(Value::as_str) {
        now.clone_into(version);
    }
}

/// The version to go on from is too old.
fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 410 || status.reason == "Expired")
}
