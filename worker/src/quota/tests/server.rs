//! A private Redis: a real `redis-server` on a loopback port, gone with the value.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{Client, cmd};
use tempfile::TempDir;

use crate::quota::RedisQuota;
use crate::quota::redis::CHARGE_LUA;

/// How long anything here may take before the test fails. Long, for a busy machine: nothing waits for it to pass.
const DEADLINE: Duration = Duration::from_secs(20);

pub(super) struct Server {
    port: u16,
    child: Child,
    /// Where it would write; it is told not to.
    folder: TempDir,
}

impl Server {
    pub(super) async fn start() -> Self {
        let began = Instant::now();
        loop {
            assert!(began.elapsed() < DEADLINE, "redis-server does not start");
            // Somebody may take the port between asking for a free one and listening on it: then try another.
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let folder = tempfile::tempdir().unwrap();
            let mut server = Self { port, child: spawn(port, &folder), folder };
            if server.answers().await {
                return server;
            }
        }
    }

    /// Waits until it answers; false if it ended instead.
    async fn answers(&mut self) -> bool {
        let quota = self.quota();
        until("redis-server answers", async || {
            let ended = self.child.try_wait().unwrap().is_some();
            (ended || quota.ping().await.is_ok()).then_some(!ended)
        })
        .await
    }

    pub(super) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    pub(super) fn quota(&self) -> RedisQuota {
        RedisQuota::new(&self.url(), &<_>::default()).unwrap()
    }

    /// A quota whose script reads the time from a list that [`set_clock`] writes. Only the tests' copy of the
    /// script can be told the time.
    pub(super) fn quota_with_clock(&self) -> RedisQuota {
        const TIME: &str = "redis.call('TIME')";
        assert_eq!(CHARGE_LUA.matches(TIME).count(), 1);
        let script = CHARGE_LUA.replace(TIME, "redis.call('LRANGE', 'clock', 0, 1)");
        RedisQuota::with_script(&self.url(), &<_>::default(), &script).unwrap()
    }

    pub(super) async fn connection(&self) -> MultiplexedConnection {
        Client::open(self.url()).unwrap().get_multiplexed_async_connection().await.unwrap()
    }

    /// Ends it without a goodbye.
    pub(super) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again on its old port, empty.
    pub(super) async fn restart(&mut self) {
        self.child = spawn(self.port, &self.folder);
        assert!(self.answers().await, "redis-server ended");
    }

    /// Sends a signal by name, such as STOP.
    pub(super) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Tells the time to quotas that read it from a list.
pub(super) async fn set_clock(connection: &mut MultiplexedConnection, now_ms: u64) {
    cmd("DEL").arg("clock").exec_async(connection).await.unwrap();
    let (seconds, micros) = (now_ms / 1_000, now_ms % 1_000 * 1_000);
    cmd("RPUSH").arg("clock").arg(seconds).arg(micros).exec_async(connection).await.unwrap();
}

/// Asks again and again until there is an answer.
pub(super) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(began.elapsed() < DEADLINE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn spawn(port: u16, folder: &TempDir) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .arg("--dir")
        .arg(folder.path())
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server is on the PATH (infra/test brings it)")
}
