//! The admin listener's routes, and what they share.
//!
//! | call | needs | file |
//! |---|---|---|
//! | `POST /v1/keys` | edit | `keys.rs` |
//! | `GET /v1/keys`, `GET /v1/keys/{id}`, `POST /v1/keys/lookup` | view | `keys.rs` |
//! | `POST /v1/keys/{id}/revoke` | edit | `keys.rs` |
//! | `GET /v1/activity` | view | `activity.rs` |
//! | `PUT /v1/users/{id}` | edit | `users.rs` |
//! | `GET /v1/whoami` | any valid token | `whoami.rs` |
//! | `POST /v1/session`, `DELETE /v1/session` | a token in the body; none | `session.rs` |
//! | `GET /openapi.json`, `GET /`, `GET /page/{file}` | none | `page.rs` |

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::body::Body;
use axum::response::Response;
use axum::{Router, middleware};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::SignInLinks;
use super::followers::Followers;
use super::{Settings, activity, guard, keys, page, session, users, whoami};
use crate::coherence::Coherence;
use crate::domain::KeyNamespace;
use crate::metrics::Metrics;
use crate::store::Store;
use crate::tasks::Tasks;

/// What the admin listener works with.
#[derive(Clone)]
pub struct AdminState {
    /// Where keys and the log are.
    pub store: Arc<dyn Store>,
    /// Makes changes known everywhere before they are answered.
    pub coherence: Arc<Coherence>,
    /// The form of keys.
    pub namespace: KeyNamespace,
    /// What a reload changes.
    pub settings: Arc<ArcSwap<Settings>>,
    /// Counts and times.
    pub metrics: Metrics,
    /// The group that changes run in, so that none is left half done when its caller goes away.
    pub tasks: Tasks,
    /// The sign-in links that this process made.
    pub links: Arc<SignInLinks>,
    /// When it fires, followers of the log are let go.
    pub draining: CancellationToken,
}

/// The socket address of the caller, as a request's extension.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer(pub SocketAddr);

/// The state as handlers share it.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) state: AdminState,
    pub(crate) followers: Followers,
}

impl std::ops::Deref for Shared {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Inner {
    /// The settings in force; a request keeps those it began with.
    pub(crate) fn settings(&self) -> Arc<Settings> {
        self.state.settings.load_full()
    }
}

/// The routes with their documentation.
pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(keys::create, keys::list))
        .routes(routes!(keys::lookup))
        .routes(routes!(keys::show))
        .routes(routes!(keys::revoke))
        .routes(routes!(activity::read))
        .routes(routes!(whoami::whoami))
        .routes(routes!(users::tell))
        .routes(routes!(session::begin, session::end))
        .routes(routes!(page::openapi))
        .routes(routes!(page::index))
        .route("/page/{file}", axum::routing::get(page::file))
}

/// The whole admin API. Each request should carry its [`Peer`] as an extension.
pub fn service(state: AdminState) -> Router {
    let shared = Shared(Arc::new(Inner { state, followers: Followers::default() }));
    let (router, _) = routes().split_for_parts();
    router.layer(middleware::from_fn_with_state(shared.clone(), guard::guard)).with_state(shared)
}

/// The same as a function from a request and its peer to an answer, for an accept loop of one's own. It never
/// fails, and a panic within it is answered with 500.
pub fn handler<B>(
    state: AdminState,
) -> impl Fn(http::Request<B>, SocketAddr) -> futures_util::future::BoxFuture<'static, Response<Body>> + Clone + Send + Sync
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    let router = service(state);
    move |mut request, peer| {
        request.extensions_mut().insert(Peer(peer));
        Box::pin(answer(router.clone(), request))
    }
}

async fn answer<B>(router: Router, request: http::Request<B>) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

#[cfg(test)]
mod tests;
