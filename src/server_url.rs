//! Parses server URLs as people write them. No error repeats a part that may hold a password. A
//! leaf: imports no other module of the crate.

use url::Url;

/// Advice for a URL with characters that must be percent-encoded.
const PERCENT_ENCODE: &str = "percent-encode what is special in user, password and path (/ as %2F, \
                              ? as %3F, # as %23, @ as %40)";
/// Advice for a URL that names several servers.
const SEVERAL_HOSTS: &str = "names several hosts: put one name before them, such as a load \
                             balancer's or a DNS name, that leads to the primary";

/// Reads a URL; `expected` says what it should be. An empty host is `localhost`.
pub(crate) fn parse(raw: &str, expected: &str) -> Result<Url, String> {
    let (scheme, rest) = raw.split_once("://").ok_or(expected)?;
    // A raw `/` cuts a password: `u:pa/ss@h` has the authority `u:pa`.
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let path = tail.split('?').next().unwrap_or_default();
    // What comes before an `@` is user and password.
    let is_cut = !authority.contains('@') && tail.contains('@');
    if path.contains('@') || is_cut && path.is_empty() || tail.contains('#') {
        return Err(PERCENT_ENCODE.to_owned());
    }
    let (login, host) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
    if host.contains(',') {
        return Err(SEVERAL_HOSTS.to_owned());
    }
    let is_local = host.starts_with(':') || host.is_empty() && !login.is_empty();
    let default = if is_local { "localhost" } else { "" };
    Url::parse(&format!("{scheme}://{login}{default}{host}{tail}")).map_err(
        |_details_may_hold_the_password| if is_cut { PERCENT_ENCODE } else { expected }.to_owned(),
    )
}

/// Checks that the service supports every parameter.
///
/// # Errors
/// Names the first parameter that it does not support; also refuses several hosts.
pub(crate) fn require_known(url: &Url, known: &[&str]) -> Result<(), String> {
    for (name, value) in url.query_pairs() {
        if known.contains(&&*name) || name.starts_with("options[") {
            if matches!(&*name, "host" | "hostaddr") && value.contains(',') {
                return Err(SEVERAL_HOSTS.to_owned());
            }
            continue;
        }
        let may_be_a_password = url.query().is_some_and(|query| query.contains('@'));
        if may_be_a_password
            || !name
                .chars()
                .all(|letter| letter.is_ascii_alphanumeric() || "_-".contains(letter))
        {
            return Err(PERCENT_ENCODE.to_owned());
        }
        return Err(format!(
            "the parameter `{name}` is not supported; supported are: {}",
            known.join(", ")
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{parse, require_known};

    #[test]
    fn an_unescaped_password_is_hidden_and_the_error_tells_the_fix() {
        for password in [
            "pa/xyz",
            "12/xyz",
            "pa?xyz",
            "12?xyz",
            "pa#xyz",
            "12#xyz",
            "1/2?3#xyz",
            "12?sec=xyz",
            "12/x?sec=xyz",
            "pa?sec=xyz",
        ] {
            let refused =
                parse(&format!("amqp://u:{password}@h:1/v"), "expected").and_then(|url| {
                    require_known(&url, &["a"])?;
                    Ok(url)
                });
            let message = refused.unwrap_err();
            assert!(message.contains("percent-encode"), "{password}: {message}");
            assert!(
                !message.contains("xyz") && !message.contains("sec"),
                "{password}: {message}"
            );
        }
        // These can only mean what they say.
        assert_eq!(
            parse("amqp://u:a@b:c@h/v", "").unwrap().password(),
            Some("a%40b%3Ac")
        );
        assert_eq!(
            parse("postgresql://h/d?user=a@b", "").unwrap().host_str(),
            Some("h")
        );
    }

    #[test]
    fn several_hosts_are_refused_with_an_alternative() {
        for url in [
            "postgresql://u:p@a,b/d",
            "postgresql://a:1,b:2/d",
            "postgresql:///d?host=a,b",
        ] {
            let message = parse(url, "")
                .and_then(|url| require_known(&url, &["host"]))
                .unwrap_err();
            assert!(message.contains("one name before them"), "{message}");
        }
    }

    #[test]
    fn an_empty_host_means_localhost() {
        assert_eq!(
            parse("postgresql://u:p@/d?host=/run", "")
                .unwrap()
                .host_str(),
            Some("localhost")
        );
        assert_eq!(
            parse("postgresql://:5433/d", "").unwrap().host_str(),
            Some("localhost")
        );
        assert_eq!(
            parse("postgresql://u:p@:5433/d", "").unwrap().port(),
            Some(5433)
        );
    }

    #[test]
    fn an_unsupported_url_parameter_is_named() {
        let url = parse("amqp://h/?heartbeat=1&SSLMODE=require", "").unwrap();
        assert!(
            require_known(&url, &["heartbeat"])
                .unwrap_err()
                .contains("`SSLMODE`")
        );
    }
}
