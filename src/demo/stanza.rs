//! Small things done to stanzas: addresses, errors, answers, times.

use minidom::Element;
use xmpp_parsers::date::DateTime;
use xmpp_parsers::delay::Delay;
use xmpp_parsers::jid::{BareJid, Jid};
use xmpp_parsers::ns;
use xmpp_parsers::stanza_error::{DefinedCondition, ErrorType, StanzaError};
use xso::exports::rxml::{Namespace, NcName};

/// Sets an attribute that is in no namespace.
pub(super) fn set(element: &mut Element, name: &str, value: &str) {
    let name = NcName::try_from(name).expect("only literals that are NCNames come here");
    element.set_attr(Namespace::NONE, name, value);
}

/// Removes an attribute that is in no namespace.
pub(super) fn unset(element: &mut Element, name: &str) {
    element.attrs_mut().remove(&Namespace::NONE, name);
}

/// An empty element of `jabber:client` with these attributes.
pub(super) fn stanza(name: &str, attributes: &[(&str, &str)]) -> Element {
    let mut element = Element::bare(name, ns::JABBER_CLIENT);
    for (name, value) in attributes {
        set(&mut element, name, value);
    }
    element
}

/// A copy for another recipient.
pub(super) fn addressed(element: &Element, to: &str) -> Element {
    let mut copy = element.clone();
    set(&mut copy, "to", to);
    copy
}

/// The first address, whole and well-formed.
pub(super) fn sender(element: &Element) -> Option<Jid> {
    Jid::new(element.attr("from")?).ok()
}

/// The address of a server-side party named by a constant.
pub(super) fn own(jid: &str) -> BareJid {
    BareJid::new(jid).expect("only constants that are JIDs come here")
}

/// The error that answers a stanza (RFC 6120 §8.3), unless it is none to answer: an error or the
/// result of an iq.
pub(super) fn error(stanza: &Element, condition: DefinedCondition) -> Option<Element> {
    let kind = stanza.attr("type");
    if kind == Some("error") || (kind == Some("result") && stanza.name() == "iq") {
        return None;
    }
    let mut answer = reply(stanza, "error");
    answer.append_child(
        StanzaError {
            type_: error_type(&condition),
            by: None,
            defined_condition: condition,
            texts: Default::default(),
            other: None,
        }
        .into(),
    );
    Some(answer)
}

/// The result that answers an iq.
pub(super) fn result(iq: &Element, payload: Option<Element>) -> Element {
    let mut answer = reply(iq, "result");
    if let Some(payload) = payload {
        answer.append_child(payload);
    }
    answer
}

/// Same name, same id, addresses exchanged.
fn reply(stanza: &Element, kind: &str) -> Element {
    let mut answer = Element::bare(stanza.name(), ns::JABBER_CLIENT);
    set(&mut answer, "type", kind);
    for (from, to) in [("id", "id"), ("to", "from"), ("from", "to")] {
        if let Some(value) = stanza.attr(from) {
            set(&mut answer, to, value);
        }
    }
    answer
}

/// RFC 6120 §8.3.3: the type that each condition should have.
fn error_type(condition: &DefinedCondition) -> ErrorType {
    match condition {
        DefinedCondition::BadRequest
        | DefinedCondition::JidMalformed
        | DefinedCondition::NotAcceptable
        | DefinedCondition::PolicyViolation => ErrorType::Modify,
        DefinedCondition::Forbidden | DefinedCondition::NotAuthorized => ErrorType::Auth,
        DefinedCondition::ResourceConstraint => ErrorType::Wait,
        _ => ErrorType::Cancel,
    }
}

/// XEP-0203: says since when a stanza has waited, unless it says so already.
pub(super) fn delayed(mut stanza: Element, by: &str) -> Element {
    if !stanza.has_child("delay", ns::DELAY) {
        let now = chrono::DateTime::<chrono::Utc>::from(std::time::SystemTime::now());
        let delay =
            Delay { from: Jid::new(by).ok(), stamp: DateTime(now.fixed_offset()), data: None };
        stanza.append_child(delay.into());
    }
    stanza
}

/// About as many bytes as it takes in memory.
pub(super) fn weight(element: &Element) -> usize {
    let attributes: usize = element
        .attrs()
        .iter()
        .map(|((_, name), value)| 64 + name.as_str().len() + value.len())
        .sum();
    let texts: usize = element.texts().map(|text| 32 + text.len()).sum();
    let children: usize = element.children().map(weight).sum();
    128 + element.name().len() + attributes + texts + children
}

/// Sixteen random bytes in hexadecimal: names, resources, ids.
pub(super) fn token() -> Option<String> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).ok()?;
    Some(random.iter().map(|byte| format!("{byte:02x}")).collect())
}
