//! Limits for clients' connections.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;

/// Time limits of a connection, and limits on the number of connections.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Time for the head of a request, from the first byte after the previous response; for the
    /// first request, from the accept.
    pub header_read: Duration,
    /// Time between a response and the next request.
    pub keep_alive: Duration,
    /// Time for a client to read more of a response.
    pub write: Duration,
    /// Most connections open simultaneously.
    pub max_connections: usize,
    /// Most of these for one client's address (for IPv6, its /64). If unset, half of all.
    pub max_per_address: Option<usize>,
    /// Addresses without a limit of their own, because many clients share them.
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

/// Returns the address that stands for a client: for IPv6 the /64 network, because a single client
/// usually has all of it.
pub fn client_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}
