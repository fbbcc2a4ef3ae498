//! Compresses blocks on a few threads and hands them back in the order in which they came.
//!
//! Memory is bounded: each thread has at most [`PER_THREAD_BYTES`] of raw blocks under way (two
//! blocks, if that is more) and as much again for what becomes of them, and buffers are used
//! again. With no threads the caller's own does the work, with the same result.

use super::compress::Compressor;
use super::data::RAW;
use super::duplicates::Digest;
use super::{Error, Format, Options, erofs};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Raw bytes under way for each thread: enough that none waits while the others' blocks differ,
/// and that a thread is not woken for each block where those are small.
const PER_THREAD_BYTES: usize = 1 << 20;

/// One block on its way through the pool.
pub(super) struct Block {
    raw: Vec<u8>,
    packed: Vec<u8>,
    smaller: bool,
    /// Whether the digest is wanted, and then what it is.
    is_hashed: bool,
    digest: Digest,
}

impl Block {
    /// The bytes to store.
    pub(super) fn bytes(&self) -> &[u8] {
        if self.smaller {
            &self.packed
        } else {
            &self.raw
        }
    }

    /// The size word of inodes and fragments; [`RAW`] marks a block stored as it is.
    pub(super) fn size_word(&self) -> u32 {
        // A block is at most 1 MiB.
        let size = self.bytes().len() as u32;
        if self.smaller { size } else { size | RAW }
    }

    /// Digest of [`Self::bytes`], if it was asked for. Compressors give the same bytes for the
    /// same block, and hashing those is the smaller work.
    pub(super) fn digest(&self) -> Option<&Digest> {
        self.is_hashed.then_some(&self.digest)
    }

    fn compress(&mut self, compressor: &mut Compressor, format: Format) -> io::Result<()> {
        self.smaller = compressor.compress(&self.raw, &mut self.packed)?;
        if format == Format::Erofs {
            self.smaller = erofs::align(&mut self.raw, &mut self.packed, self.smaller);
        }
        if self.is_hashed {
            self.digest = Digest::of(self.bytes());
        }
        Ok(())
    }
}

enum Engine {
    Inline(Box<Compressor>, Format),
    Threads(Threads),
}

struct Threads {
    jobs: Option<Sender<(u64, Block)>>,
    done: Receiver<(u64, io::Result<Block>)>,
    workers: Vec<JoinHandle<()>>,
    early: BTreeMap<u64, Block>,
}

/// The compressors, and what is on its way through them; `T` says what each block is for.
pub(super) struct Pool<T> {
    engine: Engine,
    under_way: VecDeque<T>,
    limit: usize,
    submitted: u64,
    returned: u64,
    ready: Option<Block>,
    spare: Vec<Block>,
}

impl<T> Pool<T> {
    pub(super) fn new(options: &Options) -> Result<Self, Error> {
        Self::with_threads(options, options.threads)
    }

    fn with_threads(options: &Options, threads: usize) -> Result<Self, Error> {
        let block_size = options.block_size as usize;
        let failed = |source| Error::Compress { source };
        let (engine, limit) = if threads <= 1 {
            let compressor = Compressor::new(options.compression, block_size).map_err(failed)?;
            (Engine::Inline(Box::new(compressor), options.format), 1)
        } else {
            let pool = Threads::start(options, threads).map_err(failed)?;
            let each = (PER_THREAD_BYTES / block_size).max(2);
            match pool.workers.len() {
                // A limit of the caller's allows no thread at all.
                0 => return Self::with_threads(options, 0),
                count => (Engine::Threads(pool), count * each),
            }
        };
        Ok(Self {
            engine,
            under_way: VecDeque::new(),
            limit,
            submitted: 0,
            returned: 0,
            ready: None,
            spare: Vec::new(),
        })
    }

    /// An empty buffer for the next block.
    pub(super) fn buffer(&mut self) -> Vec<u8> {
        let mut raw = self
            .spare
            .last_mut()
            .map(|b| std::mem::take(&mut b.raw))
            .unwrap_or_default();
        raw.clear();
        raw
    }

    /// Whether [`Self::next`] must be called before the next [`Self::submit`].
    pub(super) fn is_full(&self) -> bool {
        self.under_way.len() >= self.limit
    }

    /// Starts compressing a block; `is_hashed` asks for its digest as well.
    pub(super) fn submit(
        &mut self,
        raw: Vec<u8>,
        is_hashed: bool,
        purpose: T,
    ) -> Result<(), Error> {
        let packed = self.spare.pop().map(|b| b.packed).unwrap_or_default();
        let mut block = Block {
            raw,
            packed,
            smaller: false,
            is_hashed,
            digest: Digest::default(),
        };
        match &mut self.engine {
            Engine::Inline(compressor, format) => {
                block
                    .compress(compressor, *format)
                    .map_err(|source| Error::Compress { source })?;
                self.ready = Some(block);
            }
            Engine::Threads(threads) => threads.send(self.submitted, block)?,
        }
        self.submitted += 1;
        self.under_way.push_back(purpose);
        Ok(())
    }

    /// Waits for the oldest block under way; `None` if there is none.
    pub(super) fn next(&mut self) -> Result<Option<(T, Block)>, Error> {
        let Some(purpose) = self.under_way.pop_front() else {
            return Ok(None);
        };
        let block = match &mut self.engine {
            Engine::Inline(..) => self.ready.take().ok_or_else(worker_died)?,
            Engine::Threads(threads) => threads.receive(self.returned)?,
        };
        self.returned += 1;
        Ok(Some((purpose, block)))
    }

    /// Takes a block's buffers back.
    pub(super) fn recycle(&mut self, block: Block) {
        self.spare.push(block);
    }
}

impl Threads {
    fn start(options: &Options, threads: usize) -> io::Result<Self> {
        let (format, block_size) = (options.format, options.block_size as usize);
        let (jobs, queue) = channel::<(u64, Block)>();
        let (results, done) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let mut started = Self {
            jobs: Some(jobs),
            done,
            workers: Vec::new(),
            early: BTreeMap::new(),
        };
        for _ in 0..threads {
            let queue = Arc::clone(&queue);
            let results = results.clone();
            let mut compressor = Compressor::new(options.compression, block_size)?;
            let started_one =
                std::thread::Builder::new()
                    .name("squashfs".into())
                    .spawn(move || {
                        loop {
                            let Ok(job) = queue.lock().map(|queue| queue.recv()) else {
                                return;
                            };
                            let Ok((number, mut block)) = job else { return };
                            // Every block must come back, or the writer would wait for it for ever. The
                            // compressor is not used again after a panic: an error ends the image.
                            let work = AssertUnwindSafe(|| block.compress(&mut compressor, format));
                            let result = catch_unwind(work)
                                .unwrap_or_else(|_| Err(io::Error::other("a compressor panicked")))
                                .map(|()| block);
                            if results.send((number, result)).is_err() {
                                return;
                            }
                        }
                    });
            // Fewer do as well, only slower.
            let Ok(worker) = started_one else { break };
            started.workers.push(worker);
        }
        Ok(started)
    }

    fn send(&self, number: u64, block: Block) -> Result<(), Error> {
        let jobs = self.jobs.as_ref().ok_or_else(worker_died)?;
        jobs.send((number, block)).map_err(|_| worker_died())
    }

    fn receive(&mut self, number: u64) -> Result<Block, Error> {
        loop {
            if let Some(block) = self.early.remove(&number) {
                return Ok(block);
            }
            let (number, result) = self.done.recv().map_err(|_| worker_died())?;
            let block = result.map_err(|source| Error::Compress { source })?;
            self.early.insert(number, block);
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.jobs = None;
        for worker in self.workers.drain(..) {
            // A worker that panicked has been reported by `receive` already.
            let _ = worker.join();
        }
    }
}

fn worker_died() -> Error {
    Error::Compress {
        source: io::Error::other("a compressor thread ended early"),
    }
}
