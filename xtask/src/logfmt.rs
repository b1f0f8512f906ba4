//! One line of what the guest says: `stasis: EVENT key=value key="quoted value" …`.
//!
//! Owns the syntax only: splitting, quoting, escapes; what the keys mean is `contract`'s. Pure, runs
//! on the host. Turned down: a serde format, since a line has no nesting and order and unknown keys
//! must survive; and regular expressions, which cannot unescape.

#![forbid(unsafe_code)]

use std::fmt;

/// What every line of the contract starts with.
pub const PREFIX: &str = "stasis: ";

/// One well-formed line, in the order it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The first word after the prefix.
    pub event: String,
    /// Every pair, unknown keys included; a key may stand twice.
    pub pairs: Vec<(String, String)>,
}

/// Why a line that starts like one of ours is not one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Nothing, or no plain word, after the prefix.
    NoEvent,
    /// A word without `=` (named), or with nothing before it.
    NoKey(String),
    /// The quote opened by this key never closes.
    OpenQuote(String),
    /// This key's value has an escape we do not know.
    BadEscape(String),
    /// This key's closing quote is followed by something other than a space.
    AfterQuote(String),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::NoEvent => write!(f, "no event name after `{}`", PREFIX.trim_end()),
            Broken::NoKey(word) => write!(f, "`{word}` is not key=value"),
            Broken::OpenQuote(key) => write!(f, "the quote of `{key}=` never closes"),
            Broken::BadEscape(key) => write!(f, "unknown escape in the value of `{key}`"),
            Broken::AfterQuote(key) => write!(f, "no space after the closing quote of `{key}=`"),
        }
    }
}

impl Line {
    /// Reads one console line. `None`: not one of the contract's lines (Xen, a boot loader, noise).
    /// A carriage return at the end and Xen's own prefixes `(XEN) ` and `(dN) ` are passed over.
    pub fn parse(text: &str) -> Option<Result<Line, Broken>> {
        let body = strip_xen_prefix(text.trim_end_matches(['\r', '\n'])).strip_prefix(PREFIX)?;
        Some(parse_body(body))
    }

    /// The value of the first pair with this key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
}

impl fmt::Display for Line {
    /// Writes the line as the guest would; `parse` reads back exactly the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.event)?;
        for (key, value) in &self.pairs {
            write!(f, " {key}=")?;
            if needs_quotes(value) {
                write_quoted(f, value)?;
            } else {
                f.write_str(value)?;
            }
        }
        Ok(())
    }
}

fn strip_xen_prefix(text: &str) -> &str {
    let Some((tag, rest)) = text.strip_prefix('(').and_then(|t| t.split_once(") ")) else {
        return text;
    };
    let is_domain = tag.strip_prefix('d').is_some_and(|n| n.parse::<u16>().is_ok());
    if tag == "XEN" || is_domain { rest } else { text }
}

fn parse_body(body: &str) -> Result<Line, Broken> {
    let (event, mut rest) = body.split_once(' ').unwrap_or((body, ""));
    if event.is_empty() || event.contains(['=', '"']) {
        return Err(Broken::NoEvent);
    }
    let mut pairs = Vec::new();
    loop {
        rest = rest.trim_start_matches(' ');
        if rest.is_empty() {
            return Ok(Line { event: event.to_owned(), pairs });
        }
        let word_end = rest.find(' ').unwrap_or(rest.len());
        let Some(eq) = rest[..word_end].find('=').filter(|&eq| eq > 0) else {
            return Err(Broken::NoKey(rest[..word_end].to_owned()));
        };
        let key = rest[..eq].to_owned();
        let value;
        (value, rest) = match rest[eq + 1..].strip_prefix('"') {
            Some(quoted) => unquote(&key, quoted)?,
            None => (rest[eq + 1..word_end].to_owned(), &rest[word_end..]),
        };
        pairs.push((key, value));
    }
}

/// Reads a quoted value from behind its opening quote; returns it and what follows the closing one.
fn unquote<'a>(key: &str, quoted: &'a str) -> Result<(String, &'a str), Broken> {
    let bad = || Broken::BadEscape(key.to_owned());
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => {
                let rest = &quoted[at + 1..];
                if !(rest.is_empty() || rest.starts_with(' ')) {
                    return Err(Broken::AfterQuote(key.to_owned()));
                }
                return Ok((value, rest));
            }
            '\\' => match chars.next().map(|(_, c)| c) {
                Some('n') => value.push('\n'),
                Some('r') => value.push('\r'),
                Some('t') => value.push('\t'),
                Some('0') => value.push('\0'),
                Some(c @ ('"' | '\\' | '\'')) => value.push(c),
                Some('x') => value.push(hex_char(chars.by_ref().take(2).map(|(_, c)| c)).ok_or_else(bad)?),
                // Rust's `{:?}` writes control characters so; the kernel may print a value with it.
                Some('u') if chars.next().is_some_and(|(_, c)| c == '{') => {
                    let digits = chars.by_ref().map(|(_, c)| c).take_while(|&c| c != '}');
                    value.push(hex_char(digits).ok_or_else(bad)?);
                }
                Some(_) => return Err(bad()),
                None => return Err(Broken::OpenQuote(key.to_owned())),
            },
            c => value.push(c),
        }
    }
    Err(Broken::OpenQuote(key.to_owned()))
}

fn hex_char(digits: impl Iterator<Item = char>) -> Option<char> {
    let mut value: u32 = 0;
    let mut seen = false;
    for digit in digits {
        value = value.checked_mul(16)?.checked_add(digit.to_digit(16)?)?;
        seen = true;
    }
    seen.then(|| char::from_u32(value)).flatten()
}

fn needs_quotes(value: &str) -> bool {
    value.is_empty() || value.chars().any(|c| c == ' ' || c == '"' || c == '\\' || c.is_control())
}

fn write_quoted(f: &mut fmt::Formatter<'_>, value: &str) -> fmt::Result {
    f.write_str("\"")?;
    for c in value.chars() {
        match c {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            c if c.is_control() => write!(f, "\\u{{{:x}}}", u32::from(c))?,
            c => write!(f, "{c}")?,
        }
    }
    f.write_str("\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Result<Vec<(String, String)>, Broken> {
        Line::parse(text).expect("starts like ours").map(|l| l.pairs)
    }

    #[test]
    fn plain_quoted_empty_and_escaped_values() {
        let got = pairs(r#"stasis: boot version=0.1 cmdline="a=b \"c\" \\ \x41\u{e9}" x= y="""#).expect("well formed");
        let want = [("version", "0.1"), ("cmdline", "a=b \"c\" \\ Aé"), ("x", ""), ("y", "")];
        assert_eq!(got, want.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }

    #[test]
    fn other_peoples_lines_are_not_ours() {
        for text in ["", "hello", "stasis:", "(XEN) d1v0 says stasis: boot", " stasis: boot"] {
            assert_eq!(Line::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn xen_prefixes_and_carriage_returns_are_passed_over() {
        for text in ["stasis: online vcpus=2\r", "(d1) stasis: online vcpus=2", "(XEN) stasis: online vcpus=2\r\n"] {
            let line = Line::parse(text).expect("ours").expect("well formed");
            assert_eq!((line.event.as_str(), line.get("vcpus")), ("online", Some("2")), "{text:?}");
        }
        assert_eq!(Line::parse("(dx) stasis: online"), None);
    }

    #[test]
    fn every_way_to_be_broken_is_named() {
        let x = || "x".to_owned();
        for (text, want) in [
            ("stasis:  x=1", Broken::NoEvent),
            ("stasis: x=1", Broken::NoEvent),
            ("stasis: e word", Broken::NoKey("word".to_owned())),
            ("stasis: e =1", Broken::NoKey("=1".to_owned())),
            ("stasis: e x=\"abc", Broken::OpenQuote(x())),
            ("stasis: e x=\"abc\\", Broken::OpenQuote(x())),
            ("stasis: e x=\"\\q\"", Broken::BadEscape(x())),
            ("stasis: e x=\"\\xzz\"", Broken::BadEscape(x())),
            ("stasis: e x=\"\\u{110000}\"", Broken::BadEscape(x())),
            ("stasis: e x=\"a\"b", Broken::AfterQuote(x())),
        ] {
            assert_eq!(pairs(text), Err(want), "{text}");
        }
    }

    #[test]
    fn the_first_of_two_equal_keys_is_got_and_both_are_kept() {
        let line = Line::parse("stasis: e k=1 k=2").expect("ours").expect("well formed");
        assert_eq!(line.get("k"), Some("1"));
        assert_eq!(line.pairs.len(), 2);
    }
}
