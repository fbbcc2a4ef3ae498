//! Progress of one pull or import: bars on a terminal, lines elsewhere, or JSON.
//!
//! The only module beside [`super::output`] that writes to the terminal, and the only one that
//! moves its cursor. Threads report what they do to one [`Progress`]; it decides what is shown when.

mod bars;
mod events;
mod model;

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use shifter_core::sanitize;

use super::{output, terminal};
use crate::cache::Progress as Received;
use crate::pull::Event;
use crate::registry::{self as client, Descriptor};
use bars::Bars;
use events::Events;
use model::Model;
pub(super) use model::Phase;

/// How often bars are drawn.
const FRAME: Duration = Duration::from_millis(100);
/// How often a line says how far a long pull is; a short one needs none.
const LINE: Duration = Duration::from_secs(10);

/// How progress is shown.
enum View {
    Nothing,
    Bars(Bars),
    Lines(Lines),
    Events(Events),
}

/// Lines for logs.
struct Lines {
    /// Everything is told, as it comes.
    all: bool,
    last: Instant,
}

impl Lines {
    fn new(all: bool) -> Self {
        Self {
            all,
            last: Instant::now(),
        }
    }

    /// Tells something new, or only what is due.
    fn tell(&mut self, is_new: bool, label: &str, text: impl FnOnce() -> String) {
        if (self.all && is_new) || self.last.elapsed() >= LINE {
            self.say(label, &text());
        }
    }

    /// Tells what must be told.
    fn say(&mut self, label: &str, text: &str) {
        self.last = Instant::now();
        write(&format!("{label}: {text}\n"));
    }
}

struct State {
    model: Model,
    view: View,
    drawn: Option<Instant>,
}

/// The progress of one image.
pub(super) struct Progress(Mutex<State>);

/// The progress of the image that is being worked at, for those who serve all images in turn.
#[derive(Clone, Default)]
pub(super) struct Current(Arc<Mutex<Weak<Progress>>>);

impl Current {
    /// Names it; it counts for as long as it is there.
    pub fn set(&self, progress: &Arc<Progress>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(progress);
    }

    /// Shows what the client does besides what it was asked for.
    pub fn show(&self, event: &client::Event<'_>) {
        let current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(progress) = current.upgrade() else {
            return;
        };
        drop(current);
        progress.retried(&match event {
            client::Event::Retry { error, pause } => {
                let seconds = pause.as_secs_f64();
                format!("{}: again in {seconds:.1} s", output::chain(*error))
            }
            client::Event::NextSource { error, next } => {
                format!("{}: asking '{next}'", output::chain(*error))
            }
        });
    }
}

/// Which way of showing is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wishes {
    pub quiet: bool,
    pub json: bool,
    pub verbose: bool,
}

impl Progress {
    /// Shows progress of `reference` as wished, and as the terminal allows.
    pub fn new(reference: &str, wishes: Wishes) -> Self {
        let label = sanitize::text(reference);
        let view = if wishes.json {
            View::Events(Events::new(reference))
        } else if wishes.quiet {
            View::Nothing
        } else if terminal::size().is_some() && !wishes.verbose {
            View::Bars(Bars::default())
        } else {
            View::Lines(Lines::new(wishes.verbose))
        };
        Self(Mutex::new(State {
            model: Model::new(label),
            view,
            drawn: None,
        }))
    }

    /// Shows what a pull tells.
    pub fn show(&self, event: &Event<'_>) {
        match *event {
            Event::Resolving => self.phase(Phase::Resolving),
            Event::Resolved { layers, .. } => self.layers(layers),
            Event::Waiting(holder) => self.waiting(holder),
            Event::Downloading => self.phase(Phase::Downloading),
            Event::Building => self.phase(Phase::Building),
            Event::Layer { digest, progress } => {
                let digest = digest.to_string();
                match progress {
                    Received::Present(bytes) | Received::Elsewhere(bytes) => {
                        self.received(&digest, bytes, true);
                    }
                    Received::Received(bytes) => self.received(&digest, bytes, false),
                    Received::Waiting(holder) => self.held(&digest, holder),
                }
            }
        }
    }

    /// Says what is done now.
    pub fn phase(&self, phase: Phase) {
        let mut state = self.state();
        if state.model.phase == phase {
            return;
        }
        state.model.phase = phase;
        let State { model, view, .. } = &mut *state;
        match view {
            View::Lines(lines) if phase == Phase::Waiting => {
                lines.say(&model.label, &model.action());
            }
            View::Lines(lines) => lines.tell(true, &model.label, || model.action()),
            View::Events(events) => events.phase(model),
            View::Bars(_) | View::Nothing => {}
        }
        state.draw(true);
    }

    /// Says that somebody else is at work on the image, and who.
    pub fn waiting(&self, holder: &str) {
        self.state().model.holder = holder.to_owned();
        self.phase(Phase::Waiting);
    }

    /// Says that somebody else downloads a layer, and who.
    fn held(&self, digest: &str, holder: &str) {
        let mut state = self.state();
        let State { model, view, .. } = &mut *state;
        if let View::Lines(lines) = view {
            let layer = model.layers.iter().find(|layer| layer.digest == digest);
            let name = layer.map_or(digest, |layer| layer.name());
            let text = format!("waiting for {holder}, which downloads layer {name}");
            lines.say(&model.label, &text);
        }
    }

    /// Says which layers there are: digest and size.
    fn layers(&self, layers: &[Descriptor]) {
        let mut state = self.state();
        state
            .model
            .set_layers(layers.iter().map(|l| (l.digest.to_string(), l.size)));
        let State { model, view, .. } = &mut *state;
        match view {
            View::Lines(lines) => lines.tell(true, &model.label, || model.summary()),
            View::Events(events) => events.layers(model),
            View::Bars(_) | View::Nothing => {}
        }
        state.draw(true);
    }

    /// Says that more of a layer is here.
    fn received(&self, digest: &str, bytes: u64, was_here: bool) {
        if bytes == 0 {
            return;
        }
        let mut state = self.state();
        let is_done = state.model.received(digest, bytes, was_here);
        let State { model, view, .. } = &mut *state;
        match view {
            View::Events(events) => events.layer(model, digest, is_done),
            View::Lines(lines) => lines.tell(false, &model.label, || model.amount()),
            View::Bars(_) | View::Nothing => {}
        }
        state.draw(is_done);
    }

    /// Says that a request is made again, and why.
    fn retried(&self, reason: &str) {
        let mut state = self.state();
        state.model.retries += 1;
        let reason = sanitize::text(reason);
        let State { model, view, .. } = &mut *state;
        match view {
            View::Lines(lines) => {
                lines.tell(true, &model.label, || format!("trying again: {reason}"));
            }
            View::Events(events) => events.retry(&reason),
            View::Bars(_) | View::Nothing => {}
        }
        state.draw(true);
    }

    /// Says how much of `all` bytes has been compared.
    pub fn compared(&self, done: u64, all: u64) {
        let mut state = self.state();
        // A store may grow meanwhile.
        let percent = u128::from(done) * 100 / u128::from(all.max(1));
        state.model.percent = Some(u8::try_from(percent).unwrap_or(u8::MAX).min(100));
        state.draw(false);
    }

    /// Removes what is drawn; what is printed from now on stands on lines of its own.
    pub fn clear(&self) {
        if let View::Bars(bars) = &mut self.state().view {
            write(&bars.clear());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Draws the bars, if that is due or something is worth it.
    fn draw(&mut self, is_worth_it: bool) {
        let View::Bars(bars) = &mut self.view else {
            return;
        };
        let now = Instant::now();
        let is_due = self
            .drawn
            .is_none_or(|last| now.duration_since(last) >= FRAME);
        if !is_due && !is_worth_it {
            return;
        }
        if let Some((columns, lines)) = terminal::size() {
            self.drawn = Some(now);
            write(&bars.draw(&self.model, columns, lines));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// There is nowhere to report that stderr is closed.
fn write(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}
