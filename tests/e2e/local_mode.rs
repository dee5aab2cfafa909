//! `vecmill-local`: the first thing that a newcomer runs.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::Output,
    time::SystemTime,
};

use arrow_array::cast::AsArray;
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};
use tempfile::TempDir;
use vecmill_producer::part;
use vecmill_tests::{
    cluster::bare,
    corpus::{texts, write_jsonl},
    program::json_of as outcome,
};
use vecmill_worker::{
    audit::AuditRecord,
    engine::{
        ComputePath,
        synthetic::{self, Shape},
    },
};

/// SIGABRT, by which a kill point ends the process: as sudden as `kill -9`, and told apart from it.
const SIGABRT: i32 = 6;

/// Runs `vecmill-local` in a folder, with nothing of the caller's settings.
fn local(dir: &Path, arguments: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = bare("vecmill-local");
    command.args(arguments).current_dir(dir).env("VECMILL_CACHE_DIR", dir.join("cache"));
    command.envs(env.iter().copied()).output().expect("vecmill-local runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Every file of a folder: its bytes and when it was written.
fn files(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| {
            let written = path.metadata().unwrap().modified().unwrap();
            (path.clone(), (std::fs::read(&path).unwrap(), written))
        })
        .collect()
}

/// The rows of all parts in a folder: id, vector and tokens.
fn rows(vectors: &Path) -> Vec<(String, Vec<f32>, u32)> {
    let parts = files(vectors);
    let parts = parts.iter().filter(|(path, _)| path.extension().is_some_and(|extension| extension == "parquet"));
    parts.flat_map(|(_, (bytes, _))| part::decode(bytes.clone().into()).unwrap()).collect()
}

fn path(outcome: &Value, name: &str) -> PathBuf {
    PathBuf::from(outcome[name].as_str().unwrap())
}

#[test]
fn the_bundled_passages_are_embedded_and_searched() {
    compute_paths().for_each(embedded_and_searched);
}

fn embedded_and_searched(compute: ComputePath) {
    let dir = TempDir::new().unwrap();
    let by_path = [("VECMILL_CPU_PATH", compute.name())];
    let run = local(dir.path(), &["--json"], &by_path);
    let outcome = outcome(&run);
    let status = &outcome["status"];
    assert_eq!(status["state"], "completed");
    assert_eq!(outcome["model_is_built_in"], true);
    let passages = std::fs::read_to_string(dir.path().join("vecmill-out/sample-corpus.jsonl")).unwrap();
    let ids: BTreeSet<String> = passages
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned())
        .collect();
    assert!(ids.len() > 100);

    let rows = rows(&path(&outcome, "vectors"));
    assert_eq!(rows.iter().map(|(id, ..)| id.clone()).collect::<BTreeSet<_>>(), ids);
    assert_eq!(rows.len(), ids.len());
    for (id, vector, _) in &rows {
        let length: f32 = vector.iter().map(|number| number * number).sum::<f32>().sqrt();
        assert_eq!(vector.len(), 256, "{id}");
        assert!((length - 1.0).abs() < 1e-4, "{id} has length {length}");
    }
    let tokens: u64 = rows.iter().map(|(.., tokens)| u64::from(*tokens)).sum();
    assert_eq!(status["tokens"], tokens);

    let manifest = path(&outcome, "manifest");
    assert!(manifest.with_file_name("_SUCCESS").is_file());
    let manifest: Value = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
    assert_eq!(manifest["rows"], ids.len());
    let audit = files(&path(&outcome, "audit"));
    assert_eq!(audit.len(), manifest["parts"].as_array().unwrap().len(), "a record for each part");
    let mut audited = 0;
    for (bytes, _) in audit.values() {
        let record: AuditRecord = serde_json::from_slice(bytes).unwrap();
        audited += record.tokens;
    }
    assert_eq!(audited, tokens);

    for search in outcome["searches"].as_array().unwrap() {
        let hits = search["hits"].as_array().unwrap();
        assert_eq!(hits.len(), 3, "{search}");
        assert!(hits.iter().all(|hit| ids.contains(hit["id"].as_str().unwrap())), "{search}");
    }

    // Again, for people this time: nothing is computed twice, and what it is worth is said.
    let before = files(&path(&outcome, "vectors"));
    let again = local(dir.path(), &[], &by_path);
    assert!(again.status.success(), "{}", text(&again.stderr));
    assert_eq!(files(&path(&outcome, "vectors")), before);
    let said = text(&again.stdout);
    for sentence in ["vecmill/mini", "for trying the pipeline", "not for production", "_manifest.json", ".parquet"] {
        assert!(said.contains(sentence), "{sentence:?} is not said: {said}");
    }
}

/// Every way in which this CPU can compute a text to the same bits in every batch. The plain one agrees with the others in
/// f32 to the bit, and takes minutes: only where there is no other.
fn compute_paths() -> impl Iterator<Item = ComputePath> {
    let fast = [ComputePath::AmxBf16, ComputePath::Avx512Bf16, ComputePath::Avx512F32, ComputePath::Avx2F32];
    let here: Vec<_> = fast.into_iter().filter(|path| path.lacking().is_none()).collect();
    if here.is_empty() { vec![ComputePath::PortableF32] } else { here }.into_iter()
}

#[test]
fn killed_in_the_middle_it_goes_on_where_it_was() {
    compute_paths().for_each(killed_and_resumed);
}

fn killed_and_resumed(compute: ComputePath) {
    let dir = TempDir::new().unwrap();
    let corpus = write_jsonl(dir.path(), "corpus.jsonl", &texts(21, 300));
    let corpus = corpus.to_str().unwrap();
    let arguments = [corpus, "--dimensions", "64", "--json", "--cpu-path", compute.name()];

    // The third part is on disk; its record and those after it are not.
    let killed = local(dir.path(), &arguments, &[("VECMILL_TEST_KILL_POINT", "after-part:3")]);
    assert_eq!(killed.status.signal(), Some(SIGABRT), "{}", text(&killed.stderr));
    assert!(killed.stdout.is_empty(), "{}", text(&killed.stdout));
    let jobs: Vec<_> = std::fs::read_dir(dir.path().join("vecmill-out/vecmill/local/jobs")).unwrap().collect();
    assert_eq!(jobs.len(), 1);
    let job = jobs[0].as_ref().unwrap().path();
    let life = job.join("000001");
    assert!(!life.join("_SUCCESS").exists());
    let done: Vec<PathBuf> = files(&life.join("runs/000001/ended")).into_keys().collect();
    assert!((1..9).contains(&done.len()), "{done:?}");
    let part_of = |done: &Path| {
        let record: Value = serde_json::from_slice(&std::fs::read(done).unwrap()).unwrap();
        life.join(record["part"].as_str().unwrap())
    };
    let parts = files(&life.join("vectors"));
    let finished: BTreeMap<_, _> = done.iter().map(|done| (part_of(done), parts[&part_of(done)].clone())).collect();

    let resumed = local(dir.path(), &arguments, &[]);
    let said = text(&resumed.stderr);
    assert!(said.contains("going on where an earlier run was: "), "{said}");
    let outcome = outcome(&resumed);
    assert_eq!(outcome["status"]["state"], "completed");
    assert!(life.join("_SUCCESS").is_file());
    let parts = files(&life.join("vectors"));
    for (path, before) in &finished {
        assert_eq!(&parts[path], before, "{} was written again, {compute}", path.display());
    }

    // What came of it is what an undisturbed run gives, byte for byte.
    let elsewhere = local(dir.path(), &[&arguments[..], &["--out", "elsewhere"]].concat(), &[]);
    let elsewhere = files(&path(&self::outcome(&elsewhere), "vectors"));
    let bytes = |files: BTreeMap<PathBuf, (Vec<u8>, SystemTime)>| -> Vec<Vec<u8>> {
        files.into_values().map(|(bytes, _)| bytes).collect()
    };
    assert!(bytes(parts) == bytes(elsewhere), "{compute}: the parts differ from an undisturbed run's");
}

#[test]
fn it_takes_the_users_own_file_and_says_what_is_wrong_with_flags() {
    let dir = TempDir::new().unwrap();
    std::fs::write(
        dir.path().join("own.csv"),
        "id,text\nmoon,The moon pulls the sea up twice a day.\nbread,Bread rises because of yeast.\nbad,\nmill,A mill grinds grain.\n",
    )
    .unwrap();
    let run = local(dir.path(), &["own.csv", "--dimensions", "32", "--query", "why are there tides?", "--json"], &[]);
    assert!(text(&run.stderr).contains("own.csv:4: "), "{}", text(&run.stderr));
    let outcome = outcome(&run);
    assert_eq!((&outcome["status"]["rows"], &outcome["status"]["rejected"]), (&3.into(), &1.into()));
    let rows = rows(&path(&outcome, "vectors"));
    assert_eq!(rows.iter().map(|(id, ..)| id.as_str()).collect::<Vec<_>>(), ["moon", "bread", "mill"]);
    assert!(rows.iter().all(|(_, vector, _)| vector.len() == 32));
    let search = &outcome["searches"][0];
    assert_eq!(search["query"], "why are there tides?");
    let hits: BTreeSet<&str> =
        search["hits"].as_array().unwrap().iter().map(|hit| hit["id"].as_str().unwrap()).collect();
    assert_eq!(hits, BTreeSet::from(["moon", "bread", "mill"]));

    let refused: [(&[&str], i32, &str); 11] = [
        (&["own.csv", "--dimensions", "31"], 1, "dimensions is 31"),
        (&["own.csv", "--dimensions", "257"], 1, "the model has 256"),
        (&["own.csv", "--dimensions", "many"], 2, "--dimensions"),
        (&["own.csv", "--strict"], 1, "--strict"),
        (&["own.csv", "--text-field", "body"], 1, "there are: id, text"),
        (&["absent.csv"], 1, "absent.csv"),
        (&["own.unknown"], 1, "--format"),
        (&["own.csv", "--model", "another/model"], 1, "HF_HUB_OFFLINE forbids to download it; unset it, or give"),
        (&["own.csv", "--model", "nonsense"], 1, "OWNER/NAME"),
        (&["own.csv", "--model", "another/model", "--revision", "../up"], 1, "a commit, a branch or a tag"),
        (&["own.csv", "--truncate", "start"], 2, "--truncate"),
    ];
    for (arguments, code, sentence) in refused {
        let run = local(dir.path(), &[arguments, &["--json"]].concat(), &[("HF_HUB_OFFLINE", "1")]);
        let said = text(&run.stderr);
        assert_eq!(run.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(sentence), "{arguments:?}: {said}");
        assert!(run.stdout.is_empty(), "{arguments:?}: {}", text(&run.stdout));
        assert!(!said.contains("panicked"), "{arguments:?}: {said}");
    }
}

/// The synthetic tokenizer's id of a visible ASCII character.
fn token_of(character: u8) -> usize {
    usize::from(character) - 33
}

/// A model that takes 64 tokens and gives what is not finite for a text with a `Z`.
fn spoilt_model(dir: &Path) -> PathBuf {
    let dir = dir.join("spoilt");
    synthetic::write(&dir, &Shape { tokens_max: 64, ..Shape::tiny() }, 7).unwrap();
    let path = dir.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_bytes]).unwrap();
    let table = &header["embed_tokens.weight"];
    let width = table["shape"][1].as_u64().unwrap() as usize;
    let start = 8 + header_bytes + table["data_offsets"][0].as_u64().unwrap() as usize;
    let place = start + 4 * width * token_of(b'Z');
    bytes[place..place + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
    dir
}

/// The column `truncated` of the only part in a folder.
fn truncated(vectors: &Path) -> Vec<bool> {
    let parts = files(vectors);
    let (_, (bytes, _)) = parts.first_key_value().unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(bytes.clone())).unwrap().build().unwrap();
    let batches: Vec<_> = reader.map(Result::unwrap).collect();
    batches
        .iter()
        .flat_map(|batch| batch["truncated"].as_boolean().iter().map(Option::unwrap).collect::<Vec<_>>())
        .collect()
}

#[test]
fn rows_that_fail_or_are_cut_are_named_and_the_others_done() {
    let dir = TempDir::new().unwrap();
    let model = spoilt_model(dir.path());
    let ids: Vec<usize> = b"spelt".map(token_of).into();
    let corpus = [
        json!({ "id": "good", "text": "a good text" }),
        json!({ "id": "spoilt", "text": "a Zebra" }),
        json!({ "id": "long", "text": "secret ".repeat(20) }),
        json!({ "id": "ids", "input": ids }),
        json!({ "id": "foreign", "input": [1, 4711] }),
        json!({ "id": "same", "text": "spelt" }),
    ];
    let corpus: String = corpus.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(dir.path().join("own.jsonl"), corpus).unwrap();
    let model = ["--model", "spoilt/model", "--model-dir", model.to_str().unwrap()];
    let run = |more: &[&str]| {
        let arguments = [&["own.jsonl", "--dimensions", "64", "--json"], &model[..], more].concat();
        let run = local(dir.path(), &arguments, &[]);
        assert!(!text(&run.stderr).contains("Zebra") && !text(&run.stderr).contains("secret"), "{}", text(&run.stderr));
        outcome(&run)
    };
    let errors = |outcome: &Value| -> Vec<(String, String)> {
        let vectors = path(outcome, "vectors");
        let files = files(&vectors.parent().unwrap().join("errors"));
        let [(lines, _)] = &files.into_values().collect::<Vec<_>>()[..] else {
            panic!("one chunk, one file of errors")
        };
        let lines = text(lines);
        assert!(!lines.contains("Zebra") && !lines.contains("secret"), "{lines}");
        let row = |line: &str| serde_json::from_str::<Value>(line).unwrap();
        let word = |row: &Value, field: &str| row[field].as_str().unwrap().to_owned();
        lines.lines().map(row).map(|row| (word(&row, "id"), word(&row, "code"))).collect()
    };
    let owned = |rows: &[(&str, &str)]| -> Vec<(String, String)> {
        rows.iter().map(|(id, code)| ((*id).to_owned(), (*code).to_owned())).collect()
    };

    let rejecting = run(&[]);
    assert_eq!(
        errors(&rejecting),
        owned(&[("spoilt", "non_finite"), ("long", "too_long"), ("foreign", "unknown_token")])
    );
    assert_eq!((&rejecting["status"]["rows_failed"], &rejecting["status"]["rows_truncated"]), (&3.into(), &0.into()));
    let kept = rows(&path(&rejecting, "vectors"));
    assert_eq!(kept.iter().map(|(id, ..)| id.as_str()).collect::<Vec<_>>(), ["good", "ids", "same"]);
    assert_eq!((kept[1].2, kept[2].2), (6, 6), "the end token is added");
    let cosine: f32 = kept[1].1.iter().zip(&kept[2].1).map(|(a, b)| a * b).sum();
    assert!(cosine > 0.9999, "a text and its tokens have one vector: {cosine}");

    let cutting = run(&["--truncate", "end", "--dtype", "f16"]);
    assert_ne!(cutting["status"]["job"], rejecting["status"]["job"], "another job");
    assert_eq!(errors(&cutting), owned(&[("spoilt", "non_finite"), ("foreign", "unknown_token")]));
    assert_eq!((&cutting["status"]["rows_failed"], &cutting["status"]["rows_truncated"]), (&2.into(), &1.into()));
    let kept = rows(&path(&cutting, "vectors"));
    let tokens: Vec<_> = kept.iter().map(|(id, _, tokens)| (id.as_str(), *tokens)).collect();
    assert_eq!(tokens, [("good", 12), ("long", 64), ("ids", 6), ("same", 6)]);
    assert_eq!(cutting["status"]["tokens"], 12 + 64 + 6 + 6, "what is kept is what counts");
    assert_eq!(truncated(&path(&cutting, "vectors")), [false, true, false, false]);
    let audit = files(&path(&cutting, "audit"));
    let record: AuditRecord = serde_json::from_slice(&audit.first_key_value().unwrap().1.0).unwrap();
    assert_eq!((record.rows, record.failed, record.truncated), (4, 2, 1));
    let manifest: Value = serde_json::from_slice(&std::fs::read(path(&cutting, "manifest")).unwrap()).unwrap();
    assert_eq!((&manifest["truncated"], &manifest["parts"][0]["truncated"]), (&1.into(), &1.into()));
    assert_eq!(manifest["spec"]["truncate"], "end");
}
