//! The lines that the console's daemon has not taken yet: a ring of bytes, whole lines in, any number of bytes out.

/// Bytes that wait for room in the console ring, which itself holds 2 KiB: some 1500 lines of usual length.
/// (The interpreter has no time to fill as much.)
pub(super) const QUEUE_BYTES: usize = if cfg!(miri) { 8 * 1024 } else { 128 * 1024 };

/// A ring of bytes. `head` and `len` stay below and at most [`QUEUE_BYTES`].
pub(super) struct Queue {
    bytes: [u8; QUEUE_BYTES],
    head: usize,
    len: usize,
}

impl Queue {
    pub(super) const fn new() -> Queue {
        Queue { bytes: [0; QUEUE_BYTES], head: 0, len: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn room(&self) -> usize {
        QUEUE_BYTES - self.len
    }

    /// Adds all of `text`, or nothing: false where there is no room for it.
    #[must_use]
    pub(super) fn push(&mut self, text: &[u8]) -> bool {
        if text.len() > self.room() {
            return false;
        }
        let start = (self.head + self.len) % QUEUE_BYTES;
        let first = text.len().min(QUEUE_BYTES - start);
        self.bytes[start..start + first].copy_from_slice(&text[..first]);
        self.bytes[..text.len() - first].copy_from_slice(&text[first..]);
        self.len += text.len();
        true
    }

    /// The oldest bytes that stand in a row.
    pub(super) fn front(&self) -> &[u8] {
        &self.bytes[self.head..(self.head + self.len).min(QUEUE_BYTES)]
    }

    /// Drops the oldest `count` bytes.
    pub(super) fn consume(&mut self, count: usize) {
        let count = count.min(self.len);
        self.head = (self.head + count) % QUEUE_BYTES;
        self.len -= count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_over_the_edge() {
        let mut queue = Box::new(Queue::new());
        let block = [7_u8; QUEUE_BYTES - 10];
        assert!(queue.push(&block));
        queue.consume(block.len());
        assert!(queue.push(b"0123456789abcdef"));
        assert_eq!(queue.front(), b"0123456789");
        queue.consume(10);
        assert_eq!(queue.front(), b"abcdef");
        queue.consume(100);
        assert!(queue.is_empty());
    }

    #[test]
    fn takes_a_line_whole_or_not_at_all() {
        let mut queue = Box::new(Queue::new());
        assert!(queue.push(&[0; QUEUE_BYTES - 3]));
        assert!(!queue.push(b"four"));
        assert_eq!(queue.room(), 3);
        assert!(queue.push(b"abc"));
        assert_eq!(queue.room(), 0);
    }
}
