//! What a row of the table in `tests/abi.rs` is, and the macros that make rows; the rows themselves are in `rows.rs`.
//!
//! Kept beside the types rather than made by a macro around them, so that the types read as plain Rust; `scan.rs` finds
//! whatever is forgotten.

/// One comparison.
pub(crate) enum Row {
    /// A type's size.
    Type { rust: &'static str, c_type: &'static str, size: usize },
    /// A field's offset and size.
    Field { of: &'static str, c_type: &'static str, c_field: &'static str, offset: usize, size: usize },
    /// A constant, or a constant expression.
    Value { rust: String, c_expr: &'static str, value: u64 },
}

impl Row {
    /// Its name in the source.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Type { rust, .. } => (*rust).to_owned(),
            Self::Field { of, c_field, .. } => format!("{of}.{c_field}"),
            Self::Value { rust, .. } => rust.clone(),
        }
    }

    /// What Rust says, as the C program prints it.
    pub(crate) fn value(&self) -> String {
        match self {
            Self::Type { size, .. } => size.to_string(),
            Self::Field { offset, size, .. } => format!("{offset} {size}"),
            Self::Value { value, .. } => value.to_string(),
        }
    }
}

/// What no header has, and why.
const NOT_IN_HEADERS: &[(&str, &str)] = &[
    ("START_INFO_MAGIC", "the header gives the form in a comment only"),
    ("E820_RAM", "the BIOS's, not Xen's"),
    ("E820Entry", "the BIOS's, not Xen's; its size is asserted beside it"),
    ("XSD_ERRORS", "compared entry by entry with xsd_errors, in tests/abi.rs"),
];

/// All rows.
#[derive(Default)]
pub(crate) struct Table {
    pub(crate) rows: Vec<Row>,
}

impl Table {
    /// Whether `name`, or the type that it is a field of, has no counterpart in C.
    pub(crate) fn not_in_headers(&self, name: &str) -> bool {
        let item = name.split('.').next().expect("split gives at least one part");
        self.exceptions().any(|exception| exception == item)
    }

    /// The names without a counterpart.
    pub(crate) fn exceptions(&self) -> impl Iterator<Item = &'static str> {
        NOT_IN_HEADERS.iter().map(|&(name, _)| name)
    }

    /// Adds a constant, or an expression that Rust has a name for.
    pub(crate) fn value(&mut self, rust: &str, c_expr: &'static str, value: impl TryInto<i128>) {
        let Ok(value): Result<i128, _> = value.try_into() else { unreachable!("every constant fits 128 bits") };
        // As C prints it: converted to 64 bits without a sign, whatever it was.
        let value = u64::try_from(value.rem_euclid(1 << 64)).expect("below 2^64");
        self.rows.push(Row::Value { rust: rust.to_owned(), c_expr, value });
    }
}

/// C's name of a field: Rust's, without a raw prefix.
pub(crate) fn bare(name: &'static str) -> &'static str {
    name.strip_prefix("r#").unwrap_or(name)
}

/// The size of the field that `_project` points to.
pub(crate) fn size_of_field<T, F>(_project: impl Fn(*const T) -> *const F) -> usize {
    size_of::<F>()
}

macro_rules! values {
    ($table:ident: $($name:ident),* $(,)?) => {
        $($table.value(stringify!($name), stringify!($name), $name);)*
    };
}

macro_rules! alias {
    ($table:ident, $name:ident) => {
        $table.rows.push($crate::table::Row::Type {
            rust: stringify!($name),
            c_type: stringify!($name),
            size: size_of::<$name>(),
        })
    };
}

macro_rules! layout {
    ($table:ident: $name:ident = $c_type:literal { $($field:ident),* $(,)? }) => {
        let (rust, size) = (stringify!($name), size_of::<$name>());
        $table.rows.push($crate::table::Row::Type { rust, c_type: $c_type, size });
        $($table.rows.push($crate::table::Row::Field {
            of: stringify!($name),
            c_type: $c_type,
            c_field: $crate::table::bare(stringify!($field)),
            offset: core::mem::offset_of!($name, $field),
            size: $crate::table::size_of_field(|object: *const $name| {
                // SAFETY: never called; it is here for the type of the field.
                unsafe { &raw const (*object).$field }
            }),
        });)*
    };
}

pub(crate) use {alias, layout, values};
