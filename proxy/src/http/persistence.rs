//! Session persistence (Gateway API, GEP-1619): a cookie or header that names the endpoint which served a session's first
//! request, so that later ones go there too, whichever proxy they come through.
//!
//! The token is the endpoint sealed with a key that the proxies of the mesh share: a client learns no address from it, and can
//! make none up. AES-256-GCM-SIV (RFC 8452) stays safe should two proxies draw the same nonce. It is bound to the rule that
//! it was made by, so that rules do not share sessions, and to the workload, so that another one at the same address is not
//! taken for it.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use aws_lc_rs::{
    aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest, rand,
};

use super::head::{Fields, Name};

/// Of a token that is sealed.
const PLAIN: usize = 8 + 8 + 16 + 2 + 8 + 8;
const TAG: usize = 16;
const SEALED: usize = NONCE_LEN + PLAIN + TAG;
/// Characters of a token.
const TOKEN: usize = (SEALED * 4).div_ceil(3);
/// What a token is made of, should that ever change.
const VERSION: &[u8] = b"leno session 1";
/// A token is renewed once so much of the idle timeout has passed, not with each answer.
const RENEWALS: u64 = 8;

/// What the proxies of the mesh seal tokens with.
pub struct SessionKey(LessSafeKey);

impl SessionKey {
    /// 32 random bytes. None: not as many.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        UnboundKey::new(&AES_256_GCM_SIV, bytes).ok().map(|key| Self(LessSafeKey::new(key)))
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKey")
    }
}

/// How sessions of one rule are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Persistence {
    pub carrier: Carrier,
    /// A session ends so long after it began.
    pub absolute: Option<Duration>,
    /// A session ends so long after its last request.
    pub idle: Option<Duration>,
    /// What sessions belong to: the route and the rule.
    pub scope: Box<[u8]>,
}

/// What carries the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Carrier {
    Cookie {
        name: Box<str>,
        path: Box<str>,
        /// Kept by the client for the absolute timeout, and not just until it ends.
        permanent: bool,
    },
    /// In lower case. Clients send back what they got.
    Header(Box<str>),
}

/// What a token says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Session {
    backend: [u8; 8],
    workload: [u8; 8],
    pub(crate) address: SocketAddr,
    /// Unix seconds.
    began: u64,
    used: u64,
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cookie { name, .. } => write!(f, "cookie {name}"),
            Self::Header(name) => write!(f, "header {name}"),
        }
    }
}

impl Session {
    /// `workload`: name and identity of what serves at `address`.
    pub(crate) fn new(backend: &str, workload: &str, address: SocketAddr, now: u64) -> Self {
        Self { backend: short(backend), workload: short(workload), address, began: now, used: now }
    }

    pub(crate) fn is_with_backend(&self, backend: &str) -> bool {
        self.backend == short(backend)
    }

    pub(crate) fn is_with_workload(&self, workload: &str) -> bool {
        self.workload == short(workload)
    }

    /// Whether both are with the same endpoint of the same backend.
    pub(crate) fn is_where(&self, other: &Self) -> bool {
        let place = |session: &Self| (session.backend, session.workload, session.address);
        place(self) == place(other)
    }

    fn to_bytes(self) -> [u8; PLAIN] {
        let ip = match self.address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let parts: [&[u8]; 6] = [
            &self.backend,
            &self.workload,
            &ip.octets(),
            &self.address.port().to_be_bytes(),
            &self.began.to_be_bytes(),
            &self.used.to_be_bytes(),
        ];
        let mut bytes = [0; PLAIN];
        for (to, from) in bytes.iter_mut().zip(parts.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (backend, rest) = bytes.split_first_chunk()?;
        let (workload, rest) = rest.split_first_chunk()?;
        let (ip, rest) = rest.split_first_chunk::<16>()?;
        let (port, rest) = rest.split_first_chunk()?;
        let (began, rest) = rest.split_first_chunk()?;
        let (used, _) = rest.split_first_chunk()?;
        let ip = Ipv6Addr::from(*ip).to_canonical();
        Some(Self {
            backend: *backend,
            workload: *workload,
            address: SocketAddr::new(ip, u16::from_be_bytes(*port)),
            began: u64::from_be_bytes(*began),
            used: u64::from_be_bytes(*used),
        })
    }
}

impl Persistence {
    /// The session that the request belongs to, if it has not ended. `now`: Unix seconds.
    pub(crate) fn read(&self, key: &SessionKey, request: &Fields, now: u64) -> Option<Session> {
        self.find(request, |token| self.open(key, token).filter(|session| self.lasts(session, now)))
    }

    /// Whether the request has a token, be it one that can be read or not.
    pub(crate) fn is_carried(&self, request: &Fields) -> bool {
        self.find(request, |_| Some(())).is_some()
    }

    /// What the first of the request's tokens is taken for that is taken at all.
    fn find<T>(&self, request: &Fields, take: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
        match &self.carrier {
            Carrier::Header(name) => request.values(name.as_bytes()).find_map(take),
            // Others may have set cookies of the same name for other paths.
            Carrier::Cookie { name, .. } => {
                let pairs = request.all(Name::Cookie).flat_map(|value| value.split(|byte| *byte == b';'));
                let values =
                    pairs.filter_map(|pair| pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="));
                values.map(unquoted).find_map(take)
            }
        }
    }

    /// Whether the client must be given a token: it had none for this endpoint, or time runs from its last use. The session
    /// to give it.
    pub(crate) fn next(&self, held: Option<Session>, served: Session) -> Option<Session> {
        let Some(held) = held.filter(|held| held.is_where(&served)) else { return Some(served) };
        let idle = self.idle?.as_secs();
        (served.used.saturating_sub(held.used) >= idle / RENEWALS).then_some(Session { began: held.began, ..served })
    }

    /// Gives the client its token. Nothing if there are no random numbers to be had.
    pub(crate) fn write(&self, key: &SessionKey, session: Session, answer: &mut Fields) {
        let Some(token) = self.seal(key, session) else { return };
        match &self.carrier {
            Carrier::Header(name) => answer.set_named(name.as_bytes(), token.as_bytes()),
            Carrier::Cookie { name, path, permanent } => {
                let mut cookie = format!("{name}={token}; Path={path}; HttpOnly; SameSite=Strict");
                if let Some(left) = self.absolute.filter(|_| *permanent) {
                    let passed = session.used.saturating_sub(session.began);
                    cookie.push_str(&format!("; Max-Age={}", left.as_secs().saturating_sub(passed)));
                }
                answer.push(b"set-cookie", cookie.as_bytes());
            }
        }
    }

    fn lasts(&self, session: &Session, now: u64) -> bool {
        let within = |since: u64, limit: Option<Duration>| {
            limit.is_none_or(|limit| now.saturating_sub(since) < limit.as_secs().max(1))
        };
        within(session.began, self.absolute) && within(session.used, self.idle)
    }

    fn seal(&self, key: &SessionKey, session: Session) -> Option<String> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).ok()?;
        let mut sealed = session.to_bytes().to_vec();
        let bound = self.bound();
        key.0.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(bound), &mut sealed).ok()?;
        Some(to_text(&[&nonce[..], &sealed[..]].concat()))
    }

    fn open(&self, key: &SessionKey, token: &[u8]) -> Option<Session> {
        let sealed = from_text(token)?;
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let bytes = key.0.open_in_place(nonce, Aad::from(self.bound()), &mut sealed).ok()?;
        Session::from_bytes(bytes)
    }

    fn bound(&self) -> Vec<u8> {
        [VERSION, &self.scope].concat()
    }
}

/// Some cookie libraries quote what they send back.
fn unquoted(value: &[u8]) -> &[u8] {
    value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value)
}

/// Enough to tell names apart.
fn short(text: &str) -> [u8; 8] {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    digest.as_ref().first_chunk().copied().unwrap_or_default()
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Base64url without padding (RFC 4648, 5).
fn to_text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(TOKEN);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..=chunk.len() {
            let index = (group >> (18 - 6 * place)) as usize & 63;
            text.push(ALPHABET.get(index).copied().map_or('A', char::from));
        }
    }
    text
}

/// None: not a token of ours.
fn from_text(text: &[u8]) -> Option<Vec<u8>> {
    if text.len() != TOKEN {
        return None;
    }
    let mut bytes = Vec::with_capacity(SEALED);
    for chunk in text.chunks(4) {
        let mut group = 0_u32;
        for byte in chunk {
            group = group << 6 | u32::try_from(ALPHABET.iter().position(|one| one == byte)?).ok()?;
        }
        let whole = (group << (6 * (4 - chunk.len()))).to_be_bytes();
        bytes.extend(whole.iter().skip(1).take(chunk.len() - 1));
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(byte: u8) -> SessionKey {
        SessionKey::new(&[byte; 32]).unwrap()
    }

    fn persistence(carrier: Carrier) -> Persistence {
        Persistence { carrier, absolute: None, idle: None, scope: b"HTTPRoute shop/a 0".as_slice().into() }
    }

    fn cookies() -> Persistence {
        persistence(Carrier::Cookie { name: "session".into(), path: "/".into(), permanent: false })
    }

    fn session(now: u64) -> Session {
        Session::new("shop/cart:80", "cart-1", "10.1.2.3:8080".parse().unwrap(), now)
    }

    /// The request that a client sends after this answer.
    fn comes_back(persistence: &Persistence, session: Session) -> Fields {
        let mut answer = Fields::new();
        persistence.write(&key(1), session, &mut answer);
        let mut request = Fields::new();
        for (name, value) in answer.iter() {
            if name == b"set-cookie" {
                let pair = value.split(|byte| *byte == b';').next().unwrap();
                request.push(b"cookie", &[b"other=1; session=stale; ", pair, b"; last=2"].concat());
            } else {
                request.push(name, value);
            }
        }
        request
    }

    #[test]
    fn a_session_comes_back_from_any_proxy_and_for_its_rule_alone() {
        for carried in [cookies(), persistence(Carrier::Header("x-session".into()))] {
            let request = comes_back(&carried, session(100));
            assert_eq!(carried.read(&key(1), &request, 100), Some(session(100)));
            assert_eq!(carried.read(&key(2), &request, 100), None, "another mesh");
            let other = Persistence { scope: b"HTTPRoute shop/a 1".as_slice().into(), ..carried.clone() };
            assert_eq!(other.read(&key(1), &request, 100), None, "another rule");
            assert_eq!(carried.read(&key(1), &Fields::new(), 100), None);
        }
        let held = session(100);
        assert!(held.is_with_backend("shop/cart:80") && !held.is_with_backend("shop/cart:81"));
        assert!(held.is_where(&session(200)) && !held.is_where(&Session { workload: short("cart-2"), ..held }));
        assert!(held.is_with_workload("cart-1") && !held.is_with_workload("cart-2"));
    }

    #[test]
    fn sessions_end() {
        let secs = |secs| Some(Duration::from_secs(secs));
        let kept = Persistence { absolute: secs(60), idle: secs(16), ..cookies() };
        let request = comes_back(&kept, session(100));
        assert_eq!(kept.read(&key(1), &request, 115), Some(session(100)));
        assert_eq!(kept.read(&key(1), &request, 116), None, "idle");
        let renewed = Session { used: 155, ..session(100) };
        let request = comes_back(&kept, renewed);
        assert!(kept.read(&key(1), &request, 159).is_some());
        assert!(kept.read(&key(1), &request, 160).is_none(), "in all");
        // Time that runs backwards ends nothing.
        assert!(kept.read(&key(1), &request, 90).is_some());
    }

    #[test]
    fn tokens_are_given_when_they_say_something_new() {
        let plain = cookies();
        assert_eq!(plain.next(None, session(100)), Some(session(100)));
        assert_eq!(plain.next(Some(session(100)), session(5000)), None);
        let moved = Session::new("shop/cart:80", "cart-2", "10.1.2.4:8080".parse().unwrap(), 200);
        assert_eq!(plain.next(Some(session(100)), moved), Some(moved));
        let idle = Persistence { idle: Some(Duration::from_secs(80)), ..cookies() };
        assert_eq!(idle.next(Some(session(100)), session(109)), None);
        assert_eq!(idle.next(Some(session(100)), session(110)), Some(Session { used: 110, ..session(100) }));
    }

    #[test]
    fn cookies_say_how_long_they_are_kept() {
        let mut kept = Persistence { absolute: Some(Duration::from_secs(60)), ..cookies() };
        let cookie = |kept: &Persistence| {
            let mut answer = Fields::new();
            kept.write(&key(1), Session { used: 120, ..session(100) }, &mut answer);
            String::from_utf8(answer.values(b"set-cookie").next().unwrap().to_vec()).unwrap()
        };
        assert!(cookie(&kept).ends_with("; Path=/; HttpOnly; SameSite=Strict"), "{}", cookie(&kept));
        assert!(!cookie(&kept).contains("10.1.2.3"));
        kept.carrier = Carrier::Cookie { name: "a".into(), path: "/shop".into(), permanent: true };
        assert!(cookie(&kept).ends_with("; Path=/shop; HttpOnly; SameSite=Strict; Max-Age=40"), "{}", cookie(&kept));
    }

    proptest! {
        #[test]
        fn text_is_read_back(bytes in any::<[u8; SEALED]>()) {
            prop_assert_eq!(from_text(to_text(&bytes).as_bytes()), Some(bytes.to_vec()));
        }

        #[test]
        fn what_is_not_ours_is_no_session(text in proptest::collection::vec(any::<u8>(), 0..200), exact in "[A-Za-z0-9_-]{104}") {
            let request = |value: &[u8]| { let mut fields = Fields::new(); fields.push(b"x-session", value); fields };
            let kept = persistence(Carrier::Header("x-session".into()));
            prop_assert_eq!(kept.read(&key(1), &request(&text), 0), None);
            prop_assert_eq!(kept.read(&key(1), &request(exact.as_bytes()), 0), None);
        }

        #[test]
        fn addresses_are_read_back(ip in any::<IpAddr>(), port in any::<u16>(), began in any::<u64>(), used in any::<u64>()) {
            let session = Session { address: SocketAddr::new(ip.to_canonical(), port), began, used, ..session(0) };
            prop_assert_eq!(Session::from_bytes(&session.to_bytes()), Some(session));
        }
    }
}
