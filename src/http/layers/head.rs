//! Checks the head of every request before its handler runs: host, size, `Transfer-Encoding` and
//! `Expect`. Also determines the client's address.

use std::net::{IpAddr, SocketAddr};

use axum::body::Body;
use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{Extensions, HeaderMap, HeaderName, Version, header};
use ipnet::IpNet;
use listener::{Peer, client_of};

use crate::domain::actor::{Actor, Client};
use crate::http::problem::Problem;
use crate::http::problem::responses::Fallible;
use crate::http::problem::types::{
    BAD_REQUEST, EXPECTATION_FAILED, HEAD_TOO_LARGE, MISDIRECTED_REQUEST, URI_TOO_LONG,
};

/// Longest path with query, in bytes.
pub(crate) const MAX_TARGET_BYTES: usize = 8_192;
/// Largest request line and headers together, in bytes; hyper refuses those that are half as large
/// again, without a problem document.
pub(crate) const MAX_HEAD_BYTES: usize = 32 << 10;
/// Holds the client's address, if a trusted proxy sends it.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Which hosts are accepted, and which proxies are trusted about the client's address.
#[derive(Clone, Debug)]
pub(crate) struct HeadRules {
    /// Accepted host names, in lower case, besides IP addresses and `localhost`. `None` accepts
    /// any.
    pub allowed_hosts: Option<Vec<String>>,
    /// Proxies whose `X-Forwarded-For` is trusted.
    pub trusted_proxies: Vec<IpNet>,
}

impl Default for HeadRules {
    fn default() -> Self {
        Self {
            allowed_hosts: Some(Vec::new()),
            trusted_proxies: Vec::new(),
        }
    }
}

impl HeadRules {
    /// # Errors
    /// 400, 414, 417, 421 or 431, with the reason.
    pub(crate) fn check(&self, request: &Request) -> Result<(), Problem> {
        let target = request
            .uri()
            .path_and_query()
            .map_or(0, |target| target.as_str().len());
        if target > MAX_TARGET_BYTES {
            let detail = format!("Path and query are longer than {MAX_TARGET_BYTES} bytes.");
            return Err(Problem::new(&URI_TOO_LONG, detail));
        }
        check_headers(request.headers(), target)?;
        if let Some(authority) = request.uri().authority() {
            self.check_name(authority)?;
        }
        let bad = |detail| Err(Problem::new(&BAD_REQUEST, detail));
        let mut hosts = request.headers().get_all(header::HOST).iter();
        match (hosts.next(), hosts.next()) {
            (Some(host), None) => match Authority::try_from(host.as_bytes()) {
                Ok(authority) => self.check_name(&authority),
                Err(_) => bad("The Host header is not a host name or address."),
            },
            (Some(_), Some(_)) => bad("There is more than one Host header."),
            (None, _) if request.version() < Version::HTTP_11 => Ok(()),
            (None, _) => bad("There is no Host header."),
        }
    }

    fn check_name(&self, authority: &Authority) -> Result<(), Problem> {
        let host = authority.host();
        let port_is_fine = authority.as_str().strip_prefix(host).is_some_and(|port| {
            port.is_empty()
                || port
                    .strip_prefix(':')
                    .is_some_and(|port| port.is_empty() || port.parse::<u16>().is_ok())
        });
        if host.is_empty() || !port_is_fine {
            return Err(Problem::new(
                &BAD_REQUEST,
                "The Host header is not a host name or address.",
            ));
        }
        let Some(allowed) = &self.allowed_hosts else {
            return Ok(());
        };
        let is_address = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse::<IpAddr>()
            .is_ok();
        let is_allowed = |name: &String| name.eq_ignore_ascii_case(host);
        if is_address || host.eq_ignore_ascii_case("localhost") || allowed.iter().any(is_allowed) {
            return Ok(());
        }
        let detail = "The service does not answer to this host name; its setting ALLOWED_HOSTS \
                      lists those that it does.";
        Err(Problem::new(&MISDIRECTED_REQUEST, detail))
    }

    /// The peer's address; behind trusted proxies, the address that the outermost of them saw.
    pub(crate) fn client_address(
        &self,
        extensions: &Extensions,
        headers: &HeaderMap,
    ) -> Option<IpAddr> {
        let peer = extensions.get::<Peer>()?.address.ip().to_canonical();
        Some(if self.trusts(peer) {
            self.forwarded_for(headers).unwrap_or(peer)
        } else {
            peer
        })
    }

    /// Whose limits a request counts towards: its actor's, or, without one, its address's.
    pub(crate) fn client(&self, extensions: &Extensions, headers: &HeaderMap) -> Client {
        match extensions.get::<Actor>() {
            Some(actor) => Client::Actor(actor.clone()),
            None => Client::Address(self.client_address(extensions, headers).map(client_of)),
        }
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.trusted_proxies
            .iter()
            .any(|proxies| proxies.contains(&address))
    }

    /// Each proxy appends the address it saw. So the client is the last address that is not a
    /// trusted proxy: anything before it may be forged.
    fn forwarded_for(&self, headers: &HeaderMap) -> Option<IpAddr> {
        let mut client = None;
        for value in headers.get_all(FORWARDED_FOR).iter().rev() {
            for address in value.as_bytes().rsplit(|byte| *byte == b',') {
                let address = str::from_utf8(address)
                    .ok()
                    .and_then(|address| parse_address(address.trim()));
                let Some(address) = address else {
                    return client;
                };
                client = Some(address.to_canonical());
                if !self.trusts(address.to_canonical()) {
                    return client;
                }
            }
        }
        client
    }
}

/// Parses an address; some proxies append the port.
fn parse_address(text: &str) -> Option<IpAddr> {
    text.parse()
        .ok()
        .or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

/// Checks what does not depend on [`HeadRules`]: size, `Transfer-Encoding` and `Expect`.
fn check_headers(headers: &HeaderMap, target: usize) -> Result<(), Problem> {
    // The 4 counts `: ` and CRLF.
    let lines: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 4)
        .sum();
    if target + lines > MAX_HEAD_BYTES {
        let detail = format!("The request's head is larger than {MAX_HEAD_BYTES} bytes.");
        return Err(Problem::new(&HEAD_TOO_LARGE, detail));
    }
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && !(coding.as_bytes().eq_ignore_ascii_case(b"chunked") && codings.next().is_none())
    {
        return Err(Problem::new(
            &BAD_REQUEST,
            "The only Transfer-Encoding that the service supports is chunked, once.",
        ));
    }
    if headers
        .get_all(header::EXPECT)
        .iter()
        .any(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
    {
        return Err(Problem::new(
            &EXPECTATION_FAILED,
            "The only Expect that the service supports is 100-continue.",
        ));
    }
    Ok(())
}

impl Fallible for HeadRules {
    fn problems() -> Vec<Problem> {
        let rules = Self::default();
        let refused = |target: &str, headers: &[(HeaderName, &str)]| {
            let mut request = Request::get(target);
            for (name, value) in headers {
                request = request.header(name, *value);
            }
            rules.check(&request.body(Body::empty()).ok()?).err()
        };
        let here = (header::HOST, "localhost");
        let long_target = format!("/?{}", "x".repeat(MAX_TARGET_BYTES));
        let long_header = (header::COOKIE, &*"x".repeat(MAX_HEAD_BYTES));
        [
            refused("/", &[]),
            refused(&long_target, std::slice::from_ref(&here)),
            refused("/", &[here.clone(), (header::EXPECT, "tea")]),
            refused("/", &[(header::HOST, "example.com")]),
            refused("/", &[here, long_header]),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::body::Body;
    use axum::http::Request;

    use super::{HeadRules, Peer};

    fn code(rules: &HeadRules, hosts: &[&str]) -> Option<&'static str> {
        let request = hosts.iter().fold(Request::get("/users"), |request, host| {
            request.header("host", *host)
        });
        rules
            .check(&request.body(Body::empty()).unwrap())
            .err()
            .map(|problem| problem.kind.code)
    }

    #[test]
    fn a_host_is_an_address_or_a_name_that_is_allowed() {
        let rules = HeadRules {
            allowed_hosts: Some(vec!["api.example".to_owned()]),
            ..HeadRules::default()
        };
        for host in [
            "127.0.0.1",
            "127.0.0.1:8000",
            "[::1]:8000",
            "10.0.0.7",
            "localhost:8000",
            "LocalHost",
            "API.example:443",
        ] {
            assert_eq!(code(&rules, &[host]), None, "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "api.example.",
            "127.0.0.1.nip.io",
            "127.1",
        ] {
            assert_eq!(code(&rules, &[host]), Some("misdirected_request"), "{host}");
        }
        let any = HeadRules {
            allowed_hosts: None,
            ..HeadRules::default()
        };
        assert_eq!(code(&any, &["anything.example:80"]), None);
    }

    #[test]
    fn a_missing_repeated_or_malformed_host_is_a_bad_request() {
        let any = HeadRules::default();
        for hosts in [
            &[][..],
            &["localhost", "localhost"],
            &[""],
            &[":80"],
            &["a b"],
            &["u@localhost"],
            &["a:b"],
            &["a:70000"],
            &["a/b"],
            &["[::1"],
        ] {
            assert_eq!(code(&any, hosts), Some("bad_request"), "{hosts:?}");
        }
    }

    #[test]
    fn a_target_with_a_foreign_host_is_misdirected_for_any_header() {
        let rules = HeadRules {
            allowed_hosts: Some(Vec::new()),
            ..HeadRules::default()
        };
        let request = Request::get("http://evil.example/users")
            .header("host", "localhost")
            .body(Body::empty())
            .unwrap();
        assert_eq!(
            rules.check(&request).unwrap_err().kind.code,
            "misdirected_request"
        );
    }

    #[test]
    fn only_trusted_proxies_may_forward_a_client_address() {
        let client = |peer: &str, forwarded: &[&str]| {
            let rules = HeadRules {
                trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()],
                ..HeadRules::default()
            };
            let mut request = forwarded.iter().fold(Request::get("/"), |request, value| {
                request.header("x-forwarded-for", *value)
            });
            request = request.extension(Peer::at(SocketAddr::new(peer.parse().unwrap(), 1)));
            let request = request.body(Body::empty()).unwrap();
            rules
                .client_address(request.extensions(), request.headers())
                .unwrap()
                .to_string()
        };
        assert_eq!(client("192.0.2.1", &["203.0.113.9"]), "192.0.2.1");
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &["203.0.113.9"]), "203.0.113.9");
        assert_eq!(
            client("10.0.0.1", &["1.1.1.1, 203.0.113.9, 10.0.0.2"]),
            "203.0.113.9"
        );
        assert_eq!(
            client("10.0.0.1", &["1.1.1.1, 203.0.113.9", "10.0.0.2"]),
            "203.0.113.9"
        );
        assert_eq!(client("10.0.0.1", &["made up, 10.0.0.2"]), "10.0.0.2");
        assert_eq!(client("10.0.0.1", &["203.0.113.9:5678"]), "203.0.113.9");
        assert_eq!(client("10.0.0.1", &["[2001:db8::1]:5678"]), "2001:db8::1");
        assert_eq!(client("10.0.0.1", &["\u{ff}, 203.0.113.9"]), "203.0.113.9");
        assert_eq!(client("10.0.0.1", &["\u{ff}", "10.0.0.2"]), "10.0.0.2");
        assert_eq!(client("::ffff:10.0.0.1", &["2001:db8::1"]), "2001:db8::1");
    }
}
