//! Reads single settings, and parses the types that no other module parses.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::IpNet;

use super::settings::{DefaultValue, Setting};

/// Reads settings one by one and collects their errors.
pub(crate) struct Reader {
    pub settings: HashMap<String, String>,
    pub faults: Vec<String>,
}

impl Reader {
    /// The value that it is set to; `None` if it is unset or empty.
    pub(crate) fn given(&self, setting: &Setting) -> Option<&str> {
        let value = self.settings.get(setting.name)?.trim();
        Some(value).filter(|value| !value.is_empty())
    }

    /// Its parsed value, or else its default. `None` if it has neither, or if it is wrong: that is
    /// recorded as an error.
    pub(crate) fn optional<T, E: fmt::Display>(
        &mut self,
        setting: &Setting,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let value = match (self.given(setting), &setting.default) {
            (Some(given), _) => given,
            (None, DefaultValue::Is(default)) => default,
            (None, DefaultValue::Required(_) | DefaultValue::Other(_)) => return None,
        };
        // A URL with a password may have been pasted into the wrong setting: do not repeat it.
        let may_hold_a_secret = value.contains("://") || value.contains('@');
        let fault = match parse(value) {
            Ok(value) => return Some(value),
            Err(fault) if may_hold_a_secret => fault.to_string().replace(value, "…"),
            Err(fault) => fault.to_string(),
        };
        let fault = format!("{}: {fault}", setting.name);
        // Some settings are read twice.
        if !self.faults.contains(&fault) {
            self.faults.push(fault);
        }
        None
    }

    pub(crate) fn required<T, E: fmt::Display>(
        &mut self,
        setting: &Setting,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        if self.given(setting).is_none() {
            let name = setting.name;
            self.faults
                .push(format!("{name}: is not set (see .env.example)"));
        }
        self.optional(setting, parse)
    }

    pub(crate) fn optional_number<T: TryFrom<u64>>(&mut self, setting: &Setting) -> Option<T> {
        let (least, most) = setting.range();
        self.optional(setting, |value| {
            let number = value.parse().ok();
            let in_range = number.filter(|number| (least..=most).contains(number));
            in_range
                .and_then(|number| T::try_from(number).ok())
                .ok_or_else(|| {
                    format!("must be a whole number from {least} to {most}, not `{value}`")
                })
        })
    }

    /// A number that has a default. Zero if it is wrong; the recorded error then stops the start.
    pub(crate) fn number<T: TryFrom<u64> + Default>(&mut self, setting: &Setting) -> T {
        self.optional_number(setting).unwrap_or_default()
    }

    pub(crate) fn milliseconds(&mut self, setting: &Setting) -> Duration {
        Duration::from_millis(self.number(setting))
    }

    pub(crate) fn flag(&mut self, setting: &Setting) -> bool {
        self.optional(setting, parse_bool).unwrap_or_default()
    }
}

pub(crate) const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

pub(crate) fn parse_host(value: &str) -> Result<IpAddr, String> {
    match value {
        "localhost" => Ok(LOCALHOST),
        address => address
            .parse()
            .map_err(|_| format!("must be an IP address or `localhost`, not `{value}`")),
    }
}

/// `None` for `*`, which allows any name.
pub(crate) fn parse_hosts(value: &str) -> Result<Option<Vec<String>>, String> {
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

pub(crate) fn parse_networks(value: &str) -> Result<Vec<IpNet>, String> {
    let network = |text: &str| {
        text.parse()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
    };
    let networks = value.split(',').map(|text| network(text.trim()));
    networks
        .collect::<Result<_, _>>()
        .map_err(|_| format!("must be addresses or networks such as 10.0.0.0/8, not `{value}`"))
}

pub(crate) fn parse_bool(value: &str) -> Result<bool, String> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(format!("must be true or false, not `{value}`")),
    }
}
