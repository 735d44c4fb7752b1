//! Logging in: any name, with the password equal to the name; or nobody in particular.
//!
//! sasl does the cryptography. Two of its habits are worked around: told that there is no channel
//! binding it wants every client to say `y`, so the variant is chosen by what the client says
//! (nothing is bound either way, since there is no TLS); and it leaves `=2C` and `=3D` in names.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use minidom::Element;
use sasl::common::scram::{Sha1, Sha256};
use sasl::common::{ChannelBinding, Identity};
use sasl::secret;
use sasl::server::mechanisms::{Plain, Scram};
use sasl::server::{
    Mechanism as _, MechanismError, Provider, ProviderError, Response, Validator, ValidatorError,
};
use xmpp_parsers::jid::{BareJid, DomainPart};
use xmpp_parsers::sasl::DefinedCondition;

use super::{DOMAIN, stanza};

/// The mechanisms offered.
pub(super) const MECHANISMS: [&str; 4] = ["SCRAM-SHA-256", "SCRAM-SHA-1", "PLAIN", "ANONYMOUS"];

/// RFC 7677 §4: at least 4096.
const ITERATIONS: u32 = 4096;

/// What to answer.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// `<challenge/>` with this data.
    Challenge(Vec<u8>),
    /// `<success/>` with this data.
    Success {
        /// Who it is.
        account: BareJid,
        /// Whether it goes with its last session.
        temporary: bool,
        /// The server's signature, if the mechanism has one.
        data: Vec<u8>,
    },
    /// `<failure/>`.
    Failure(DefinedCondition),
}

/// The logins of one connection, one after the other.
#[derive(Default)]
pub(super) struct Login(Option<Exchange>);

/// One login that has begun.
enum Exchange {
    /// `<auth/>` came without data.
    Asked(Mechanism),
    Sha1(Box<Scram<Sha1, Passwords>>),
    Sha256(Box<Scram<Sha256, Passwords>>),
}

#[derive(Clone, Copy)]
enum Mechanism {
    Sha1,
    Sha256,
    Plain,
}

impl Login {
    /// Answers an element in the namespace of SASL (RFC 6120 §6.4).
    pub(super) fn step(&mut self, element: &Element) -> Step {
        let exchange = self.0.take();
        let text = element.text();
        let data = match text.as_str() {
            // RFC 6120 §6.4.2: an initial response of no bytes.
            "=" => Vec::new(),
            text => match BASE64_STANDARD.decode(text) {
                Ok(data) => data,
                Err(_) => return Step::Failure(DefinedCondition::IncorrectEncoding),
            },
        };
        match (element.name(), exchange) {
            ("auth", _) => {
                let mechanism = match element.attr("mechanism") {
                    Some("ANONYMOUS") => return anonymous(),
                    Some("PLAIN") => Mechanism::Plain,
                    Some("SCRAM-SHA-1") => Mechanism::Sha1,
                    Some("SCRAM-SHA-256") => Mechanism::Sha256,
                    _ => return Step::Failure(DefinedCondition::InvalidMechanism),
                };
                if text.is_empty() {
                    self.0 = Some(Exchange::Asked(mechanism));
                    return Step::Challenge(Vec::new());
                }
                self.begin(mechanism, &data)
            }
            ("response", Some(Exchange::Asked(mechanism))) => self.begin(mechanism, &data),
            ("response", Some(exchange)) => self.go_on(exchange, &data),
            ("abort", _) => Step::Failure(DefinedCondition::Aborted),
            _ => Step::Failure(DefinedCondition::MalformedRequest),
        }
    }

    fn begin(&mut self, mechanism: Mechanism, data: &[u8]) -> Step {
        if let Mechanism::Plain = mechanism {
            // RFC 4616 §2: authzid NUL authcid NUL passwd.
            let mut parts = data.split(|&byte| byte == 0);
            if !may_act_as(parts.next().unwrap_or_default(), parts.next().unwrap_or_default()) {
                return Step::Failure(DefinedCondition::InvalidAuthzid);
            }
            return self.answer(Plain::new(Passwords).respond(data), |_| None);
        }
        // RFC 5802 §7: the flag of channel binding, authzid, name, nonce.
        let mut parts = data.split(|&byte| byte == b',');
        let binding = match parts.next() {
            // With this one sasl takes `n`; the data that would be bound is empty.
            Some(b"n") => ChannelBinding::TlsUnique(Vec::new()),
            Some(b"y") => ChannelBinding::Unsupported,
            _ => return Step::Failure(DefinedCondition::MalformedRequest),
        };
        let authzid = parts.next().unwrap_or_default();
        let name = parts.next().unwrap_or_default();
        let authzid = authzid.strip_prefix(b"a=").unwrap_or(authzid);
        if !may_act_as(authzid, name.strip_prefix(b"n=").unwrap_or_default()) {
            return Step::Failure(DefinedCondition::InvalidAuthzid);
        }
        let exchange = match mechanism {
            Mechanism::Sha1 => Exchange::Sha1(Box::new(Scram::new(Passwords, binding))),
            _ => Exchange::Sha256(Box::new(Scram::new(Passwords, binding))),
        };
        self.go_on(exchange, data)
    }

    fn go_on(&mut self, mut exchange: Exchange, data: &[u8]) -> Step {
        let response = match &mut exchange {
            Exchange::Sha1(scram) => scram.respond(data),
            Exchange::Sha256(scram) => scram.respond(data),
            Exchange::Asked(_) => return Step::Failure(DefinedCondition::MalformedRequest),
        };
        self.answer(response, |proceeds| proceeds.then_some(exchange))
    }

    fn answer(
        &mut self,
        response: Result<Response, MechanismError>,
        next: impl FnOnce(bool) -> Option<Exchange>,
    ) -> Step {
        match response {
            Ok(Response::Proceed(data)) => {
                self.0 = next(true);
                Step::Challenge(data)
            }
            Ok(Response::Success(Identity::Username(name), data)) => match account(&name) {
                Some(account) => Step::Success { account, temporary: false, data },
                None => Step::Failure(DefinedCondition::NotAuthorized),
            },
            Ok(Response::Success(Identity::None, _)) => {
                Step::Failure(DefinedCondition::NotAuthorized)
            }
            Err(
                MechanismError::FailedToDecodeMessage
                | MechanismError::CannotDecodeInitialMessage
                | MechanismError::CannotDecodeResponse
                | MechanismError::CannotDecodeProof
                | MechanismError::NoNonce
                | MechanismError::NoProof
                | MechanismError::NoUsername
                | MechanismError::NoUsernameSpecified
                | MechanismError::NoPasswordSpecified,
            ) => Step::Failure(DefinedCondition::MalformedRequest),
            Err(_) => Step::Failure(DefinedCondition::NotAuthorized),
        }
    }
}

/// RFC 4505: a random name; trace data is not looked at.
fn anonymous() -> Step {
    match stanza::token().and_then(|token| account(&token[..12])) {
        Some(account) => Step::Success { account, temporary: true, data: Vec::new() },
        None => Step::Failure(DefinedCondition::TemporaryAuthFailure),
    }
}

/// Nobody acts for somebody else (RFC 6120 §6.3.8); saying one's own name is no harm.
fn may_act_as(authzid: &[u8], name: &[u8]) -> bool {
    authzid.is_empty()
        || authzid == name
        || authzid.strip_suffix(DOMAIN.as_bytes()).and_then(|rest| rest.strip_suffix(b"@"))
            == Some(name)
}

/// The account of a name as it was typed.
fn account(name: &str) -> Option<BareJid> {
    let domain = DomainPart::new(DOMAIN).ok()?;
    let account = domain.with_node_str(&plain_name(name)).ok()?;
    (account.as_str() != super::ECHO).then_some(account)
}

/// RFC 5802 §5.1. PLAIN has no such escapes; who has them in a name meets them again there.
fn plain_name(name: &str) -> String {
    name.replace("=2C", ",").replace("=3D", "=")
}

/// Knows that each password is the name, as it was typed.
struct Passwords;

impl Validator<secret::Plain> for Passwords {
    fn validate(&self, who: &Identity, given: &secret::Plain) -> Result<(), ValidatorError> {
        match who {
            Identity::Username(name) if !name.is_empty() && *name == given.0 => Ok(()),
            _ => Err(ValidatorError::AuthenticationFailed),
        }
    }
}

macro_rules! provide {
    ($secret:ty) => {
        impl Provider<$secret> for Passwords {
            fn provide(&self, who: &Identity) -> Result<$secret, ProviderError> {
                let Identity::Username(name) = who else {
                    return Err(ProviderError::AuthenticationFailed);
                };
                let mut salt = [0; 16];
                getrandom::fill(&mut salt).map_err(|_| ProviderError::AuthenticationFailed)?;
                Ok(<$secret>::derive(&plain_name(name), &salt, ITERATIONS)?)
            }
        }

        sasl::impl_validator_using_provider!(Passwords, $secret);
    };
}

provide!(secret::Pbkdf2Sha1);
provide!(secret::Pbkdf2Sha256);

#[cfg(test)]
mod tests {
    use super::*;
    use sasl::client::Mechanism as _;
    use sasl::client::mechanisms;
    use sasl::common::Credentials;
    use xmpp_parsers::ns;

    fn element(name: &str, mechanism: &str, data: &[u8]) -> Element {
        let mut element = Element::bare(name, ns::SASL);
        stanza::set(&mut element, "mechanism", mechanism);
        element.append_text(BASE64_STANDARD.encode(data));
        element
    }

    fn plain(data: &str) -> Step {
        Login::default().step(&element("auth", "PLAIN", data.as_bytes()))
    }

    fn scram(binding: ChannelBinding, name: &str, password: &str) -> Step {
        let credentials = Credentials::default()
            .with_username(name)
            .with_password(password)
            .with_channel_binding(binding);
        let mut client =
            mechanisms::Scram::<Sha256>::from_credentials(credentials).expect("a mechanism");
        let mut login = Login::default();
        let first = login.step(&element("auth", "SCRAM-SHA-256", &client.initial()));
        let Step::Challenge(challenge) = first else { return first };
        let response = client.response(&challenge).expect("a challenge it understands");
        let last = login.step(&element("response", "", &response));
        if let Step::Success { data, .. } = &last {
            client.success(data).expect("the server's signature");
        }
        last
    }

    fn name(step: Step) -> Option<String> {
        match step {
            Step::Success { account, .. } => Some(account.to_string()),
            _ => None,
        }
    }

    #[test]
    fn the_password_is_the_name() {
        assert_eq!(name(plain("\0alice\0alice")).as_deref(), Some("alice@localhost"));
        assert_eq!(plain("\0alice\0bob"), Step::Failure(DefinedCondition::NotAuthorized));
        assert_eq!(plain("\0\0"), Step::Failure(DefinedCondition::NotAuthorized));
        assert_eq!(plain("\0echo\0echo"), Step::Failure(DefinedCondition::NotAuthorized));
    }

    /// Clients without knowledge of channel binding say `n`, the others `y`.
    #[test]
    fn scram_takes_both_flags() {
        for binding in [ChannelBinding::None, ChannelBinding::Unsupported] {
            let step = scram(binding.clone(), "Ayşe", "Ayşe");
            assert_eq!(name(step).as_deref(), Some("ayşe@localhost"));
            let wrong = scram(binding, "Ayşe", "ayşe");
            assert_eq!(wrong, Step::Failure(DefinedCondition::NotAuthorized));
        }
    }

    /// RFC 6120 §6.4.2: data may be asked for by an empty challenge.
    #[test]
    fn a_login_may_begin_without_data() {
        let mut login = Login::default();
        assert_eq!(login.step(&element("auth", "PLAIN", b"")), Step::Challenge(Vec::new()));
        assert!(name(login.step(&element("response", "", b"\0a\0a"))).is_some());
    }

    #[test]
    fn nobody_acts_for_another() {
        assert!(name(plain("alice@localhost\0alice\0alice")).is_some());
        let bob = plain("bob\0alice\0alice");
        assert_eq!(bob, Step::Failure(DefinedCondition::InvalidAuthzid));
    }

    #[test]
    fn the_anonymous_get_names_of_their_own() {
        let one = name(Login::default().step(&element("auth", "ANONYMOUS", b"")));
        let two = name(Login::default().step(&element("auth", "ANONYMOUS", b"trace")));
        assert!(one.is_some() && two.is_some() && one != two);
    }

    #[test]
    fn nonsense_is_refused() {
        let mut login = Login::default();
        for (name, mechanism, data) in [
            ("auth", "GSSAPI", &b""[..]),
            ("response", "", b"x"),
            ("auth", "SCRAM-SHA-1", b"p=tls-unique,,n=a,r=b"),
            ("auth", "SCRAM-SHA-1", b","),
            ("auth", "PLAIN", b"\xff\0\xff\0\xff"),
            ("abort", "", b""),
            ("success", "", b""),
        ] {
            let step = login.step(&element(name, mechanism, data));
            assert!(matches!(step, Step::Failure(_)), "{name} {mechanism}: {step:?}");
        }
    }
}
