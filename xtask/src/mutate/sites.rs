//! Finds the orderings of a source that promise something.
//!
//! Pure: text in, sites out. Understood are `Ordering::Acquire`, with any path before it, and `Acquire` where the file
//! imports it from there; inside of macros too. Code that is not both in the image and in the models is passed over.

#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use anyhow::{Context, Result};
use proc_macro2::{Ident, Span, TokenStream, TokenTree};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{
    Arm, Attribute, Expr, ExprCall, ExprMethodCall, ExprPath, ImplItemFn, Item, ItemUse, Macro, Pat, Path, Stmt, Token,
    UseTree,
};

use super::cfg::in_image_and_model;
use super::comment;
use super::weaken::{Operation, Strength};

/// An ordering that can be weakened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Its line, from 1.
    pub line: usize,
    /// The bytes of its path.
    pub bytes: Range<usize>,
    /// What it promises.
    pub strength: Strength,
    /// What it is of.
    pub operation: Operation,
    /// What is said about it, in one line.
    pub comment: String,
}

/// All sites of a source, in the order in which they stand there.
///
/// # Errors
/// When the text is not Rust.
pub fn find(text: &str) -> Result<Vec<Site>> {
    let file = syn::parse_file(text).context("not Rust")?;
    let mut finder = Finder { lines: text.lines().collect(), ..Finder::default() };
    finder.orderings.insert("Ordering".to_owned());
    Imports(&mut finder).visit_file(&file);
    finder.visit_file(&file);
    finder.sites.sort_by_key(|site| site.bytes.start);
    Ok(finder.sites)
}

#[derive(Default)]
struct Finder<'t> {
    lines: Vec<&'t str>,
    /// What the enum is called here.
    orderings: HashSet<String>,
    /// What its variants are called where they are imported.
    variants: HashMap<String, Strength>,
    /// Where the statements and match arms begin that we are in, outermost first.
    starts: Vec<usize>,
    sites: Vec<Site>,
}

/// The `use` items come first: Rust lets them stand behind what needs them.
struct Imports<'f, 't>(&'f mut Finder<'t>);

impl<'ast> Visit<'ast> for Imports<'_, '_> {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.0.import(&item.tree, false);
    }
}

impl Finder<'_> {
    /// `of_ordering`: the path so far ends in the enum.
    fn import(&mut self, tree: &UseTree, of_ordering: bool) {
        let all = [Strength::Acquire, Strength::Release, Strength::AcqRel, Strength::SeqCst];
        match tree {
            UseTree::Path(path) => self.import(&path.tree, self.orderings.contains(&path.ident.to_string())),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.import(tree, of_ordering)),
            UseTree::Name(name) => self.variant(&name.ident, &name.ident, of_ordering),
            UseTree::Rename(rename) if rename.ident == "Ordering" => {
                self.orderings.insert(rename.rename.to_string());
            }
            UseTree::Rename(rename) => self.variant(&rename.ident, &rename.rename, of_ordering),
            UseTree::Glob(_) if of_ordering => {
                self.variants.extend(all.map(|strength| (strength.name().to_owned(), strength)));
            }
            UseTree::Glob(_) => {}
        }
    }

    fn variant(&mut self, name: &Ident, here: &Ident, of_ordering: bool) {
        if let (true, Some(strength)) = (of_ordering, Strength::by_name(&name.to_string())) {
            self.variants.insert(here.to_string(), strength);
        }
    }

    /// What a path stands for: its last name, and the one before.
    fn strength(&self, before: Option<&str>, name: &str) -> Option<Strength> {
        match before {
            Some(before) => self.orderings.contains(before).then(|| Strength::by_name(name)).flatten(),
            None => self.variants.get(name).copied(),
        }
    }

    fn path(&mut self, path: &Path, operation: Operation) {
        let mut names = path.segments.iter().rev().map(|segment| segment.ident.to_string());
        let name = names.next().unwrap_or_default();
        if let Some(strength) = self.strength(names.next().as_deref(), &name) {
            self.site(path.span(), strength, operation);
        }
    }

    fn site(&mut self, at: Span, strength: Strength, operation: Operation) {
        let line = at.start().line;
        let inner_first: Vec<usize> = self.starts.iter().rev().copied().collect();
        let comment = comment::of_site(&self.lines, line, &inner_first);
        self.sites.push(Site { line, bytes: at.byte_range(), strength, operation, comment });
    }

    fn argument(&mut self, argument: &Expr, operation: Operation) {
        match argument {
            Expr::Path(path) => self.path(&path.path, operation),
            other => self.visit_expr(other),
        }
    }

    fn within(&mut self, start: usize, look: impl FnOnce(&mut Self)) {
        self.starts.push(start);
        look(self);
        self.starts.pop();
    }

    /// The inside of a macro that is neither expressions nor items.
    fn tokens(&mut self, tokens: TokenStream) {
        // The names of the path so far, and where it began.
        let mut before: Option<(String, Span)> = None;
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' && before.is_some() && colons < 2 => colons += 1,
                TokenTree::Ident(ident) => {
                    let name = ident.to_string();
                    let of = before.take().filter(|_| colons == 2);
                    if let Some(strength) = self.strength(of.as_ref().map(|(name, _)| name.as_str()), &name) {
                        let whole = of.and_then(|(_, first)| first.join(ident.span())).unwrap_or(ident.span());
                        self.site(whole, strength, Operation::Change);
                    }
                    (before, colons) = (Some((name, ident.span())), 0);
                }
                other => {
                    (before, colons) = (None, 0);
                    if let TokenTree::Group(group) = other {
                        self.tokens(group.stream());
                    }
                }
            }
        }
    }
}

/// What the orderings of a method are of, by their place among `nr` arguments.
fn operation(method: &str, place: usize, nr: usize) -> Operation {
    match method {
        "load" => Operation::Load,
        "store" => Operation::Store,
        // The last of two orderings is for the exchange that fails.
        _ if method.starts_with("compare_exchange") && place + 1 == nr => Operation::Load,
        "fetch_update" if place == 1 => Operation::Load,
        _ => Operation::Change,
    }
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if in_image_and_model(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast ImplItemFn) {
        if in_image_and_model(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_stmt(&mut self, statement: &'ast Stmt) {
        self.within(statement.span().start().line, |finder| visit::visit_stmt(finder, statement));
    }

    fn visit_arm(&mut self, arm: &'ast Arm) {
        self.within(arm.span().start().line, |finder| visit::visit_arm(finder, arm));
    }

    // Nothing in a pattern orders anything.
    fn visit_pat(&mut self, _: &'ast Pat) {}

    fn visit_expr_path(&mut self, path: &'ast ExprPath) {
        self.path(&path.path, Operation::Change);
    }

    fn visit_expr_call(&mut self, call: &'ast ExprCall) {
        let fence = match &*call.func {
            Expr::Path(path) => path.path.segments.last().is_some_and(|last| last.ident == "fence"),
            _ => false,
        };
        if fence {
            let whole = call.span().byte_range();
            call.args.iter().for_each(|argument| self.argument(argument, Operation::Fence(whole.clone())));
        } else {
            visit::visit_expr_call(self, call);
        }
    }

    fn visit_expr_method_call(&mut self, call: &'ast ExprMethodCall) {
        self.visit_expr(&call.receiver);
        let method = call.method.to_string();
        for (place, argument) in call.args.iter().enumerate() {
            self.argument(argument, operation(&method, place, call.args.len()));
        }
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        if let Ok(arguments) = call.parse_body_with(Punctuated::<Expr, Token![,]>::parse_terminated) {
            arguments.iter().for_each(|argument| self.visit_expr(argument));
        } else if let Ok(items) = call.parse_body::<syn::File>() {
            self.visit_file(&items);
        } else {
            self.tokens(call.tokens.clone());
        }
    }
}

/// Those of the items that code stands in.
fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each site as `line text operation`.
    fn found(text: &str) -> Vec<String> {
        let name = |operation: &Operation| match operation {
            Operation::Fence(call) => format!("fence {}", &text[call.clone()]),
            other => format!("{other:?}").to_lowercase(),
        };
        let sites = find(text).expect("it is Rust");
        sites
            .iter()
            .map(|site| format!("{} {} {}", site.line, &text[site.bytes.clone()], name(&site.operation)))
            .collect()
    }

    #[test]
    fn paths_and_imported_names_are_found() {
        let text = "
use core::sync::atomic::Ordering::{self, Acquire, Relaxed, Release};
fn f(word: &Word) -> u32 {
    word.ä.store(0, Release);
    word.a.store(1, atomic::Ordering::SeqCst);
    word.a.load(Relaxed) + word.a.load(Ordering::Acquire)
}";
        assert_eq!(found(text), ["4 Release store", "5 atomic::Ordering::SeqCst store", "6 Ordering::Acquire load"]);
        // A second text of the same thread: bytes still count from its own start.
        assert_eq!(found(text).len(), 3);
    }

    #[test]
    fn names_that_only_look_like_it_are_not() {
        let text = "
use crate::Phase::{self, Release};
fn f(x: Phase) -> Phase {
    // Ordering::Acquire
    g(Release, Phase::Acquire, \"Ordering::SeqCst\");
    match x { Ordering::Acquire => Acquire, other => other }
}";
        assert!(found(text).is_empty(), "{:?}", found(text));
    }

    #[test]
    fn operations_are_told_apart() {
        let text = "
use core::sync::atomic::Ordering::*;
fn f() {
    a.compare_exchange_weak(0, 1, AcqRel, Acquire);
    a.swap(0, SeqCst);
    a.fetch_update(Release, Acquire, g);
    fence(SeqCst);
    change(a, Acquire);
}";
        assert_eq!(
            found(text),
            [
                "4 AcqRel change",
                "4 Acquire load",
                "5 SeqCst change",
                "6 Release change",
                "6 Acquire load",
                "7 SeqCst fence fence(SeqCst)",
                "8 Acquire change",
            ]
        );
    }

    #[test]
    fn macros_are_looked_into() {
        let text = "
use core::sync::atomic::Ordering;
const_unless_loom! {
    /// Doc.
    pub fn new() -> u32 { a.load(Ordering::Acquire) }
}
fn f() {
    assert_eq!(a.load(Ordering::SeqCst), 1);
    strange!(x => a.swap(1, Ordering::AcqRel); y);
}";
        assert_eq!(found(text), ["5 Ordering::Acquire load", "8 Ordering::SeqCst load", "9 Ordering::AcqRel change"]);
    }

    #[test]
    fn tests_and_models_are_passed_over() {
        let text = "
use core::sync::atomic::Ordering::Acquire;
struct S;
impl S {
    #[cfg(not(loom))]
    fn f() { a.load(Acquire); }
    fn g() { a.load(Acquire); }
}
#[cfg(all(test, not(loom)))]
mod tests {
    fn h() { a.load(Acquire); }
}";
        assert_eq!(found(text), ["7 Acquire load"]);
    }

    #[test]
    fn a_site_comes_with_its_comment() {
        let text = "
fn f() {
    // ORDERING: AcqRel, fails in tests/loom_x.rs.
    loop {
        let word = a
            .swap(0, Ordering::AcqRel);
    }
}";
        assert_eq!(find(text).expect("it is Rust")[0].comment, "ORDERING: AcqRel, fails in tests/loom_x.rs.");
    }
}
