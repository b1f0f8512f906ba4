//! Which code is both in the image and in a model, by its `cfg` attributes.
//!
//! Pure. A predicate that is not known here (a feature) leaves the code in. Turned down: asking rustc, which tells
//! nothing about code that it has left out.

#![forbid(unsafe_code)]

use syn::punctuated::Punctuated;
use syn::{Attribute, Expr, Lit, Meta, Token};

/// A build that code may be part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Build {
    /// A crate as its loom tests see it.
    Model,
    /// The kernel.
    Image,
}

/// Whether code with these attributes is in both builds. What only one of them has is a test, a model of Xen, or
/// something that no model reaches.
pub fn in_image_and_model(attributes: &[Attribute]) -> bool {
    [Build::Model, Build::Image].into_iter().all(|build| {
        let cfgs = attributes.iter().filter(|attribute| attribute.path().is_ident("cfg"));
        cfgs.filter_map(|attribute| attribute.parse_args::<Meta>().ok()).all(|meta| holds(&meta, build) != Some(false))
    })
}

/// `None` where it is not known here.
fn holds(meta: &Meta, build: Build) -> Option<bool> {
    match meta {
        Meta::Path(path) if path.is_ident("loom") => Some(build == Build::Model),
        Meta::Path(path) if ["test", "miri", "shuttle"].iter().any(|name| path.is_ident(name)) => Some(false),
        Meta::NameValue(pair) if pair.path.is_ident("target_os") => match &pair.value {
            Expr::Lit(literal) => match &literal.lit {
                Lit::Str(os) => Some((os.value() == "none") == (build == Build::Image)),
                _ => None,
            },
            _ => None,
        },
        Meta::List(list) => {
            let inner = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated).ok()?;
            let mut parts = inner.iter().map(|meta| holds(meta, build));
            if list.path.is_ident("not") {
                parts.next()?.map(|held| !held)
            } else if list.path.is_ident("all") {
                parts
                    .try_fold(Some(true), |sum, part| match (sum, part) {
                        (_, Some(false)) => Err(()),
                        (Some(true), part) => Ok(part),
                        (sum, _) => Ok(sum),
                    })
                    .unwrap_or(Some(false))
            } else if list.path.is_ident("any") {
                parts
                    .try_fold(Some(false), |sum, part| match (sum, part) {
                        (_, Some(true)) => Err(()),
                        (Some(false), part) => Ok(part),
                        (sum, _) => Ok(sum),
                    })
                    .unwrap_or(Some(true))
            } else {
                None
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(attribute: &str) -> bool {
        let item: syn::ItemFn = syn::parse_str(&format!("{attribute} fn f() {{}}")).expect("a function");
        in_image_and_model(&item.attrs)
    }

    #[test]
    fn tests_and_models_are_left_out() {
        for out in [
            "#[cfg(test)]",
            "#[cfg(loom)]",
            "#[cfg(not(loom))]",
            "#[cfg(all(test, not(loom)))]",
            "#[cfg(all(not(loom), any(test, feature = \"fake\")))]",
            "#[cfg(not(target_os = \"none\"))]",
            "#[cfg(target_os = \"none\")]",
            "#[cfg(any(test, miri))]",
        ] {
            assert!(!kept(out), "{out}");
        }
    }

    #[test]
    fn what_both_builds_have_is_kept() {
        for kept_one in [
            "",
            "#[inline]",
            "#[cfg(not(test))]",
            "#[cfg(feature = \"x\")]",
            "#[cfg(any(loom, target_os = \"none\"))]",
            "#[cfg(all(not(miri), not(feature = \"x\")))]",
        ] {
            assert!(kept(kept_one), "{kept_one}");
        }
    }
}
