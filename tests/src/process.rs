//! A running program: its end, its log, and what it answers.

use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
};

use crate::{cluster::START_LIMIT, eventually, program::end_of};

/// A running program; killed when dropped.
pub struct Process {
    child: Child,
    /// Where its standard error goes.
    pub log: PathBuf,
    /// Where it listens, if it does.
    pub url: String,
}

impl Process {
    /// Starts what is to log to `log` and to listen at `url`.
    pub(crate) fn start(mut command: Command, log: PathBuf, url: String) -> Self {
        let file = File::create(&log).expect("a log");
        let program = command.get_program().to_owned();
        let child = command.stdout(Stdio::null()).stderr(file).spawn();
        let child = child.unwrap_or_else(|error| panic!("{program:?} does not run: {error}"));
        Self { child, log, url }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        // It may have died by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, then waits for the end; gives whether it exited with 0.
    pub async fn terminate(&mut self) -> bool {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs").success());
        let child = &mut self.child;
        eventually("the program ends after SIGTERM", START_LIMIT, || {
            std::future::ready(child.try_wait().expect("a child"))
        })
        .await
        .success()
    }

    /// How it ended, if it has.
    pub fn end(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child")
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_some()
    }

    /// What it has logged.
    pub fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Answers one of its routes with 200.
    pub async fn answers(&self, path: &str) -> bool {
        self.get(path).await.is_some_and(|(status, _)| status == 200)
    }

    /// Waits until it answers one of its routes with 200.
    ///
    /// # Panics
    /// When it ends instead, or takes too long.
    pub(crate) async fn comes_up(mut self, path: &str) -> Self {
        let end = eventually(&format!("{}{path} answers with 200", self.url), START_LIMIT, || {
            let (end, url) = (self.end(), self.url.clone());
            async move {
                let answers = async || http_get(&url, path).await.is_some_and(|(status, _)| status == 200);
                if end.is_some() || answers().await { Some(end) } else { None }
            }
        })
        .await;
        // Its log is shown when it is dropped.
        assert_eq!(end, None, "it ended before it answered {path}");
        self
    }

    /// The status and body of one of its routes, or `None` when nobody answers.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        http_get(&self.url, path).await
    }

    /// How many deliveries a worker has settled with an outcome, as its metrics name it.
    pub async fn settled(&self, outcome: &str) -> u64 {
        self.counter(&format!("vecmill_worker_chunks_total{{outcome=\"{outcome}\"}}")).await
    }

    /// A counter of a worker's metrics; one that was never touched is 0.
    pub async fn counter(&self, name: &str) -> u64 {
        let (_, metrics) = self.get("/metrics").await.expect("the worker's metrics");
        let count = metrics.lines().find_map(|metric| metric.strip_prefix(name)?.strip_prefix(' '));
        count.map_or(0, |count| count.parse().expect("a number"))
    }

    /// What it holds in memory now, in MiB; `None` when it is gone.
    pub fn memory_mib(&self) -> Option<u64> {
        memory_mib(self.id(), "VmRSS:")
    }

    /// The most that it ever held, in MiB; `None` when it is gone.
    pub fn peak_memory_mib(&self) -> Option<u64> {
        memory_mib(self.id(), "VmHWM:")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            // The folder with the log is about to be removed.
            eprintln!("the end of {}:\n{}", self.log.display(), end_of(&self.logged()));
        }
    }
}

/// The status and body of a GET, or `None` when nobody answers.
async fn http_get(url: &str, path: &str) -> Option<(u16, String)> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let address = url.strip_prefix("http://")?;
    let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
    // HTTP/1.0: no chunked bodies.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// A line of what Linux says of a process's memory, in MiB.
pub fn memory_mib(pid: u32, line: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = status.lines().find_map(|told| told.strip_prefix(line))?;
    Some(kib.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? / 1024)
}
