//! [`CpuSet`]: a set of CPUs as a value. No atomics: shared state about CPUs lives in [`PerCpu`](crate::PerCpu)
//! slots, one writer each, and is gathered into a set only to be looked at or printed.
#![forbid(unsafe_code)]

use core::fmt;

use crate::CpuId;

const WORDS: usize = CpuId::MAX / 64;

/// A set of CPUs. 128 bytes, by value.
#[derive(Clone, PartialEq, Eq)]
pub struct CpuSet {
    words: [u64; WORDS],
}

impl CpuSet {
    /// No CPU.
    pub const fn empty() -> CpuSet {
        CpuSet { words: [0; WORDS] }
    }

    /// The first `nr` CPUs; all of [`CpuId::MAX`] where `nr` is more.
    pub fn first(nr: usize) -> CpuSet {
        CpuId::first(nr).collect()
    }

    /// Adds `cpu`; true if it was not in the set.
    pub fn insert(&mut self, cpu: CpuId) -> bool {
        let (word, bit) = Self::place(cpu);
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        new
    }

    /// Takes `cpu` out; true if it was in the set.
    pub fn remove(&mut self, cpu: CpuId) -> bool {
        let (word, bit) = Self::place(cpu);
        let was = self.words[word] & bit != 0;
        self.words[word] &= !bit;
        was
    }

    /// Whether `cpu` is in the set.
    pub fn contains(&self, cpu: CpuId) -> bool {
        let (word, bit) = Self::place(cpu);
        self.words[word] & bit != 0
    }

    /// How many CPUs are in the set.
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether no CPU is in the set.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// The CPUs in rising order. Costs a step for each of them, and one for each 64 that there could be.
    pub fn iter(&self) -> impl Iterator<Item = CpuId> + '_ {
        self.words.iter().enumerate().flat_map(|(place, word)| {
            let mut left = *word;
            core::iter::from_fn(move || {
                let bit = left.trailing_zeros() as usize;
                // Without the lowest bit; nothing is left of 0.
                left &= left.wrapping_sub(1);
                (bit < 64).then(|| CpuId::new(place * 64 + bit)).flatten()
            })
        })
    }

    fn place(cpu: CpuId) -> (usize, u64) {
        (cpu.index() / 64, 1 << (cpu.index() % 64))
    }
}

impl FromIterator<CpuId> for CpuSet {
    fn from_iter<I: IntoIterator<Item = CpuId>>(cpus: I) -> CpuSet {
        let mut set = CpuSet::empty();
        for cpu in cpus {
            set.insert(cpu);
        }
        set
    }
}

/// As a list of CPUs and ranges, `3,7-9`; the empty set prints `none`.
impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        let mut cpus = self.iter().peekable();
        let mut separator = "";
        while let Some(first) = cpus.next() {
            let mut last = first;
            while let Some(next) = cpus.next_if(|next| next.index() == last.index() + 1) {
                last = next;
            }
            match last.index() - first.index() {
                0 => write!(f, "{separator}{first}")?,
                _ => write!(f, "{separator}{first}-{last}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

impl fmt::Debug for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuSet({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(cpus: &[usize]) -> CpuSet {
        cpus.iter().filter_map(|n| CpuId::new(*n)).collect()
    }

    #[test]
    fn prints_ranges() {
        assert_eq!(set(&[]).to_string(), "none");
        assert_eq!(set(&[3]).to_string(), "3");
        assert_eq!(set(&[3, 7, 8, 9]).to_string(), "3,7-9");
        assert_eq!(set(&[62, 63, 64, 65, 1023]).to_string(), "62-65,1023");
        assert_eq!(CpuSet::first(CpuId::MAX).to_string(), "0-1023");
    }

    #[test]
    fn insert_and_remove_tell_what_changed() {
        let mut cpus = CpuSet::empty();
        let seven = CpuId::new(7).expect("7 is below CpuId::MAX");
        assert!(cpus.insert(seven));
        assert!(!cpus.insert(seven));
        assert_eq!(cpus.len(), 1);
        assert!(cpus.remove(seven));
        assert!(!cpus.remove(seven));
        assert!(cpus.is_empty());
    }
}
