//! Servers with TLS: a certificate authority made for a test, and a proxy that terminates TLS in
//! front of the shared servers.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::process::scratch;

/// A certificate authority; its files are in a folder of its own.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
}

impl Authority {
    pub fn create() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = scratch().join(format!("tls-{}", uuid::Uuid::new_v4().simple()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    /// The path of its own certificate, as in a URL.
    pub fn file(&self) -> String {
        self.folder.join("ca.pem").to_str().unwrap().to_owned()
    }

    fn sign(&self, name: &str) -> (CertificateDer<'static>, KeyPair, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()])
            .unwrap()
            .signed_by(&key, &self.issuer)
            .unwrap();
        (certificate.der().clone(), key, certificate.pem())
    }

    /// The paths of a client's certificate and key.
    pub fn client(&self) -> (String, String) {
        let (_, key, pem) = self.sign("client");
        let [certificate, key_file] =
            ["client.pem", "client.key"].map(|name| self.folder.join(name));
        fs::write(&certificate, pem).unwrap();
        fs::write(&key_file, key.serialize_pem()).unwrap();
        (
            certificate.to_str().unwrap().to_owned(),
            key_file.to_str().unwrap().to_owned(),
        )
    }

    /// Starts a TLS server of this name that requires a client certificate from this authority and
    /// forwards to the server of `url`. Returns its port.
    pub async fn before(&self, url: &str, name: &str, protocol: Protocol) -> u16 {
        let url = url::Url::parse(url).unwrap();
        let upstream = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
        let (certificate, key, _) = self.sign(name);
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
            .await
            .unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, acceptor.clone(), upstream.clone(), protocol));
            }
        });
        port
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Amqp,
    /// The client asks for TLS in plain text first.
    Postgres,
}

async fn carry(mut client: TcpStream, acceptor: TlsAcceptor, upstream: String, protocol: Protocol) {
    if protocol == Protocol::Postgres {
        let mut request = [0; 8];
        if client.read_exact(&mut request).await.is_err()
            || request[4..] != 80_877_103_u32.to_be_bytes()
        {
            return;
        }
        client.write_all(b"S").await.unwrap();
    }
    let Ok(mut client) = acceptor.accept(client).await else {
        return;
    };
    let mut server = TcpStream::connect(upstream).await.unwrap();
    _ = copy_bidirectional(&mut client, &mut server).await;
}
