//! Shows what is being done and how long it takes: a spinner on a terminal, plain lines elsewhere.
//!
//! Owns everything that xtask writes to the terminal while it works. Called from the main thread and
//! from the threads that read a child's output. Progress goes to stderr, what the guest says and the
//! results go to stdout, so that either can be redirected alone. Turned down: a bar with a percentage;
//! nothing here knows how much work is left.

#![forbid(unsafe_code)]

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::host::Progress;

/// A stage that took less is not worth a line of its own in a log.
const WORTH_A_LINE: Duration = Duration::from_secs(2);

/// The terminal (or log) that the user looks at.
pub struct Terminal {
    start: Instant,
    state: Mutex<State>,
}

struct State {
    /// `None` where stderr is no terminal.
    bar: Option<ProgressBar>,
    stage: Option<(String, Instant)>,
}

impl Terminal {
    /// Looks at stderr to decide between the two ways.
    pub fn new() -> Terminal {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
            let style = ProgressStyle::with_template("{spinner} {prefix} {elapsed:.dim}  {wide_msg:.dim}");
            if let Ok(style) = style {
                bar.set_style(style);
            }
            bar
        });
        Terminal { start: Instant::now(), state: Mutex::new(State { bar, stage: None }) }
    }

    /// Prints one line of result or of the guest's words to stdout, without tearing the spinner.
    pub fn say(&self, line: &str) {
        let print = || {
            // A closed pipe (`| head`) must not turn into a panic; the work goes on.
            let _ = writeln!(io::stdout().lock(), "{line}");
        };
        match &self.state().bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Shows a passing detail of the stage: on a terminal only, a log has no use for it.
    pub fn whisper(&self, text: &str) {
        if let State { bar: Some(bar), stage: Some(_) } = &*self.state() {
            bar.set_message(text.trim().to_owned());
        }
    }

    /// Ends the current stage without calling it done: it failed.
    pub fn abandon(&self) {
        let mut state = self.state();
        let Some((name, since)) = state.stage.take() else { return };
        hide(&state);
        self.line(&state, &format!("  {name}: failed after {:.1} s", since.elapsed().as_secs_f64()));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self, state: &State, text: &str) {
        let print = || {
            let _ = writeln!(io::stderr().lock(), "{text}");
        };
        match &state.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    fn end_stage(&self, state: &mut State) {
        let Some((name, since)) = state.stage.take() else { return };
        let took = since.elapsed();
        hide(state);
        if state.bar.is_some() || took >= WORTH_A_LINE {
            self.line(state, &format!("  {name}: {:.1} s", took.as_secs_f64()));
        }
    }
}

fn hide(state: &State) {
    if let Some(bar) = &state.bar {
        bar.disable_steady_tick();
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
}

impl Default for Terminal {
    fn default() -> Self {
        Terminal::new()
    }
}

impl Progress for Terminal {
    fn stage(&self, name: &str) {
        let mut state = self.state();
        self.end_stage(&mut state);
        state.stage = Some((name.to_owned(), Instant::now()));
        match &state.bar {
            Some(bar) => {
                bar.reset_elapsed();
                bar.set_prefix(name.to_owned());
                bar.set_message("");
                bar.set_draw_target(ProgressDrawTarget::stderr());
                bar.enable_steady_tick(Duration::from_millis(120));
            }
            None => {
                let text = format!("[{:6.1} s] {name}", self.start.elapsed().as_secs_f64());
                self.line(&state, &text);
            }
        }
    }

    fn note(&self, text: &str) {
        let state = self.state();
        match &state.bar {
            Some(bar) if state.stage.is_some() => bar.set_message(text.to_owned()),
            _ => self.line(&state, &format!("           {text}")),
        }
    }

    fn finished(&self) {
        let mut state = self.state();
        self.end_stage(&mut state);
    }
}
