//! Links that sign somebody in once: what the demo prints, so that a newcomer need not know what a token is.
//!
//! The link's code stands in the fragment of its URL, which browsers send to nobody; the page takes it out of the address
//! bar and exchanges it for a session. It works once, for ten minutes, in the process that made it; only its digest is kept.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::clock;
use crate::domain::BootInstant;

/// How long a link may wait to be followed.
pub const LINK_LIFE: Duration = Duration::from_secs(600);
/// Links that wait at once; the oldest gives way.
const LINKS_MAX: usize = 16;

/// The links that were made and not followed yet.
#[derive(Default)]
pub struct SignInLinks(Mutex<Vec<Link>>);

struct Link {
    digest: [u8; 32],
    token: Zeroizing<String>,
    until: BootInstant,
}

impl SignInLinks {
    /// Makes a code that stands for a user's token, once.
    pub fn issue(&self, token: String) -> String {
        let mut secret = Zeroizing::new([0; 24]);
        aws_lc_rs::rand::fill(&mut *secret).expect("the system has random numbers");
        let code = URL_SAFE_NO_PAD.encode(*secret);
        let mut links = self.0.lock();
        if links.len() >= LINKS_MAX {
            links.remove(0);
        }
        links.push(Link { digest: digest(&code), token: Zeroizing::new(token), until: clock::boot_now().plus(LINK_LIFE) });
        code
    }

    /// The token that a code stands for; the code is worth nothing afterwards.
    pub(crate) fn redeem(&self, code: &str) -> Option<Zeroizing<String>> {
        self.redeem_at(code, clock::boot_now())
    }

    fn redeem_at(&self, code: &str, now: BootInstant) -> Option<Zeroizing<String>> {
        let wanted = digest(code);
        let mut links = self.0.lock();
        links.retain(|link| link.until > now);
        let place = links.iter().position(|link| link.digest == wanted)?;
        Some(links.remove(place).token)
    }
}

fn digest(code: &str) -> [u8; 32] {
    Sha256::digest(code).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_works_once_and_not_for_long() {
        let links = SignInLinks::default();
        let (first, second) = (links.issue("one".into()), links.issue("two".into()));
        assert_eq!(links.redeem(&second).as_deref().map(String::as_str), Some("two"));
        assert!(links.redeem(&second).is_none() && links.redeem("").is_none());
        assert!(links.redeem_at(&first, clock::boot_now().plus(LINK_LIFE)).is_none());
        assert!(links.redeem(&first).is_none(), "what is over was forgotten");
        let codes: Vec<String> = (0..LINKS_MAX + 3).map(|number| links.issue(number.to_string())).collect();
        assert_eq!(codes.iter().filter(|code| links.redeem(code).is_some()).count(), LINKS_MAX);
    }
}
