//! What a rule does: its validated parts, and which of them change a response.

use http::header::{CONTENT_LENGTH, HeaderName};
use http::{HeaderMap, HeaderValue, StatusCode, Version};

use super::body;
use super::matcher::Matcher;
use super::rule::{RuleError, seconds};
use crate::proto::fault_action::{Connection, Unauthorized};
use crate::proto::fault_cut::Kind;
use crate::proto::{FaultAction, FaultCut};

/// The statuses that a rule may answer with.
const STATUSES: std::ops::RangeInclusive<u32> = 400..=599;

/// A change of a response's header. Without a value it is removed.
type HeaderChange = (HeaderName, Option<HeaderValue>);

/// What is done to a response or a connection.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Action {
    pub message: FaultAction,
    pub headers: Vec<HeaderChange>,
}

/// The response that an action is about to change.
#[derive(Debug)]
pub(crate) struct Original<'a> {
    pub status: StatusCode,
    pub headers: &'a HeaderMap,
    /// Bytes of the content, which HEAD only tells.
    pub length: u64,
    pub is_head: bool,
    pub is_http2: bool,
}

impl Action {
    pub(super) fn new(message: FaultAction, matcher: &Matcher) -> Result<Self, RuleError> {
        let headers = headers(&message)?;
        check(&message, matcher)?;
        Ok(Self { message, headers })
    }

    /// Whether another response takes the place of the content.
    pub fn is_answer(&self) -> bool {
        let FaultAction { status, redirect, redirect_loop, .. } = &self.message;
        *status > 0 || !redirect.is_empty() || *redirect_loop || self.message.unauthorized() != Unauthorized::Unspecified
    }

    /// Whether something is done to any response.
    pub fn is_certain(&self, is_http2: bool) -> bool {
        let FaultAction { delay_seconds, warning, close, http_1_0, .. } = &self.message;
        self.is_answer() || *delay_seconds > 0.0 || !warning.is_empty() || *close || *http_1_0 && !is_http2
    }

    /// The parts that change this response. `None` if there are none.
    pub fn on(&self, original: &Original<'_>) -> Option<Self> {
        let Self { message: mut action, mut headers } = self.clone();
        let whole = original.length;
        action.short_body.take_if(|short| *short >= whole);
        let end = if original.is_head { 0 } else { action.short_body.unwrap_or(whole) };
        if end <= body::at_once(action.bytes_per_second) {
            action.bytes_per_second = 0;
        }
        let is_goodbye = |cut: &FaultCut| cut.kind() == Kind::Goaway;
        action.cut.take_if(|cut| cut.after_bytes >= end && !(is_goodbye(cut) && cut.after_bytes == 0));
        let last = action.cut.filter(|cut| !is_goodbye(cut)).map_or(end, |cut| cut.after_bytes);
        action.stall.take_if(|stall| stall.after_bytes >= end || stall.after_bytes > last);
        action.corrupt.take_if(|corrupt| corrupt.offset >= last);
        action.ignore_range &= matches!(original.status, StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE);
        action.http_1_0 &= !original.is_http2;
        let is_length = |value: &HeaderValue| value.to_str().is_ok_and(|text| text.parse() == Ok(whole));
        headers.retain(|(name, value)| match value {
            Some(value) if *name == CONTENT_LENGTH => !is_length(value),
            None if *name == CONTENT_LENGTH => true,
            value => original.headers.get(name) != value.as_ref(),
        });
        action.headers.clear();
        (!headers.is_empty() || action != FaultAction::default()).then_some(Self { message: action, headers })
    }

    /// Whether the client gets other content than the disk has, or another description of it.
    pub fn spoils_content(&self) -> bool {
        let describes = |(name, value): &HeaderChange| match name.as_str() {
            "docker-content-digest" | "content-type" | "content-range" | "content-encoding" => true,
            // Without one, the client gets all bytes.
            "content-length" => value.is_some(),
            _ => false,
        };
        self.message.corrupt.is_some() || self.message.short_body.is_some() || self.headers.iter().any(describes)
    }

    /// Whether something is done to the body.
    pub fn changes_body(&self) -> bool {
        let FaultAction { bytes_per_second, stall, cut, short_body, corrupt, .. } = &self.message;
        *bytes_per_second > 0
            || stall.is_some()
            || cut.is_some()
            || short_body.is_some()
            || corrupt.is_some()
            || self.headers.iter().any(|(name, _)| *name == CONTENT_LENGTH)
    }

    /// What is done, for people.
    pub fn summary(&self) -> String {
        let action = &self.message;
        let mut parts = Vec::new();
        let mut add = |is_done: bool, text: String| {
            if is_done {
                parts.push(text)
            }
        };
        add(action.status > 0, format!("status {}", action.status));
        add(action.retry_after.is_some(), format!("Retry-After: {}", action.retry_after.unwrap_or_default()));
        add(action.delay_seconds > 0.0, format!("{} s late", action.delay_seconds));
        add(action.bytes_per_second > 0, format!("{} bytes/s", action.bytes_per_second));
        if let Some(stall) = &action.stall {
            add(true, format!("stalled after {} bytes", stall.after_bytes));
        }
        if let Some(cut) = &action.cut {
            let kind = if cut.kind() == Kind::Unspecified { Kind::Fin } else { cut.kind() };
            add(true, format!("{} after {} bytes", kind.as_str_name(), cut.after_bytes));
        }
        add(action.short_body.is_some(), format!("body of {} bytes", action.short_body.unwrap_or_default()));
        if let Some(corrupt) = &action.corrupt {
            add(true, format!("wrong bytes from {}", corrupt.offset));
        }
        for (name, value) in &self.headers {
            add(true, format!("{} header {name}", if value.is_some() { "other" } else { "no" }));
        }
        add(action.ignore_range, "range ignored".to_owned());
        add(!action.redirect.is_empty(), format!("redirect to {}", action.redirect));
        add(action.redirect_loop, "redirect to itself".to_owned());
        add(action.unauthorized() != Unauthorized::Unspecified, format!("401 {}", action.unauthorized().as_str_name()));
        add(!action.warning.is_empty(), "Warning header".to_owned());
        add(action.close, "connection closed".to_owned());
        add(action.http_1_0, "HTTP/1.0".to_owned());
        add(action.connection() != Connection::Unspecified, action.connection().as_str_name().to_owned());
        parts.join(", ")
    }
}

fn headers(action: &FaultAction) -> Result<Vec<HeaderChange>, RuleError> {
    let changes = action.headers.iter().map(|change| {
        let name = change.name.parse::<HeaderName>();
        let name =
            name.map_err(|_| RuleError::new("do.headers.name", format!("{:?} is not the name of a header", change.name)))?;
        // HTTP/2 cannot send a response with one of these (RFC 9113, section 8.2.2).
        let is_framing =
            ["connection", "transfer-encoding", "upgrade", "keep-alive", "proxy-connection", "te"].contains(&name.as_str());
        if is_framing {
            return Err(RuleError::new("do.headers.name", format!("{name} cannot be changed; `close` ends the connection")));
        }
        let value = change.value.as_ref().map(|value| {
            let parsed = HeaderValue::from_str(value);
            parsed.map_err(|_| RuleError::new("do.headers.value", format!("{value:?} cannot be the value of a header")))
        });
        let value = value.transpose()?;
        let is_number = |value: &HeaderValue| {
            // Rust takes a sign as well.
            value.as_bytes().iter().all(u8::is_ascii_digit) && value.to_str().is_ok_and(|text| text.parse::<u64>().is_ok())
        };
        if name == CONTENT_LENGTH && value.as_ref().is_some_and(|value| !is_number(value)) {
            return Err(RuleError::new("do.headers.value", "Content-Length needs a number of bytes".to_owned()));
        }
        Ok((name, value))
    });
    let changes = changes.collect::<Result<Vec<HeaderChange>, RuleError>>()?;
    let is_again = |at: usize, name: &HeaderName| changes.iter().take(at).any(|(other, _)| other == name);
    match changes.iter().enumerate().find(|(at, (name, _))| is_again(*at, name)) {
        Some((_, (name, _))) => Err(RuleError::new("do.headers", format!("{name} is changed twice"))),
        None => Ok(changes),
    }
}

/// Checks that each value which has a name has one: prototext takes any number.
pub(super) fn check_names(action: &FaultAction) -> Result<(), RuleError> {
    let kind = action.cut.unwrap_or_default().kind;
    for (field, number, is_known) in [
        ("do.unauthorized", action.unauthorized, Unauthorized::try_from(action.unauthorized).is_ok()),
        ("do.connection", action.connection, Connection::try_from(action.connection).is_ok()),
        ("do.cut.kind", kind, Kind::try_from(kind).is_ok()),
    ] {
        if !is_known {
            return Err(RuleError::new(field, format!("no value has the number {number}; expected a name")));
        }
    }
    Ok(())
}

/// Checks what is done, and that nothing in it contradicts something else.
fn check(action: &FaultAction, matcher: &Matcher) -> Result<(), RuleError> {
    let bad = |field, problem: String| Err(RuleError::new(field, problem));
    if *action == FaultAction::default() {
        return bad("do", "it does nothing; expected an action, such as {\"status\": 503}".to_owned());
    }
    if action.status > 0 && !STATUSES.contains(&action.status) {
        return bad("do.status", format!("{} is not a status of an error; expected 400 to 599", action.status));
    }
    seconds("do.delay_seconds", action.delay_seconds)?;
    if let Some(stall) = &action.stall {
        seconds("do.stall.seconds", stall.seconds)?;
    }
    // `name` needs one of `others`.
    let is_answer = [
        ("status", action.status > 0),
        ("redirect", !action.redirect.is_empty()),
        ("redirect_loop", action.redirect_loop),
        ("unauthorized", action.unauthorized() != Unauthorized::Unspecified),
    ];
    for (field, name, is_given) in [
        ("do.code", "code", !action.code.is_empty()),
        ("do.message", "message", !action.message.is_empty()),
        ("do.retry_after", "retry_after", action.retry_after.is_some()),
    ] {
        if is_given && action.status == 0 {
            return bad(field, format!("{name} is without effect; expected status beside it"));
        }
    }
    let body = [
        ("short_body", action.short_body.is_some()),
        ("corrupt", action.corrupt.is_some()),
        ("ignore_range", action.ignore_range),
    ];
    let given =
        |list: &[(&'static str, bool)]| list.iter().filter(|(_, is_given)| *is_given).map(|(name, _)| *name).collect::<Vec<_>>();
    let (answers, content) = (given(&is_answer), given(&body));
    let exclusive =
        [answers.as_slice(), content.get(..usize::from(!answers.is_empty()).min(content.len())).unwrap_or_default()].concat();
    if let [one, other, ..] = exclusive.as_slice() {
        return bad("do", format!("{one} contradicts {other}; one of them is expected"));
    }
    let cut = action.cut.as_ref();
    if action.short_body.is_some() && cut.is_some() {
        return bad("do", "short_body contradicts cut; one of them is expected".to_owned());
    }
    let stalls_for_good =
        |after: u64| action.stall.as_ref().is_some_and(|stall| stall.seconds == 0.0 && stall.after_bytes <= after);
    if cut.is_some_and(|cut| stalls_for_good(cut.after_bytes)) {
        return bad("do", "stall without an end contradicts cut, which comes after it; expected stall.seconds".to_owned());
    }
    let is_http2 = matcher.version.map(|version| version == Version::HTTP_2);
    if action.http_1_0 && is_http2 == Some(true) {
        return bad("do.http_1_0", "it contradicts match.http, which is 2".to_owned());
    }
    if cut.is_some_and(|cut| cut.kind() == Kind::RstStream) && is_http2 == Some(false) {
        return bad("do.cut.kind", "RST_STREAM contradicts match.http: only HTTP/2 has streams".to_owned());
    }
    if !action.redirect.is_empty() {
        let url = action.redirect.parse::<http::Uri>().ok().filter(|url| matches!(url.scheme_str(), Some("http" | "https")));
        // Nothing can follow a query or a fragment, which the parser drops.
        let is_open = |url: http::Uri| url.query().is_none() && url.authority().is_some();
        if !action.redirect.is_ascii() || action.redirect.contains('#') || !url.is_some_and(is_open) {
            return bad("do.redirect", format!("{:?} is not a URL; expected one such as http://10.1.0.82:5001", action.redirect));
        }
    }
    if HeaderValue::from_str(&action.warning).is_err() || action.warning.contains(['"', '\\']) {
        return bad("do.warning", "expected printable characters without quotation marks and backslashes".to_owned());
    }
    if action.connection() != Connection::Unspecified {
        if *action != (FaultAction { connection: action.connection, ..FaultAction::default() }) {
            return bad("do.connection", "it contradicts the other actions: there is no request yet".to_owned());
        }
        if matcher.needs_request() {
            return bad("do.connection", "a connection matches by peer and port only: there is no request yet".to_owned());
        }
    }
    Ok(())
}
