//! Whether the files that a configuration names can be used, each as the part that uses it would find them.
//!
//! `config` checks that they are there; what is in them is known where they are read: keys in `signing`, certificates in
//! `edge`, authorities in `dial`. `check` asks here, so that it never calls valid what `run` would refuse.

use std::path::Path;

use crate::config::Config;
use crate::dial::Dialer;
use crate::edge::Tls;
use crate::signing::SigningKey;

/// One sentence for each file that cannot be used, with the field that names it.
pub fn unusable_files(config: &Config) -> Vec<String> {
    let mut mistakes = Vec::new();
    let mut note = |field: String, result: Result<(), String>| {
        if let Err(problem) = result {
            mistakes.push(format!("{field}: {problem}"));
        }
    };
    for (field, tls) in [("edge.tls", &config.edge.tls), ("admin.tls", &config.admin.tls)] {
        if let Some(tls) = tls {
            let loaded = Tls::load(Path::new(&tls.certificate), Path::new(&tls.private_key));
            note(field.to_owned(), loaded.map(drop).map_err(|error| error.to_string()));
        }
    }
    for (number, key) in config.assertion.signing_keys.iter().enumerate() {
        note(format!("assertion.signing_keys[{number}].file"), SigningKey::load(&key.file).map(drop).map_err(|error| error.to_string()));
    }
    for (name, upstream) in &config.upstreams {
        if let Some(ca) = &upstream.ca {
            note(format!("upstreams.{name}.ca"), Dialer::new(Some(ca), &[]).map(drop).map_err(|error| error.to_string()));
        }
    }
    mistakes
}
