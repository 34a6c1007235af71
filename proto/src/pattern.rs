//! Regular expressions of policy. The control plane refuses what cannot be compiled with the same few lines that compile
//! it in the proxy, so that neither takes what the other does not.

use regex::bytes::{Regex, RegexBuilder};

/// Compiled size of one regular expression, and of its cache in each thread, in bytes.
pub const MAX_COMPILED_BYTES: usize = 256 << 10;

/// Compiles a regular expression (RE2 syntax) that must hold for the whole of a text. As in RE2, `\w`, `\d` and `\s` are
/// ASCII (unless the expression has parts that only Unicode has, as `\p{Greek}`).
///
/// # Errors
/// The expression is malformed, or too large once compiled.
pub fn whole(pattern: &str) -> Result<Regex, regex::Error> {
    let compile = |pattern: &str, unicode| {
        let mut builder = RegexBuilder::new(pattern);
        builder.unicode(unicode).size_limit(MAX_COMPILED_BYTES).dfa_size_limit(MAX_COMPILED_BYTES).build()
    };
    // On its own first: "a)|(b" must not escape the group it is put into.
    let unicode = compile(pattern, false).is_err();
    compile(pattern, unicode)?;
    compile(&format!("^(?:{pattern})$"), unicode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_for_the_whole_text() {
        let regex = whole("/a|/b[0-9]+").unwrap();
        assert!(regex.is_match(b"/a") && regex.is_match(b"/b12"));
        assert!(!regex.is_match(b"/ab") && !regex.is_match(b"/b12/"));
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
        for pattern in ["(", "a)|(b", "(?P<x", r"\p{Foo}", "(a{1000}){1000}", r"(?:\p{L}{100}){100}"] {
            assert!(whole(pattern).is_err(), "{pattern}");
        }
    }
}
