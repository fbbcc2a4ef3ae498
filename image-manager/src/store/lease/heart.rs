//! The heartbeat of the leases of this process: one thread renews the mtimes of them all.

use std::fs::File;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use rustix::fs::{Timespec, Timestamps, UTIME_NOW};

/// Time between two signs of life.
pub(super) const INTERVAL: Duration = Duration::from_secs(2);

static HELD: OnceLock<Mutex<Vec<Weak<File>>>> = OnceLock::new();

/// Renews a record for as long as somebody has it.
pub(super) fn beat_for(file: &Arc<File>) {
    let held = HELD.get_or_init(|| {
        // Without the thread leases work, and may be taken over after a while.
        let _ = std::thread::Builder::new()
            .name("heartbeat".into())
            .spawn(beat);
        Mutex::default()
    });
    held.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(Arc::downgrade(file));
}

fn beat() {
    loop {
        std::thread::sleep(INTERVAL);
        let Some(held) = HELD.get() else { continue };
        let files: Vec<Arc<File>> = {
            let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
            held.retain(|file| file.strong_count() > 0);
            held.iter().filter_map(Weak::upgrade).collect()
        };
        for file in files {
            let _ = touch(&file);
        }
    }
}

/// Sets a file's times to the file system's idea of now.
pub(super) fn touch(file: &File) -> rustix::io::Result<()> {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_NOW,
    };
    rustix::fs::futimens(
        file,
        &Timestamps {
            last_access: now,
            last_modification: now,
        },
    )
}
