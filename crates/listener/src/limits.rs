//! Limits for clients' connections.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;

/// Time limits of a connection, and how many there may be.
#[derive(Clone, Debug)]
pub struct Limits {
    /// For the head of a request, from the first byte after the previous response; for the first
    /// request, from the accept.
    pub header_read: Duration,
    /// Between an answer and the next request.
    pub keep_alive: Duration,
    /// For a client to read more of a response.
    pub write: Duration,
    /// Open at once.
    pub max_connections: usize,
    /// Of these, for one client's address (of IPv6, its /64). Half of all if it is not set.
    pub max_per_address: Option<usize>,
    /// Addresses that may have all: many clients stand behind them.
    pub shared_addresses: Vec<IpNet>,
}

impl Limits {
    /// Who counts as one client; `None` for an address that many share.
    pub fn client(&self, address: IpAddr) -> Option<IpAddr> {
        let address = address.to_canonical();
        let is_shared = self
            .shared_addresses
            .iter()
            .any(|shared| shared.contains(&address));
        (!is_shared).then(|| client_of(address))
    }

    pub fn per_client(&self) -> usize {
        self.max_per_address
            .unwrap_or(self.max_connections.div_ceil(2))
    }
}

/// The address that stands for a client: of IPv6 the network, for one client has all of a /64.
pub fn client_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}
