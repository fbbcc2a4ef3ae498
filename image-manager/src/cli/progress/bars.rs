//! Bars on a terminal: one line for the image, one for each layer that is under way.
//!
//! Every frame is one write: the cursor goes up over the last frame, each line is written over and
//! what is left of it erased. No line is longer than the terminal is wide, and a frame never taller
//! than the terminal, so that the cursor always comes back to where the last frame began.

use super::model::{Layer, Model, Phase};
use crate::store::megabytes;

/// Layers that are shown; more than are downloaded at once.
const MOST_LAYERS: usize = 8;
const WIDEST_BAR: usize = 30;
const ERASE_LINE: &str = "\x1b[K";
const ERASE_BELOW: &str = "\x1b[J";

/// The last frame: how long each of its lines was.
#[derive(Debug, Default)]
pub(super) struct Bars {
    lengths: Vec<usize>,
}

impl Bars {
    /// Returns what draws a frame over the last one.
    pub fn draw(&mut self, model: &Model, columns: usize, lines: usize) -> String {
        // The last column stays free: some terminals wrap as soon as it is written.
        let room = columns.saturating_sub(1).max(1);
        let frame = frame(model, room, lines.saturating_sub(1).max(1));
        let mut text = self.to_start(columns);
        for line in &frame {
            text.push_str(line);
            text.push_str(ERASE_LINE);
            text.push('\n');
        }
        text.push_str(ERASE_BELOW);
        self.lengths = frame.iter().map(|line| line.chars().count()).collect();
        text
    }

    /// Returns what removes the last frame.
    pub fn clear(&mut self) -> String {
        let Some((columns, _)) = super::terminal::size() else {
            return String::new();
        };
        let mut text = self.to_start(columns);
        if !text.is_empty() {
            text.push_str(ERASE_BELOW);
        }
        self.lengths.clear();
        text
    }

    /// Moves to the beginning of the last frame. Where the terminal has become narrower since, it
    /// has broken the lines.
    fn to_start(&self, columns: usize) -> String {
        let rows: usize = self
            .lengths
            .iter()
            .map(|length| length.div_ceil(columns.max(1)).max(1))
            .sum();
        match rows {
            0 => String::new(),
            rows => format!("\r\x1b[{rows}A"),
        }
    }
}

fn frame(model: &Model, room: usize, lines: usize) -> Vec<String> {
    let mut frame = vec![cut(&headline(model), room)];
    let under_way = |layer: &&Layer| layer.done > 0 && !layer.is_done();
    let most = MOST_LAYERS.min(lines.saturating_sub(1));
    if matches!(model.phase, Phase::Downloading | Phase::Building) {
        let shown = model.layers.iter().filter(under_way).take(most);
        frame.extend(shown.map(|layer| cut(&layer_line(layer, room), room)));
    }
    frame
}

fn headline(model: &Model) -> String {
    if let Some(percent) = model.percent {
        return format!("{}: {} {percent} %", model.label, model.action());
    }
    if model.layers.is_empty() || matches!(model.phase, Phase::Resolving | Phase::Waiting) {
        return format!("{}: {}", model.label, model.action());
    }
    let (done, size) = model.total();
    let finished = model.layers.iter().filter(|layer| layer.is_done()).count();
    let count = model.layers.len();
    if done >= size {
        return format!("{}: {}", model.label, Phase::Building.text());
    }
    // The amount first: the name may be cut.
    format!(
        "{}, {finished}/{count} layers: {}",
        model.amount(),
        model.label
    )
}

fn layer_line(layer: &Layer, room: usize) -> String {
    let amount = format!("{} of {}", megabytes(layer.done), megabytes(layer.size));
    let words = format!(" {amount}");
    let name = layer.name();
    // Name, blank, brackets, and the words behind.
    let taken = name.len() + 3 + words.chars().count() + 2;
    let width = room.saturating_sub(taken).min(WIDEST_BAR);
    if width < 5 {
        return format!("  {name}{words}");
    }
    let filled = match layer.size {
        0 => width,
        size => (u128::from(layer.done) * width as u128 / u128::from(size)) as usize,
    };
    let bar: String = std::iter::repeat_n('#', filled)
        .chain(std::iter::repeat_n('.', width - filled))
        .collect();
    format!("  {name} [{bar}]{words}")
}

/// Cuts a line to `room` characters.
fn cut(line: &str, room: usize) -> String {
    line.chars().take(room).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(layers: usize) -> Model {
        let mut model = Model::new("docker:example.org/a/long/name:tag".into());
        let digests: Vec<String> = (0..layers).map(|n| format!("sha256:{n:064x}")).collect();
        model.set_layers(digests.iter().map(|digest| (digest.clone(), 1_000_000)));
        for digest in &digests {
            model.received(digest, 500_000, false);
        }
        model.phase = Phase::Downloading;
        model
    }

    #[test]
    fn frames_fit_every_terminal() {
        let model = model(32);
        for columns in 1..120 {
            for lines in 1..12 {
                let frame = frame(&model, columns, lines);
                assert!(frame.len() <= lines, "{columns}x{lines}: {frame:?}");
                assert!(frame.iter().all(|line| line.chars().count() <= columns));
            }
        }
    }

    #[test]
    fn a_frame_in_full() {
        let mut model = model(2);
        model.retries = 1;
        let frame = frame(&model, 79, 24);
        assert_eq!(
            frame,
            [
                "1 MB of 2 MB, 1 retry, 0/2 layers: docker:example.org/a/long/name:tag",
                "  000000000000 [###############...............] 500 kB of 1 MB",
                "  000000000000 [###############...............] 500 kB of 1 MB",
            ]
        );
    }

    #[test]
    fn a_comparison_says_how_far_it_is() {
        let mut model = Model::new("site store".into());
        model.phase = Phase::Comparing;
        model.percent = Some(42);
        assert_eq!(frame(&model, 80, 24), ["site store: comparing 42 %"]);
    }

    #[test]
    fn the_next_frame_begins_where_the_last_one_did() {
        let model = model(2);
        let mut bars = Bars::default();
        assert!(!bars.draw(&model, 80, 24).contains("\x1b[3A"));
        assert!(bars.draw(&model, 80, 24).starts_with("\r\x1b[3A"));
        // A terminal of half the width has made five rows of three lines.
        assert_eq!(bars.to_start(40), "\r\x1b[6A");
    }
}
