//! What is allowed and probably not meant. `check` prints these, `run` logs them at the start and after a reload.

use crate::config::{Config, Listen};

use super::is_loopback;

/// One sentence for each oddity, beginning with the field; empty when there is none.
pub fn warnings(config: &Config) -> Vec<String> {
    let mut sentences = Vec::new();
    warn_of_clear_text(config, &mut sentences);
    warn_of_sign_in(config, &mut sentences);
    warn_of_numbers(config, &mut sentences);
    warn_of_routes(config, &mut sentences);
    sentences
}

fn is_public(listen: &Listen) -> bool {
    listen.addresses().iter().any(|address| !address.ip().is_loopback())
}

fn warn_of_clear_text(config: &Config, sentences: &mut Vec<String>) {
    if is_public(&config.admin.listen) && config.admin.tls.is_none() {
        sentences.push("admin.listen: this can be reached from other machines without TLS, so users' tokens and new keys travel in clear text; set admin.tls, or listen on 127.0.0.1 behind something that has TLS".to_owned());
    }
    if is_public(&config.edge.listen) && config.edge.tls.is_none() && config.edge.trusted_proxies.is_empty() {
        sentences.push("edge.listen: this can be reached from other machines without TLS, so keys travel in clear text; set edge.tls, or name the proxies in front that have TLS in edge.trusted_proxies".to_owned());
    }
    if config.edge.trusted_proxies.iter().any(|network| network.prefix_len() == 0) {
        sentences
            .push("edge.trusted_proxies: a network of everything lets any client choose the address that is recorded for it".to_owned());
    }
    let is_clear =
        |url: &str| url.parse::<http::Uri>().is_ok_and(|uri| uri.scheme_str() == Some("http") && !uri.host().is_some_and(is_loopback));
    if config.admin.public_url.as_deref().is_some_and(is_clear) {
        sentences.push("admin.public_url: people would send their tokens over http; expected https".to_owned());
    }
}

fn warn_of_sign_in(config: &Config, sentences: &mut Vec<String>) {
    let auth = &config.admin.auth;
    if auth.issuers.is_empty() && !auth.local_issuer {
        sentences.push("admin.auth: no issuer is configured, so nobody can create, list or revoke keys".to_owned());
    }
    if auth.local_issuer && !auth.issuers.is_empty() {
        sentences.push(
            "admin.auth.local_issuer: whoever can run `assure-gateway token` on this machine can act as any user; meant for demos"
                .to_owned(),
        );
    }
}

fn warn_of_numbers(config: &Config, sentences: &mut Vec<String>) {
    if config.keys.per_creator_max > config.keys.per_firm_max {
        sentences.push("keys.per_creator_max: this is more than keys.per_firm_max and has no effect".to_owned());
    }
    if config.edge.connections_per_address_max > config.edge.connections_max {
        sentences.push("edge.connections_per_address_max: this is more than edge.connections_max and has no effect".to_owned());
    }
}

fn warn_of_routes(config: &Config, sentences: &mut Vec<String>) {
    if config.routes.is_empty() {
        sentences.push("routes: there are none, so every request is answered with 404".to_owned());
    }
    for name in config.upstreams.keys() {
        if !config.routes.iter().any(|route| route.upstream.as_ref() == Some(name)) {
            sentences.push(format!("upstreams.{name}: no route leads here"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::parse;

    #[test]
    fn each_oddity_is_told_and_nothing_else() {
        let calm = "
admin: { auth: { local_issuer: true } }
upstreams: { ledger: { endpoints: [http://127.0.0.1:9000] } }
routes: [{ path: /**, upstream: ledger }]
";
        assert_eq!(warnings(&parse(Path::new("calm"), calm).unwrap()), Vec::<String>::new());
        let odd = "
edge: { listen: 0.0.0.0:8080, connections_max: 10, trusted_proxies: [0.0.0.0/0] }
admin: { listen: '[::]:8081', public_url: http://keys.example.com }
keys: { per_firm_max: 1 }
upstreams: { ledger: { endpoints: [http://127.0.0.1:9000] } }
";
        let told = warnings(&parse(Path::new("odd"), odd).unwrap());
        let fields: Vec<&str> = told.iter().filter_map(|sentence| sentence.split(':').next()).collect();
        let wanted = [
            "admin.listen",
            "edge.trusted_proxies",
            "admin.public_url",
            "admin.auth",
            "keys.per_creator_max",
            "edge.connections_per_address_max",
            "routes",
            "upstreams.ledger",
        ];
        assert_eq!(fields, wanted);
    }
}
