//! What is known of a pull while it runs.

use std::time::Instant;

use crate::store::megabytes;

/// What a pull is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Phase {
    /// Nothing yet.
    Starting,
    /// Asks the registry.
    Resolving,
    /// Waits for another pull of the same image.
    Waiting,
    /// Reads the file that is imported.
    Reading,
    /// Compares what is in a store with what it says of itself.
    Comparing,
    /// Downloads layers, and writes the image as they arrive.
    Downloading,
    /// Writes the image.
    Building,
}

impl Phase {
    pub fn text(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Resolving => "asking the registry",
            Self::Waiting => "waiting",
            Self::Reading => "reading the file",
            Self::Comparing => "comparing",
            Self::Downloading => "downloading",
            Self::Building => "writing the image",
        }
    }

    /// Returns the word used in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Resolving => "resolving",
            Self::Waiting => "waiting",
            Self::Reading => "reading",
            Self::Comparing => "comparing",
            Self::Downloading => "downloading",
            Self::Building => "building",
        }
    }
}

/// One layer.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub digest: String,
    pub size: u64,
    pub done: u64,
    pub was_here: bool,
}

impl Layer {
    pub fn is_done(&self) -> bool {
        self.done >= self.size
    }

    /// Returns what the layer is called: the first digits of its digest.
    pub fn name(&self) -> &str {
        let digits = self.digest.split(':').next_back().unwrap_or_default();
        digits.get(..12).unwrap_or(digits)
    }
}

/// Everything that is shown of a pull.
#[derive(Debug)]
pub(super) struct Model {
    pub label: String,
    pub phase: Phase,
    /// Who is waited for.
    pub holder: String,
    pub layers: Vec<Layer>,
    /// Hundredths of what is to be compared.
    pub percent: Option<u8>,
    /// Requests that were made again.
    pub retries: u32,
    /// Bytes that came from the registry.
    received: u64,
    began: Option<Instant>,
}

impl Model {
    pub fn new(label: String) -> Self {
        Self {
            label,
            phase: Phase::Starting,
            holder: String::new(),
            layers: Vec::new(),
            percent: None,
            retries: 0,
            received: 0,
            began: None,
        }
    }

    /// Says what is done now.
    pub fn action(&self) -> String {
        match self.phase {
            Phase::Waiting => format!("waiting for {} to be done with this image", self.holder),
            phase => phase.text().to_owned(),
        }
    }

    pub fn set_layers(&mut self, layers: impl IntoIterator<Item = (String, u64)>) {
        self.layers.clear();
        for (digest, size) in layers {
            // Images repeat layers, mostly the empty one.
            if self.layers.iter().all(|known| known.digest != digest) {
                self.layers.push(Layer {
                    digest,
                    size,
                    done: 0,
                    was_here: false,
                });
            }
        }
    }

    /// Counts bytes of a layer; true if they were the last ones.
    pub fn received(&mut self, digest: &str, bytes: u64, was_here: bool) -> bool {
        if !was_here {
            self.received += bytes;
            self.began.get_or_insert_with(Instant::now);
        }
        let found = self.layers.iter_mut().find(|layer| layer.digest == digest);
        let Some(layer) = found.filter(|layer| !layer.is_done()) else {
            return false;
        };
        layer.done = layer.done.saturating_add(bytes).min(layer.size);
        layer.was_here |= was_here && bytes > 0;
        layer.is_done()
    }

    /// Returns bytes done and bytes in all; a manifest may promise more than can be counted.
    pub fn total(&self) -> (u64, u64) {
        self.layers.iter().fold((0, 0), |(done, size), layer| {
            (
                done.saturating_add(layer.done),
                size.saturating_add(layer.size),
            )
        })
    }

    /// Returns bytes from the registry per second, once that can be told.
    pub fn rate(&self) -> Option<u64> {
        let seconds = self.began?.elapsed().as_secs_f64();
        (seconds > 0.5).then(|| (self.received as f64 / seconds) as u64)
    }

    /// Says how many layers and bytes there are.
    pub fn summary(&self) -> String {
        let (_, size) = self.total();
        match self.layers.len() {
            1 => format!("1 layer, {}", megabytes(size)),
            count => format!("{count} layers, {}", megabytes(size)),
        }
    }

    /// Says how far it is.
    pub fn amount(&self) -> String {
        let (done, size) = self.total();
        let mut text = format!("{} of {}", megabytes(done), megabytes(size));
        if let Some(rate) = self.rate() {
            text.push_str(&format!(", {}/s", megabytes(rate)));
        }
        match self.retries {
            0 => {}
            1 => text.push_str(", 1 retry"),
            count => text.push_str(&format!(", {count} retries")),
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_add_up() {
        let mut model = Model::new("x".into());
        let layers = [("sha256:a", 10), ("sha256:b", 5), ("sha256:a", 10)];
        model.set_layers(layers.map(|(digest, size)| (digest.to_owned(), size)));
        assert_eq!(model.summary(), "2 layers, 15 B");
        assert!(!model.received("sha256:a", 4, true));
        assert!(model.received("sha256:a", 6, false));
        assert!(!model.received("sha256:a", 6, false));
        assert!(!model.received("sha256:none", 6, false));
        model.retries = 2;
        assert_eq!(model.total(), (10, 15));
        assert_eq!(model.amount(), "10 B of 15 B, 2 retries");
    }

    #[test]
    fn sizes_that_cannot_be_added_are_no_end() {
        let mut model = Model::new("x".into());
        let layers = [("sha256:a", u64::MAX), ("sha256:b", u64::MAX)];
        model.set_layers(layers.map(|(digest, size)| (digest.to_owned(), size)));
        model.received("sha256:a", 7, false);
        assert_eq!(model.total(), (7, u64::MAX));
    }
}
