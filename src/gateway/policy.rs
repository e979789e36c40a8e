//! Step 5: what this key may ask for (K9, K10, K11).
//!
//! The first route in the operator's order that matches decides; `index` finds it. Matching looks at the very segments that
//! will be forwarded, percent-decoded; `target` has refused every path that could be read in two ways. A deny rule
//! covers a little more than it says: a trailing slash, a `;parameter` or an extension does not lead around it.

mod index;
mod pattern;

use std::sync::Arc;

use http::Method;
use http::uri::PathAndQuery;

use crate::config;
use crate::domain::{Rejection, RouteId};
use crate::metrics::{Metrics, RouteMetrics};

use self::index::Index;
use self::pattern::{Breadth, Pattern};
use super::admit::Principal;
use super::forward::{Forwarder, Share, Upstream, Websocket};
use super::limit::Allowance;
use super::target::Target;

/// All routes, compiled.
#[derive(Debug)]
pub struct Policy {
    routes: Vec<Arc<Route>>,
    index: Index,
}

/// One rule.
#[derive(Debug)]
pub struct Route {
    id: RouteId,
    metrics: RouteMetrics,
    host: Option<Box<str>>,
    pattern: Pattern,
    methods: Option<Vec<Method>>,
    firm_query: Option<Box<str>>,
    require: Option<Box<str>>,
    action: RouteAction,
}

#[derive(Debug)]
enum RouteAction {
    Deny(Box<str>),
    Forward(Destination),
}

#[derive(Debug)]
struct Destination {
    upstream: Arc<Upstream>,
    name: Arc<str>,
    strip_prefix: Option<Box<str>>,
    websocket: Websocket,
    per_request: bool,
}

/// Why a configured route cannot be used; `config` checks the same, so an operator never sees this.
#[derive(Debug, thiserror::Error)]
#[error("route {0}: {1}")]
pub struct RouteError(String, String);

/// Evidence: this principal, whose request is counted, may do this on this route.
#[derive(Debug)]
pub struct Grant {
    principal: Principal,
    _counted: Allowance,
    upstream: Arc<Upstream>,
    upstream_name: Arc<str>,
    target: PathAndQuery,
    websocket: Websocket,
    per_request: bool,
}

impl Grant {
    /// Who asks.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// The firm's share of the upstream, for one more request.
    ///
    /// # Errors
    /// [`Rejection::UpstreamOverloaded`], for this firm alone.
    pub fn share(&self) -> Result<Share, Rejection> {
        self.upstream.share(self.principal.firm())
    }

    /// Where the request goes.
    pub fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    /// The upstream's name: the assertion's audience.
    pub fn upstream_name(&self) -> &Arc<str> {
        &self.upstream_name
    }

    /// Path and query as they are forwarded.
    pub fn target_as_forwarded(&self) -> &PathAndQuery {
        &self.target
    }

    /// Whether the route passes WebSocket upgrades on.
    pub fn websocket(&self) -> Websocket {
        self.websocket
    }

    /// Whether each request gets an assertion of its own.
    pub fn asserts_each_request(&self) -> bool {
        self.per_request
    }
}

impl Policy {
    /// Compiles the configured routes against the configured upstreams.
    ///
    /// # Errors
    /// [`RouteError`] for what `config` should have refused.
    pub fn new(
        routes: &[config::Route],
        assertion: &config::Assertion,
        forwarder: &Forwarder,
        metrics: &Metrics,
    ) -> Result<Self, RouteError> {
        let compile = |route| Route::compile(route, assertion, forwarder, metrics).map(Arc::new);
        let routes: Vec<Arc<Route>> = routes.iter().map(compile).collect::<Result<_, _>>()?;
        let mut index = Index::default();
        for (place, route) in routes.iter().enumerate() {
            index.add(place, route.host.as_deref(), &route.pattern, route.breadth());
        }
        Ok(Self { routes, index })
    }

    /// The first route that matches.
    ///
    /// # Errors
    /// [`Rejection::RouteUnknown`].
    pub fn route(&self, target: &Target, method: &Method) -> Result<&Arc<Route>, Rejection> {
        let place = self.index.first(target, |place| self.routes.get(place).is_some_and(|route| route.takes(method)));
        place.and_then(|place| self.routes.get(place)).ok_or(Rejection::RouteUnknown)
    }
}

impl Route {
    /// The name that records and metrics know it by.
    pub fn id(&self) -> &RouteId {
        &self.id
    }

    /// Where its requests are counted.
    pub fn metrics(&self) -> &RouteMetrics {
        &self.metrics
    }

    /// The upstream it leads to, if it leads anywhere.
    pub fn upstream_name(&self) -> Option<&Arc<str>> {
        match &self.action {
            RouteAction::Forward(destination) => Some(&destination.name),
            RouteAction::Deny(_) => None,
        }
    }

    /// Decides what becomes of an admitted and counted request that this route matches. A refusal gives nothing back: a
    /// tool that hammers a forbidden route is slowed (contract, "The key").
    ///
    /// # Errors
    /// [`Rejection::RouteDenied`], [`Rejection::FirmMismatch`] or [`Rejection::PermissionMissing`].
    pub fn grant(&self, principal: &Principal, counted: Allowance, target: &Target) -> Result<Grant, Rejection> {
        let destination = match &self.action {
            RouteAction::Deny(message) => return Err(Rejection::RouteDenied(message.clone())),
            RouteAction::Forward(destination) => destination,
        };
        if !self.names_only(principal.firm().as_str(), target) {
            return Err(Rejection::FirmMismatch);
        }
        if let Some(name) = self.require.as_deref().filter(|name| !principal.permissions().allows(name)) {
            return Err(Rejection::PermissionMissing(name.into()));
        }
        Ok(Grant {
            principal: principal.clone(),
            _counted: counted,
            upstream: destination.upstream.clone(),
            upstream_name: destination.name.clone(),
            target: destination.rewrite(target),
            websocket: destination.websocket,
            per_request: destination.per_request,
        })
    }

    fn compile(route: &config::Route, assertion: &config::Assertion, forwarder: &Forwarder, metrics: &Metrics) -> Result<Self, RouteError> {
        let wrong = |what: &str| RouteError(route.path.clone(), what.to_owned());
        let methods = route.methods.as_ref().map(|names| names.iter().map(|name| name.parse()).collect::<Result<Vec<Method>, _>>());
        let id = RouteId::new(route.name.as_deref().unwrap_or(&route.path));
        Ok(Self {
            metrics: metrics.of_route(id.as_str()),
            id,
            host: route.host.as_ref().map(|host| host.to_ascii_lowercase().into()),
            pattern: Pattern::compile(&route.path),
            methods: methods.transpose().map_err(|_| wrong("a method is not a token"))?,
            firm_query: route.firm_query.as_deref().map(Into::into),
            require: route.require.as_deref().map(Into::into),
            action: match (&route.deny, &route.upstream) {
                (Some(message), None) => RouteAction::Deny(message.trim_end_matches('.').into()),
                (None, Some(name)) => RouteAction::Forward(Destination {
                    upstream: forwarder.upstream(name).ok_or_else(|| wrong("its upstream does not exist"))?,
                    name: name.as_str().into(),
                    strip_prefix: route.strip_prefix.as_deref().map(Into::into),
                    websocket: if route.websocket { Websocket::Allowed } else { Websocket::Refused },
                    per_request: route.per_request.unwrap_or(assertion.per_request),
                }),
                _ => return Err(wrong("it needs either deny or upstream")),
            },
        })
    }

    fn breadth(&self) -> Breadth {
        match self.action {
            RouteAction::Deny(_) => Breadth::Deny,
            RouteAction::Forward(_) => Breadth::Exact,
        }
    }

    fn takes(&self, method: &Method) -> bool {
        self.methods.as_ref().is_none_or(|methods| methods.contains(method))
    }

    /// Whether every place in which the route names a firm names this one (K10).
    fn names_only(&self, firm: &str, target: &Target) -> bool {
        let in_query = || self.firm_query.as_deref().is_none_or(|name| target.query_values(name).all(|named| named == firm));
        self.pattern.names_only(firm, target) && in_query()
    }
}

impl Destination {
    fn rewrite(&self, target: &Target) -> PathAndQuery {
        match &self.strip_prefix {
            Some(prefix) => target.without_prefix(prefix),
            None => target.path_and_query().clone(),
        }
    }
}
