//! The demo's upstream: verifies the assertion and says what it was told.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use jsonwebtoken::jwk::{AlgorithmParameters, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use parking_lot::Mutex;

use crate::config;
use crate::dial::Dialer;
use crate::fetch::{self, ClearText, Url};

/// How long to wait for the JWKS.
const JWKS_WAIT: Duration = Duration::from_secs(5);
/// Largest JWKS the demo reads.
const JWKS_BYTES_MAX: usize = 64 * 1024;

/// What the demo needs to verify an assertion.
#[derive(Debug)]
pub struct DemoUpstream {
    jwks_url: Url,
    header: String,
    issuer: String,
    audiences: Vec<String>,
    dialer: Dialer,
    jwks: Mutex<Option<Arc<JwkSet>>>,
}

impl DemoUpstream {
    /// Verifies against the JWKS at `jwks_url`, fetched when it is first needed.
    ///
    /// # Errors
    /// When TLS cannot be set up, which the demo does not even use.
    pub fn new(jwks_url: Url, assertion: &config::Assertion, audiences: Vec<String>) -> std::io::Result<Arc<Self>> {
        let dialer = Dialer::new(None, &[])?;
        let (header, issuer) = (assertion.header.to_ascii_lowercase(), assertion.issuer.clone());
        Ok(Arc::new(Self { jwks_url, header, issuer, audiences, dialer, jwks: Mutex::new(None) }))
    }

    async fn claims(&self, headers: &HeaderMap) -> Result<serde_json::Value, String> {
        let token = headers.get(&self.header).and_then(|value| value.to_str().ok()).ok_or("the request carries no assertion")?;
        let key_id = jsonwebtoken::decode_header(token).map_err(|error| error.to_string())?.kid.ok_or("the assertion names no key")?;
        let jwks = self.jwks().await?;
        let jwk = jwks.find(&key_id).ok_or("the assertion's key is not published")?;
        let algorithm = match jwk.algorithm {
            AlgorithmParameters::OctetKeyPair(_) => Algorithm::EdDSA,
            _ => Algorithm::ES256,
        };
        let mut validation = Validation::new(algorithm);
        validation.set_audience(&self.audiences);
        validation.set_issuer(&[&self.issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        let key = DecodingKey::from_jwk(jwk).map_err(|error| error.to_string())?;
        jsonwebtoken::decode(token, &key, &validation).map(|token| token.claims).map_err(|error| error.to_string())
    }

    async fn jwks(&self) -> Result<Arc<JwkSet>, String> {
        if let Some(known) = self.jwks.lock().clone() {
            return Ok(known);
        }
        let request = fetch::Request {
            method: Method::GET,
            url: self.jwks_url.clone(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            deadline: JWKS_WAIT,
            answer_bytes_max: JWKS_BYTES_MAX,
            clear_text: ClearText::LoopbackOnly,
        };
        let answer = fetch::fetch(&self.dialer, request).await.map_err(|error| error.to_string())?;
        let jwks: Arc<JwkSet> = Arc::new(serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?);
        *self.jwks.lock() = Some(jwks.clone());
        Ok(jwks)
    }
}

/// Answers any request with the claims of its assertion.
pub async fn answer<B>(upstream: Arc<DemoUpstream>, request: Request<B>) -> Response<Full<Bytes>> {
    let (status, body) = match upstream.claims(request.headers()).await {
        Ok(claims) => (
            StatusCode::OK,
            serde_json::json!({
                "message": "The demo upstream verified the gateway's signature. This is what it was told.",
                "method": request.method().as_str(),
                "path": request.uri().path(),
                "firm_id": claims.get("firm_id"),
                "permissions": claims.get("permissions"),
                "claims": claims,
            }),
        ),
        Err(problem) => {
            (StatusCode::UNAUTHORIZED, serde_json::json!({ "message": format!("The demo upstream believes only the gateway: {problem}.") }))
        }
    };
    let text = serde_json::to_string_pretty(&body).expect("JSON values serialise");
    let mut response = Response::new(Full::from(text + "\n"));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
