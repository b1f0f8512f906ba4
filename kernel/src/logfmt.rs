//! One line of the console contract: `stasis: EVENT key=value …`.
//!
//! Values with anything but plain visible characters are quoted, with `\"`, `\\`, `\n`, `\t` and `\xNN` inside, so that
//! whatever a backend, a toolstack or a panic message contains stays one value of one line.

use core::fmt::{self, Write};

use arrayvec::ArrayString;

/// Longest line, newline and all. The longest value is a command line, of at most 1023 bytes.
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
        self.push(" ");
        self.push(key);
        self.push("=");
        let mut plain = Plainness(true, true);
        // A value's own Display reporting failure means only that it printed less; the line says what it can.
        let _ = write!(plain, "{value}");
        let Plainness(is_plain, is_empty) = plain;
        if is_plain && !is_empty {
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

/// Whether what is written needs no quotes; whether nothing was written.
struct Plainness(bool, bool);

impl Write for Plainness {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 &= text.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'=' && b != b'\\');
        self.1 &= text.is_empty();
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

/// Writes into a line what stands between quotes.
struct Quoted<'a>(&'a mut Line);

impl Write for Quoted<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '"' => self.0.push("\\\""),
                '\\' => self.0.push("\\\\"),
                '\n' => self.0.push("\\n"),
                '\t' => self.0.push("\\t"),
                c if c.is_control() => {
                    let mut escaped = ArrayString::<16>::new();
                    write!(escaped, "\\x{:02x}", u32::from(c))?;
                    self.0.push(&escaped);
                }
                c => self.0.push(c.encode_utf8(&mut [0; 4])),
            }
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
        assert!(line.starts_with("stasis: e k=\"ää"));
    }
}
