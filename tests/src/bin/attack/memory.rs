//! How much memory programs take while something goes on.

use std::{collections::BTreeMap, fmt, time::Duration};

use tokio::{sync::oneshot, task::JoinHandle};
use vecmill_tests::process::memory_mib;

/// Between two looks: what is allocated for an attack stays for longer.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What each program may take whatever comes, in MiB, and where that is from. The tests' model is tiny: a real one's weights come
/// on top.
const BOUNDS: [(&str, u64); 3] = [
    // 1,024 connections of 30 KiB, bodies of 16 KiB, and what it has at rest.
    ("signer", 200),
    // At rest, 256 MiB of bodies, 64 transfers of 16 MiB, four batches that are read with 128 MiB each at worst.
    ("gateway", 1024),
    // The model, what lanes and requests hold in hand, and 512 MiB of chunks at worst.
    ("worker", 1024),
];

/// The most that each program took, in MiB.
#[derive(Debug, Default)]
pub(crate) struct Memory(BTreeMap<&'static str, u64>);

/// A look that goes on.
pub(crate) struct Watching {
    stop: oneshot::Sender<()>,
    looking: JoinHandle<Memory>,
}

impl Memory {
    /// Watches programs by their process ids.
    pub(crate) fn watch(programs: [(&'static str, u32); 3]) -> Watching {
        let (stop, mut stopped) = oneshot::channel();
        let looking = tokio::spawn(async move {
            let mut most = BTreeMap::new();
            loop {
                for (name, pid) in programs {
                    let now = memory_mib(pid, "VmRSS:").unwrap_or_default();
                    most.entry(name).and_modify(|most: &mut u64| *most = now.max(*most)).or_insert(now);
                }
                tokio::select! {
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                    _ = &mut stopped => return Memory(most),
                }
            }
        });
        Watching { stop, looking }
    }

    /// A sentence for each program that took more than it may, or is gone.
    pub(crate) fn over(&self) -> impl Iterator<Item = String> {
        BOUNDS.into_iter().filter_map(|(name, bound)| match self.0.get(name).copied() {
            Some(0) | None => Some(format!("the {name} is gone")),
            Some(most) if most > bound => Some(format!("the {name} took {most} MiB, more than {bound}")),
            Some(_) => None,
        })
    }
}

impl Watching {
    /// What was seen.
    pub(crate) async fn end(self) -> Memory {
        // A look that has panicked has seen nothing, which is over every bound.
        let _ = self.stop.send(());
        self.looking.await.unwrap_or_default()
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = self.0.iter().map(|(name, most)| format!("{name} {most}"));
        f.write_str(&each.collect::<Vec<_>>().join(", "))
    }
}
