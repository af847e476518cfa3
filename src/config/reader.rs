//! Reads settings one by one, and parses those that no other module parses.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;

/// Reads settings one by one and collects their errors.
pub struct Reader {
    pub settings: HashMap<String, String>,
    pub faults: Vec<String>,
}

impl Reader {
    /// `None` if it is unset, empty or wrong; a wrong one is recorded as an error.
    pub fn optional<T, E: fmt::Display>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let value = self
            .settings
            .get(name)
            .map(|value| value.trim())
            .filter(|value| !value.is_empty())?;
        // Something with a password, pasted into the wrong place, is not repeated.
        let may_hold_a_secret = value.contains("://") || value.contains('@');
        let shown = |fault: String| {
            if may_hold_a_secret {
                fault.replace(value, "…")
            } else {
                fault
            }
        };
        parse(value)
            .map_err(|fault| {
                self.faults
                    .push(format!("{name}: {}", shown(fault.to_string())));
            })
            .ok()
    }

    pub fn required<T, E: fmt::Display>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        if self
            .settings
            .get(name)
            .is_none_or(|value| value.trim().is_empty())
        {
            self.faults
                .push(format!("{name}: is not set (see .env.example)"));
        }
        self.optional(name, parse)
    }

    pub fn number<T>(&mut self, name: &str, default: T, least: T, most: T) -> T
    where
        T: FromStr + PartialOrd + fmt::Display + Copy,
    {
        let parse = |value: &str| match value.parse() {
            Ok(number) if number >= least && number <= most => Ok(number),
            _ => Err(format!(
                "must be a whole number from {least} to {most}, not `{value}`"
            )),
        };
        self.optional(name, parse).unwrap_or(default)
    }

    pub fn milliseconds(&mut self, name: &str, default: u64, least: u64) -> Duration {
        const TEN_MINUTES: u64 = 600_000;
        Duration::from_millis(self.number(name, default, least, TEN_MINUTES))
    }
}

pub fn parse_host(value: &str) -> Result<IpAddr, String> {
    match value {
        "localhost" => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        address => address
            .parse()
            .map_err(|_| format!("must be an IP address or `localhost`, not `{value}`")),
    }
}

/// `None` for `*`, any name.
pub fn parse_hosts(value: &str) -> Result<Option<Vec<String>>, String> {
    if value == "*" {
        return Ok(None);
    }
    let names = value
        .split(',')
        .map(|name| name.trim().to_ascii_lowercase());
    let is_name = |name: &String| {
        !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
    };
    names
        .map(|name| Some(name).filter(is_name))
        .collect::<Option<_>>()
        .map(Some)
        .ok_or("must be host names without ports, separated by commas, or *".into())
}

pub fn parse_count(value: &str) -> Result<usize, String> {
    value
        .parse()
        .ok()
        .filter(|count| *count > 0)
        .ok_or_else(|| format!("must be a whole number from 1, not `{value}`"))
}

pub fn parse_networks(value: &str) -> Result<Vec<IpNet>, String> {
    let network = |text: &str| {
        text.parse()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
    };
    let networks = value.split(',').map(|text| network(text.trim()));
    networks
        .collect::<Result<_, _>>()
        .map_err(|_| format!("must be addresses or networks such as 10.0.0.0/8, not `{value}`"))
}

pub fn parse_bool(value: &str) -> Result<bool, String> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(format!("must be true or false, not `{value}`")),
    }
}
