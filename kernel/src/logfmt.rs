//! One line of the console contract: `stasis: EVENT key=value …`.
//!
//! Values with anything but plain visible characters are quoted, with `\"`, `\\`, `\n`, `\t` and `\xNN` inside, so that
//! whatever a backend, a toolstack or a panic message contains stays one value of one line. A value that does not fit is cut,
//! quotes are closed all the same, and what comes behind it is left out; so what must be read stands first.

use core::fmt::{self, Write};

use arrayvec::ArrayString;

/// Longest line, newline and all. The longest value is a command line of 1023 bytes; only one of hundreds of quotes or control
/// characters does not fit.
pub(crate) const MAX_LINE: usize = 2048;

/// A line being made. What does not fit is cut; the newline always fits.
pub(crate) struct Line {
    text: ArrayString<{ MAX_LINE - 1 }>,
}

impl Line {
    /// A line that tells of `event`.
    pub(crate) fn new(event: &str) -> Line {
        let mut line = Line { text: ArrayString::new() };
        line.push("stasis: ");
        line.push(event);
        line
    }

    /// Adds `key=value`.
    pub(crate) fn field(&mut self, key: &str, value: &dyn fmt::Display) {
        // A blank, `=`, two quotes and a byte of the value: less would be no field.
        if self.text.remaining_capacity() < key.len() + 5 {
            return;
        }
        self.push(" ");
        self.push(key);
        self.push("=");
        let mut look = Look { plain: true, empty: true };
        // A value's own Display reporting failure means only that it printed less; the line says what it can.
        let _ = write!(look, "{value}");
        if look.plain && !look.empty {
            // What does not fit is cut.
            let _ = write!(Cut(self), "{value}");
        } else {
            self.push("\"");
            let _ = write!(Quoted(self), "{value}");
            self.push("\"");
        }
    }

    /// Adds fields that are in logfmt already.
    pub(crate) fn fields(&mut self, fields: fmt::Arguments<'_>) {
        self.push(" ");
        // What does not fit is cut.
        let _ = write!(Cut(self), "{fields}");
    }

    /// The line, without its newline.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    fn push(&mut self, text: &str) {
        let room = self.text.remaining_capacity();
        let end = (0..=text.len().min(room)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        self.text.push_str(&text[..end]);
    }
}

/// What a value looks like.
struct Look {
    /// It needs no quotes.
    plain: bool,
    /// Nothing was written.
    empty: bool,
}

impl Write for Look {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.plain &= text.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'=' && b != b'\\');
        self.empty &= text.is_empty();
        Ok(())
    }
}

/// Writes into a line as it is.
struct Cut<'a>(&'a mut Line);

impl Write for Cut<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.push(text);
        Ok(())
    }
}

/// Writes into a line what stands between quotes, and leaves room for the closing one. An escape is written whole or, as the
/// first thing that does not fit, ends the value.
struct Quoted<'a>(&'a mut Line);

impl Write for Quoted<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            let mut escaped = ArrayString::<16>::new();
            match c {
                '"' => escaped.push_str("\\\""),
                '\\' => escaped.push_str("\\\\"),
                '\n' => escaped.push_str("\\n"),
                '\t' => escaped.push_str("\\t"),
                c if c.is_control() => write!(escaped, "\\x{:02x}", u32::from(c))?,
                c => escaped.push(c),
            }
            if self.0.text.remaining_capacity() <= escaped.len() {
                return Err(fmt::Error);
            }
            self.0.push(&escaped);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(value: &dyn fmt::Display) -> String {
        let mut line = Line::new("e");
        line.field("k", value);
        line.as_str().to_owned()
    }

    #[test]
    fn plain_values_stay_plain() {
        assert_eq!(one(&42), "stasis: e k=42");
        assert_eq!(one(&"3,7-9"), "stasis: e k=3,7-9");
    }

    #[test]
    fn other_values_are_quoted() {
        assert_eq!(one(&""), "stasis: e k=\"\"");
        assert_eq!(one(&"a b"), "stasis: e k=\"a b\"");
        assert_eq!(one(&"k=v"), "stasis: e k=\"k=v\"");
        assert_eq!(one(&"q\"\\\n\t\u{1}"), "stasis: e k=\"q\\\"\\\\\\n\\t\\x01\"");
        assert_eq!(one(&"größe"), "stasis: e k=\"größe\"");
    }

    #[test]
    fn long_values_are_cut_at_a_character() {
        let text = "ä".repeat(MAX_LINE);
        let line = one(&text);
        assert!(line.len() < MAX_LINE && line.len() > MAX_LINE - 8);
        assert!(line.starts_with("stasis: e k=\"ää") && line.ends_with("ä\""));
    }

    #[test]
    fn a_value_that_is_cut_is_still_quoted_and_ends_the_line() {
        for pad in 0..6 {
            let mut line = Line::new("panic");
            line.field("at", &"src/x.rs:1");
            line.field("msg", &format_args!("{}{}", "a".repeat(pad), "\u{1}\"".repeat(MAX_LINE)));
            line.field("behind", &"lost");
            let text = line.as_str();
            assert!(text.starts_with("stasis: panic at=src/x.rs:1 msg=\"") && text.ends_with('"'), "{text}");
            assert!(text.ends_with("\\x01\"") || text.ends_with("\\\"\""), "an escape is whole: {text}");
            assert!(!text.contains("behind") && text.len() < MAX_LINE);
        }
    }
}
