//! Whoever starts servers leaves none behind, however it ends.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Lines},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use vecmill_tests::{eventually, program::printed};

const LIMIT: Duration = Duration::from_secs(120);

/// A run as `infra/test` and the benchmarks have it: with servers, and a program in a session of its own. It says where
/// it is, and when all is up, and goes on until its standard input ends.
const SCRIPT: &str = r#"
set -euo pipefail
for part in common process run; do . "$0/lib/$part.sh"; done
open_run guarded
join_run
echo "$dir"
setsid sleep 1000000 &
"$0/services" start "$dir" "$@"
echo up
read -r _ || true
"#;

fn infra() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../infra").canonicalize().expect("infra")
}

struct Run {
    script: Child,
    said: Lines<BufReader<ChildStdout>>,
    dir: PathBuf,
}

impl Run {
    /// One in a process group of its own, as a terminal starts it.
    fn start(services: &[&str]) -> Self {
        let mut script = Command::new("bash");
        script.arg("-c").arg(SCRIPT).arg(infra()).args(services).process_group(0);
        let mut script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("bash runs");
        let mut said = BufReader::new(script.stdout.take().expect("a pipe")).lines();
        let dir = PathBuf::from(said.next().expect("its folder").expect("UTF-8"));
        Self { script, said, dir }
    }

    fn is_up(&mut self) {
        assert_eq!(self.said.next().expect("the servers come up").expect("UTF-8"), "up");
    }

    /// `kill -9` of the script, or of all that a terminal's end would take along.
    fn kill(&mut self, group: bool) {
        let pid = self.script.id();
        let target = if group { format!("-{pid}") } else { pid.to_string() };
        assert!(Command::new("kill").args(["-KILL", "--", &target]).status().expect("kill runs").success());
        assert_eq!(self.script.wait().expect("ours").signal(), Some(9));
    }
}

/// A process: its pid and when it was started, which name it for ever.
type Named = (String, String);

/// When a process was started, if it lives; one that nobody has reaped yet does not.
fn started(pid: &str) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    (!matches!(fields.next()?, "Z" | "X")).then(|| fields.nth(18).map(str::to_owned))?
}

/// The processes that are named in a folder's pid files, and those in whose environment or arguments the folder is.
fn processes(dir: &Path) -> BTreeSet<Named> {
    let files = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "pid"));
    let named = files.filter_map(|path| fs::read_to_string(path).ok()?.split(' ').next().map(str::to_owned));
    let all = fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.file_name());
    let all =
        all.filter_map(|name| name.into_string().ok()).filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    let inside = format!("{}/", dir.display());
    let about = all.filter(|pid| {
        ["environ", "cmdline"].iter().any(|file| {
            let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            String::from_utf8_lossy(&text).contains(&inside)
        })
    });
    named.chain(about).filter_map(|pid| Some((pid.clone(), started(&pid)?))).collect()
}

/// Waits until nothing is left of a run: none of the processes that were seen, no other, and no folder.
async fn vanishes(dir: &Path, seen: BTreeSet<Named>) {
    eventually(&format!("nothing of {} is left", dir.display()), LIMIT, || {
        let alive = seen.iter().filter(|(pid, start)| started(pid).as_ref() == Some(start)).count();
        let gone = alive == 0 && !dir.exists() && processes(dir).is_empty();
        std::future::ready(gone.then_some(()))
    })
    .await;
}

#[tokio::test]
async fn a_run_that_is_killed_leaves_nothing_and_takes_nothing_of_another() {
    let mut killed = Run::start(&["redis", "s3", "postgres"]);
    let mut other = Run::start(&["redis"]);
    killed.is_up();
    other.is_up();
    let (seen, others) = (processes(&killed.dir), processes(&other.dir));
    // Three servers, a guard and the program; Postgres is several.
    assert!(seen.len() >= 5 && others.len() >= 3, "{seen:?} {others:?}");
    killed.kill(false);
    vanishes(&killed.dir, seen).await;
    let left = processes(&other.dir);
    assert!(others.is_subset(&left), "of another run there were {others:?}, and now {left:?}");

    // It ends by itself: its servers and its guard are gone, and nobody holds its output open.
    drop(other.script.stdin.take());
    assert!(other.script.wait().expect("ours").success());
    assert!(other.said.next().is_none());
    vanishes(&other.dir, others).await;
}

#[tokio::test]
async fn a_run_that_is_killed_with_its_group_while_servers_start_leaves_nothing() {
    let mut run = Run::start(&["rabbitmq", "postgres", "redis"]);
    eventually("the first server is starting", LIMIT, || {
        let starting = ["rabbitmq.pid", "postgres.log"].iter().any(|file| run.dir.join(file).exists());
        std::future::ready(starting.then_some(()))
    })
    .await;
    let seen = processes(&run.dir);
    run.kill(true);
    vanishes(&run.dir, seen).await;
}

#[tokio::test]
async fn servers_of_a_test_go_with_it() {
    let folder = TempDir::new().expect("a folder");
    let dir = folder.path().join("servers");
    let mut test = Command::new("sleep").arg("1000000").spawn().expect("sleep runs");
    let mut services = Command::new(infra().join("services"));
    services.arg("start").arg(&dir).arg("redis").env("VECMILL_SERVICES_OWNER", test.id().to_string());
    printed(&services.output().expect("it runs"));
    let seen = processes(&dir);
    assert!(seen.len() >= 2, "a server and its guard: {seen:?}");
    test.kill().expect("it lives");
    // Nobody reaps it before the guard has seen that it is gone.
    vanishes(&dir, seen).await;
    test.wait().expect("ours");
}
