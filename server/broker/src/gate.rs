//! One connection's gate: who it is, and then what it may do.
//!
//! Always holds: one gate a connection, so a role is bound to the certificate of that connection and is decided once.

use std::future::{Future, ready};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use mqtt5::broker::auth::{AuthProvider, AuthResult};
use mqtt5::broker::events::{BrokerEventHandler, ClientPublishEvent, PublishAction};
use mqtt5::packet::connect::ConnectPacket;
use mqtt5::protocol::v5::reason_codes::ReasonCode;
use tracing::debug;

use crate::{Attempt, Counters, Credentials, Role, acl};

type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The counters, shared by all connections.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) open: AtomicU64,
    pub(crate) connected: AtomicU64,
    pub(crate) tls_failed: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) publish_denied: AtomicU64,
    pub(crate) subscribe_denied: AtomicU64,
    pub(crate) retain_dropped: AtomicU64,
    pub(crate) over_limit: AtomicU64,
}

impl Tally {
    pub(crate) fn counters(&self) -> Counters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            open: read(&self.open),
            connected: read(&self.connected),
            tls_failed: read(&self.tls_failed),
            refused: read(&self.refused),
            publish_denied: read(&self.publish_denied),
            subscribe_denied: read(&self.subscribe_denied),
            retain_dropped: read(&self.retain_dropped),
            over_limit: read(&self.over_limit),
        }
    }
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

pub(crate) struct Gate {
    pub(crate) certificate_name: String,
    pub(crate) certificate_key: Vec<u8>,
    pub(crate) credentials: Arc<dyn Credentials>,
    pub(crate) tally: Arc<Tally>,
    pub(crate) role: OnceLock<Role>,
}

impl Gate {
    fn admit(&self, connect: &ConnectPacket) -> Result<Role, (ReasonCode, &'static str)> {
        let attempt = Attempt {
            certificate_name: &self.certificate_name,
            certificate_key: &self.certificate_key,
            client_id: &connect.client_id,
            username: connect.username.as_deref(),
            password: connect.password.as_deref(),
        };
        let Some(role) = self.credentials.verify(&attempt) else {
            return Err((
                ReasonCode::BadUsernameOrPassword,
                "unknown client, or wrong password",
            ));
        };
        let fits = match &role {
            Role::Node(node) => self.certificate_name == node.as_str() && connect.client_id == node.as_str(),
            // Replicas of the server share a certificate and tell themselves apart behind a dash.
            Role::Server => connect
                .client_id
                .strip_prefix(&self.certificate_name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('-')),
        };
        if !fits {
            return Err((
                ReasonCode::NotAuthorized,
                "the client id is not the certificate's name",
            ));
        }
        if let Some(will) = &connect.will
            && !acl::may_publish(&role, &will.topic)
        {
            return Err((
                ReasonCode::NotAuthorized,
                "the last will is on a topic that is not its own",
            ));
        }
        Ok(role)
    }

    fn may(&self, allowed: impl FnOnce(&Role) -> bool, denied: &AtomicU64) -> bool {
        let allowed = self.role.get().is_some_and(allowed);
        if !allowed {
            count(denied);
        }
        allowed
    }
}

impl AuthProvider for Gate {
    fn authenticate<'a>(
        &'a self,
        connect: &'a ConnectPacket,
        client_addr: SocketAddr,
    ) -> Answer<'a, mqtt5::error::Result<AuthResult>> {
        let result = match self.admit(connect) {
            // A second CONNECT on one connection is a protocol error that the library answers; should it get here, the
            // first role stays.
            Ok(role) if self.role.get_or_init(|| role.clone()) == &role => {
                count(&self.tally.connected);
                AuthResult::success_with_user(connect.client_id.clone())
            }
            Ok(_) => AuthResult::fail(ReasonCode::ProtocolError),
            Err((reason, why)) => {
                count(&self.tally.refused);
                debug!(%client_addr, certificate = self.certificate_name, client_id = connect.client_id, why, "refused");
                AuthResult::fail(reason)
            }
        };
        Box::pin(ready(Ok(result)))
    }

    fn authorize_publish<'a>(
        &'a self,
        _client: &str,
        _user: Option<&'a str>,
        topic: &'a str,
    ) -> Answer<'a, bool> {
        Box::pin(ready(
            self.may(|role| acl::may_publish(role, topic), &self.tally.publish_denied),
        ))
    }

    fn authorize_subscribe<'a>(
        &'a self,
        _client: &str,
        _user: Option<&'a str>,
        filter: &'a str,
    ) -> Answer<'a, bool> {
        Box::pin(ready(self.may(
            |role| acl::may_subscribe(role, filter),
            &self.tally.subscribe_denied,
        )))
    }
}

/// Drops what asks to be retained: the library announces that it retains nothing, but would.
pub(crate) struct NoRetain(pub(crate) Arc<Tally>);

impl BrokerEventHandler for NoRetain {
    fn on_client_publish<'a>(&'a self, event: ClientPublishEvent) -> Answer<'a, PublishAction> {
        let action = if event.retain {
            count(&self.0.retain_dropped);
            PublishAction::Handled
        } else {
            PublishAction::Continue
        };
        Box::pin(ready(action))
    }
}
