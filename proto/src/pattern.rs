//! Regular expressions of policy. The control plane refuses what cannot be compiled with the same few lines that compile
//! it in the proxy, so that neither takes what the other does not.
//!
//! They are bounded one by one, and in sum: the worst object there can be costs a proxy 8 MiB for what is compiled, and 40 MiB of
//! caches in each of its workers (one by default). Several objects may have a part in a resource: beyond sixteen times as much, a proxy
//! takes none of it.

use std::{collections::HashMap, fmt, sync::Arc};

use regex_automata::{
    meta::{self, Regex},
    nfa::thompson::WhichCaptures,
    util::syntax,
};

/// Compiled size of one regular expression, in bytes; as much again for reading it backwards.
pub const MAX_COMPILED_BYTES: usize = 256 << 10;
/// Its cache in each thread, in bytes.
const CACHE_BYTES: usize = 128 << 10;

/// How many different regular expressions there may be together, and how many bytes they may take once compiled.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    pub count: usize,
    pub bytes: usize,
}

/// Those of one object, at the control plane's door.
pub const OF_OBJECT: Limit = Limit { count: 256, bytes: 8 << 20 };
/// Those of one resource, at the proxy's: several objects may have a part in it.
pub const OF_RESOURCE: Limit = Limit { count: 16 * OF_OBJECT.count, bytes: 16 * OF_OBJECT.bytes };

/// Why a regular expression cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Malformed(String),
    #[error("it takes more than {} KiB once compiled; let it repeat less", MAX_COMPILED_BYTES >> 10)]
    TooLarge,
    #[error("there are more than {0} different regular expressions; join some of them by |, or compare exactly")]
    TooMany(usize),
    #[error("all regular expressions take more than {} MiB once compiled; let them repeat less", .0 >> 20)]
    TooLargeTogether(usize),
}

impl Error {
    /// Whether it is the sum that is too much, and not this one.
    pub fn is_of_sum(&self) -> bool {
        matches!(self, Self::TooMany(_) | Self::TooLargeTogether(_))
    }
}

/// A regular expression that holds for the whole of a text, or does not.
pub struct Pattern {
    text: Box<str>,
    regex: Regex,
}

impl Pattern {
    pub fn is_match(&self, text: &[u8]) -> bool {
        self.regex.is_match(text)
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What it takes, without caches.
    fn bytes(&self) -> usize {
        self.text.len() + self.regex.memory_usage()
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pattern").field(&self.text).finish()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Compiles a regular expression (RE2 syntax) that must hold for the whole of a text. As in RE2, `\w`, `\d` and `\s` are
/// ASCII (unless the expression has parts that only Unicode has, as `\p{Greek}`).
///
/// # Errors
/// The expression is malformed, or too large once compiled.
pub fn whole(pattern: &str) -> Result<Pattern, Error> {
    let syntax = syntax(pattern)?;
    let regex = Regex::builder().configure(config()).syntax(syntax).build(&format!("^(?:{pattern})$"));
    let regex = regex.map_err(|error| match (error.size_limit(), error.syntax_error()) {
        (Some(_), _) => Error::TooLarge,
        (None, Some(error)) => malformed(error),
        (None, None) => malformed(&error),
    })?;
    Ok(Pattern { text: pattern.into(), regex })
}

/// All that is asked is whether an expression holds: groups are not remembered. What may take far more memory than the expression
/// itself is not built.
fn config() -> meta::Config {
    let config = Regex::config().nfa_size_limit(Some(MAX_COMPILED_BYTES)).hybrid_cache_capacity(CACHE_BYTES);
    let config = config.which_captures(WhichCaptures::None).utf8_empty(false);
    config.onepass(false).backtrack(false).dfa(false)
}

/// Whether an expression can be read; its size is not looked at.
///
/// # Errors
/// The expression is malformed.
pub fn parse(pattern: &str) -> Result<(), Error> {
    syntax(pattern).map(|_| ())
}

/// How an expression is to be read, if it can be read on its own: "a)|(b" must not escape the group it is put into.
fn syntax(pattern: &str) -> Result<syntax::Config, Error> {
    let bytes = syntax::Config::new().utf8(false);
    let ascii = bytes.unicode(false);
    if syntax::parse_with(pattern, &ascii).is_ok() {
        return Ok(ascii);
    }
    syntax::parse_with(pattern, &bytes).map_err(malformed)?;
    Ok(bytes)
}

/// The last line says what is wrong; those before it, where.
fn malformed(error: impl fmt::Display) -> Error {
    let text = error.to_string();
    Error::Malformed(text.lines().next_back().unwrap_or_default().trim_start_matches("error: ").to_owned())
}

/// The regular expressions of one object or resource. Each is compiled once, however often it is there.
#[derive(Debug)]
pub struct Patterns {
    limit: Limit,
    known: HashMap<Box<str>, Arc<Pattern>>,
    bytes: usize,
    /// Those that were compiled, malformed ones too: that takes time.
    tried: usize,
    exceeded: bool,
}

impl Patterns {
    pub fn within(limit: Limit) -> Self {
        Self { limit, known: HashMap::new(), bytes: 0, tried: 0, exceeded: false }
    }

    /// Whether some were refused for the sum.
    pub fn exceeded(&self) -> bool {
        self.exceeded
    }

    /// See [`whole`].
    ///
    /// # Errors
    /// The expression cannot be used, or with it there would be too much.
    pub fn whole(&mut self, pattern: &str) -> Result<Arc<Pattern>, Error> {
        if let Some(known) = self.known.get(pattern) {
            return Ok(Arc::clone(known));
        }
        if self.tried >= self.limit.count {
            self.exceeded = true;
            return Err(Error::TooMany(self.limit.count));
        }
        self.tried += 1;
        let compiled = Arc::new(whole(pattern)?);
        if self.bytes + compiled.bytes() > self.limit.bytes {
            self.exceeded = true;
            return Err(Error::TooLargeTogether(self.limit.bytes));
        }
        self.bytes += compiled.bytes();
        self.known.insert(pattern.into(), Arc::clone(&compiled));
        Ok(compiled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_for_the_whole_text() {
        let regex = whole("/a|/b[0-9]+").unwrap();
        assert!(regex.is_match(b"/a") && regex.is_match(b"/b12"));
        assert!(!regex.is_match(b"/ab") && !regex.is_match(b"/b12/"));
        assert!(whole("").unwrap().is_match(b"") && !whole("").unwrap().is_match(b"a"));
        assert!(whole("(a)(?P<x>b)").unwrap().is_match(b"ab"), "groups");
        assert!(whole(r"(?s-u:.)+").unwrap().is_match(b"\xff\n"), "any bytes");
        assert_eq!(regex.to_string(), "/a|/b[0-9]+");
    }

    #[test]
    fn everyday_expressions_fit() {
        let uuid = r"/orders/[[:xdigit:]]{8}-\w{4}-\w{4}-\w{4}-\w{12}";
        for pattern in [r"/users/\w{36}", uuid, r"/(?:[^/]+/){0,8}\d{1,20}", r"(?i)/caf\w{1,64}", r"\p{Greek}+", "é"] {
            assert!(whole(pattern).is_ok(), "{pattern}");
        }
        assert!(whole(r"/users/\w{36}").unwrap().is_match(b"/users/0a1b2c3d4e5f6a7b8c9d0a1b2c3d4e5f6a7b"));
    }

    #[test]
    fn what_is_malformed_or_too_large_is_refused() {
        for pattern in ["(", "a)|(b", "(?P<x", r"\p{Foo}"] {
            assert!(matches!(whole(pattern), Err(Error::Malformed(_))), "{pattern}");
        }
        for pattern in ["(a{1000}){1000}", r"(?:\p{L}{100}){100}"] {
            assert_eq!(whole(pattern).unwrap_err(), Error::TooLarge, "{pattern}");
        }
        assert_eq!(whole("(").unwrap_err().to_string(), "unclosed group");
    }

    #[test]
    fn as_many_as_an_object_needs_are_taken() {
        let mut patterns = Patterns::within(OF_OBJECT);
        for n in 0..64 {
            for pattern in [
                format!(r"/tenants/t{n}/orders/[[:xdigit:]]{{8}}-\w{{4}}-\w{{4}}-\w{{4}}-\w{{12}}"),
                format!(r"(?i)mozilla/{n}\.\d+ .*(?:android|iphone|ipad).*"),
                format!(r"/v{n}/(?:[^/]+/){{0,8}}\d{{1,20}}"),
                format!(r"\p{{Greek}}+-{n}"),
            ] {
                let compiled = patterns.whole(&pattern);
                assert!(compiled.is_ok(), "{pattern}: {compiled:?}, {} bytes", patterns.bytes);
                assert!(Arc::ptr_eq(&compiled.unwrap(), &patterns.whole(&pattern).unwrap()), "compiled once");
            }
        }
    }

    #[test]
    fn too_much_in_sum_is_refused() {
        let mut patterns = Patterns::within(OF_OBJECT);
        let count = (0..1000).take_while(|n| patterns.whole(&format!("a{n}")).is_ok()).count();
        assert_eq!(count, OF_OBJECT.count);
        assert!(patterns.whole("a1").is_ok(), "known");
        assert_eq!(patterns.whole("b").unwrap_err(), Error::TooMany(OF_OBJECT.count));

        let mut patterns = Patterns::within(OF_OBJECT);
        let large = |n: usize| format!("{n}a{{4000}}");
        assert!(whole(&large(0)).is_ok());
        let count = (0..1000).take_while(|n| patterns.whole(&large(*n)).is_ok()).count();
        assert!((8..OF_OBJECT.count).contains(&count), "{count}");
        assert_eq!(patterns.whole(&large(0)).map(|_| ()), Ok(()), "known");
        assert!(patterns.exceeded());
        assert_eq!(patterns.whole(&large(1000)).unwrap_err(), Error::TooLargeTogether(OF_OBJECT.bytes));
        assert!(patterns.whole("b").is_ok(), "there is room for a small one");

        let mut patterns = Patterns::within(OF_OBJECT);
        let malformed = (0..1000).filter(|n| matches!(patterns.whole(&format!("{n}(")), Err(Error::Malformed(_))));
        assert_eq!(malformed.count(), OF_OBJECT.count, "no more are looked at");
    }

    /// What the module says of caches: whatever is asked, and however large the expression is.
    #[test]
    fn caches_are_bounded() {
        let texts = [b"ab".repeat(4096), (0..=255_u8).cycle().take(16384).collect(), b"a".repeat(16384)];
        for pattern in
            ["(?:a|b)*a(?:a|b){12}", "[ab]*a[ab]{200}", ".*.*.*=.*", r"\p{L}{3}", "(?s-u:.)*[ab](?s-u:.){300}"]
        {
            let compiled = whole(pattern).unwrap();
            // Without captures nobody can bring a cache of his own.
            let config = config().which_captures(WhichCaptures::Implicit);
            let alike = Regex::builder().configure(config).syntax(syntax(pattern).unwrap()).build(pattern).unwrap();
            let mut cache = alike.create_cache();
            for text in &texts {
                for from in 0..16 {
                    alike.search_half_with(&mut cache, &regex_automata::Input::new(&text[from..]).earliest(true));
                }
            }
            let (kept, compiled) = (cache.memory_usage(), compiled.bytes());
            assert!(kept <= CACHE_BYTES + compiled, "{pattern}: {kept} bytes, {compiled} compiled");
        }
    }
}
