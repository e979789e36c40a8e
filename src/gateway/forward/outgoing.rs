//! A request as an upstream gets it, but for how its connection writes it down.
//!
//! Nothing is copied before a connection has been found: HTTP/1.1 writes method, target and fields straight into its
//! head, HTTP/2 makes them a message. What is the connection's to say, whichever it is: where the host stands and that a
//! body comes in chunks.

use http::header::{HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::uri::{PathAndQuery, Uri};
use http::{Method, Request, Version};
use http_body::Body;

use super::body::{DeclaredLength, RequestBody};
use super::headers::{self, Fields, Ours};
use super::send::Trouble;
use super::upgrade::Wish;
use crate::dial::{Endpoint, Scheme};

/// A request, whole but for its body.
pub(super) struct Outgoing<'a> {
    pub(super) method: &'a Method,
    pub(super) target: &'a PathAndQuery,
    pub(super) host: &'a HeaderValue,
    /// The client's fields, as they were received; or all fields, of a request of our own.
    pub(super) fields: &'a HeaderMap,
    pub(super) errand: Errand<'a>,
}

/// On whose behalf it is made.
pub(super) enum Errand<'a> {
    /// A client's, who may wish for a WebSocket.
    Forwarded(Ours<'a>, Option<&'a Wish>),
    /// The gateway's own; there is no body.
    Own,
}

impl Outgoing<'_> {
    /// What its head says of the length of its body.
    pub(super) fn length(&self) -> DeclaredLength {
        match &self.errand {
            Errand::Forwarded(ours, _) => ours.length,
            Errand::Own => DeclaredLength::Unstated,
        }
    }

    fn put_fields(&self, out: &mut impl Fields) {
        match &self.errand {
            Errand::Forwarded(ours, wish) => {
                headers::for_upstream(self.fields, ours, out);
                if let Some(wish) = wish {
                    wish.put_fields(self.fields, out);
                }
            }
            Errand::Own => self.fields.iter().for_each(|(name, value)| out.copy(name, value)),
        }
    }

    /// Its head in HTTP/1.1 (RFC 9112 section 3), appended to `head`; in chunks goes a body whose length nobody knows.
    pub(super) fn write_http1(&self, body: &RequestBody, head: &mut Vec<u8>) {
        for part in [self.method.as_str(), " ", self.target.as_str(), " HTTP/1.1\r\n"] {
            head.extend_from_slice(part.as_bytes());
        }
        let mut lines = Lines(head);
        lines.copy(&HOST, self.host);
        self.put_fields(&mut lines);
        if !body.is_end_stream() && !matches!(self.length(), DeclaredLength::Exact(_)) {
            lines.compose(&TRANSFER_ENCODING, &["chunked"]);
        }
        head.extend_from_slice(b"\r\n");
    }

    /// The request as HTTP/2 has it (RFC 9113 section 8.3.1).
    ///
    /// # Errors
    /// `Broken` when host and path do not make a URI, which checked ones do.
    pub(super) fn to_http2(&self, body: RequestBody, endpoint: &Endpoint) -> Result<Request<RequestBody>, Trouble> {
        let scheme = if endpoint.scheme == Scheme::Https { "https" } else { "http" };
        let uri = Uri::builder().scheme(scheme).authority(self.host.as_bytes()).path_and_query(self.target.clone()).build();
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = uri.map_err(|_| Trouble::Broken)?;
        self.put_fields(request.headers_mut());
        Ok(request)
    }
}

/// Fields as the lines of a head (RFC 9112 section 5).
pub(super) struct Lines<'a>(pub(super) &'a mut Vec<u8>);

impl Lines<'_> {
    fn line<'p>(&mut self, name: &HeaderName, pieces: impl Iterator<Item = &'p [u8]>) {
        self.0.extend_from_slice(name.as_str().as_bytes());
        self.0.extend_from_slice(b": ");
        pieces.for_each(|piece| self.0.extend_from_slice(piece));
        self.0.extend_from_slice(b"\r\n");
    }
}

impl Fields for Lines<'_> {
    fn copy(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.line(name, std::iter::once(value.as_bytes()));
    }

    fn compose(&mut self, name: &HeaderName, pieces: &[&str]) {
        self.line(name, pieces.iter().map(|piece| piece.as_bytes()));
    }
}
