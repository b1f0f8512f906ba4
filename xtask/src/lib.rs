//! The host tool, as a library for the ladders in `tests/`.
