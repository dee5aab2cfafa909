//! `vecmill-worker embed`.

use std::io::{BufRead, BufReader, Write};
use std::sync::mpsc;
use std::time::Duration;

use parquet::file::reader::{FileReader, SerializedFileReader};
use vecmill_producer::part;

use crate::support::{Folder, assert_near, json_lines, numbers, path, program, run, stderr};

/// Vectors that differ only by what shared their batch.
const ROUNDING: f32 = 1e-5;

#[test]
fn lines_become_the_engines_vectors_in_order() {
    let folder = Folder::new();
    let texts = ["tides", "how do tides work?", "der Mond zieht am Meer", "潮汐", "x"];
    let output = run(folder.command("embed", &[]), texts.join("\n"));
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
    let lines = json_lines(&output);
    assert_eq!(lines.len(), texts.len());
    for (index, (line, text)) in lines.iter().zip(texts).enumerate() {
        assert_eq!(line["index"], index);
        assert_eq!(line.as_object().unwrap().len(), 2, "{line}");
        assert_near(&numbers(&line["embedding"]), &folder.vector(text, None, 64), ROUNDING);
    }
}

#[test]
fn many_texts_in_many_batches_keep_their_order() {
    let folder = Folder::new();
    let texts: Vec<String> = (0..1500).map(|i| format!("text {i} {}", "ab ".repeat(i % 40))).collect();
    let output = run(folder.command("embed", &["--batch-tokens", "256"]), texts.join("\r\n") + "\r\n");
    assert!(output.status.success(), "{}", stderr(&output));
    let lines = json_lines(&output);
    assert_eq!(lines.len(), texts.len());
    assert!(lines.iter().enumerate().all(|(index, line)| line["index"] == index));
    for index in [0, 1, 777, 1499] {
        assert_near(&numbers(&lines[index]["embedding"]), &folder.vector(&texts[index], None, 64), ROUNDING);
    }
}

#[test]
fn a_bad_line_is_named_and_the_others_are_written() {
    let folder = Folder::new();
    let input = [
        r#"{"id": "a", "text": "good"}"#.to_owned(),
        r#"{"id": "b"}"#.to_owned(),
        "{not json".to_owned(),
        String::new(),
        format!(r#"{{"id": "long", "text": "{}"}}"#, "x".repeat(5000)),
        r#"{"id": "z", "text": "good, too"}"#.to_owned(),
    ];
    let output = run(folder.command("embed", &["--format", "jsonl"]), input.join("\n"));
    assert_eq!(output.status.code(), Some(1));
    let lines = json_lines(&output);
    assert_eq!(lines.len(), 2);
    assert_eq!((&lines[0]["index"], &lines[0]["id"]), (&0.into(), &"a".into()));
    assert_eq!((&lines[1]["index"], &lines[1]["id"]), (&5.into(), &"z".into()));
    assert_near(&numbers(&lines[1]["embedding"]), &folder.vector("good, too", None, 64), ROUNDING);
    let said = stderr(&output);
    let said: Vec<&str> = said.lines().collect();
    assert_eq!(said.len(), 4, "{said:?}");
    assert!(said[0].starts_with("vecmill-worker: line 2: ") && said[0].contains("\"text\""), "{said:?}");
    assert!(said[1].starts_with("vecmill-worker: line 3: "), "{said:?}");
    assert_eq!(said[2], "vecmill-worker: line 5: the text has 5001 tokens; the model takes 4096");
    assert_eq!(said[3], "vecmill-worker: 3 texts have no vector");
}

#[test]
fn dimensions_instruction_and_sixteen_bits() {
    let folder = Folder::new();
    let task = "Given a question, find answers";
    let args = ["--dimensions", "32", "--instruction", task, "--output-dtype", "f16"];
    let output = run(folder.command("embed", &args), "why?\n");
    assert!(output.status.success(), "{}", stderr(&output));
    let found = numbers(&json_lines(&output)[0]["embedding"]);
    assert_near(&found, &folder.vector("why?", Some(task), 32), 1e-3);
    assert!(found.iter().all(|&value| half::f16::from_f32(value).to_f32() == value), "rounded to 16 bits");
}

#[test]
fn long_texts_fail_or_are_cut_and_marked() {
    let folder = Folder::new();
    let input = format!("{}\nshort\n", "x".repeat(5000));
    let output = run(folder.command("embed", &["--truncate", "end"]), input);
    assert!(output.status.success(), "{}", stderr(&output));
    let lines = json_lines(&output);
    assert_eq!((&lines[0]["truncated"], lines[1].get("truncated")), (&true.into(), None));
    assert_near(&numbers(&lines[0]["embedding"]), &folder.vector(&"x".repeat(4095), None, 64), ROUNDING);
}

#[test]
fn a_prompt_of_the_card_is_put_before_the_text() {
    let cache = tempfile::tempdir().unwrap();
    let embed = |args: &[&str], input: &str| {
        let common = ["embed", "--model", "vecmill/mini", "--dtype", "f32", "--device", "cpu", "--format", "jsonl"];
        let mut program = program(&[&common, args].concat());
        program.env("VECMILL_CACHE_DIR", cache.path());
        run(program, input)
    };
    let task = "Given a web search query, retrieve relevant passages that answer the query";
    let vector = |args: &[&str]| {
        let output = embed(args, "\"how do tides work?\"\n");
        assert!(output.status.success(), "{}", stderr(&output));
        numbers(&json_lines(&output)[0]["embedding"])
    };
    let prompted = vector(&["--prompt", "query"]);
    assert_eq!(prompted, vector(&["--instruction", task]));
    assert_ne!(prompted, vector(&[]));

    let unknown = embed(&["--prompt", "passage"], "");
    assert_eq!(unknown.status.code(), Some(1));
    assert!(
        stderr(&unknown).contains("--prompt passage: the model's card has document, query"),
        "{}",
        stderr(&unknown)
    );
    let ids = embed(&["--prompt", "query"], "{\"text\": [1, 2]}\n\"text\"\n");
    assert_eq!(ids.status.code(), Some(1));
    assert!(stderr(&ids).contains("line 1: token ids take no --prompt"), "{}", stderr(&ids));
    assert_eq!(json_lines(&ids).len(), 1, "the text beside it has its vector");
}

#[test]
fn a_parquet_file_has_the_form_of_a_part() {
    let folder = Folder::new();
    let file = folder.file("vectors.parquet");
    let args = ["--format", "jsonl", "--output", path(&file), "--dimensions", "48"];
    let input = "{\"id\": \"one\", \"text\": \"first\"}\n\"second\"\n";
    let output = run(folder.command("embed", &args), input);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(output.stdout, b"");
    let rows = part::decode(std::fs::read(&file).unwrap().into()).unwrap();
    assert_eq!(rows.iter().map(|(id, ..)| id.as_str()).collect::<Vec<_>>(), ["one", "2"]);
    // It says what computed it.
    let reader = SerializedFileReader::new(std::fs::File::open(&file).unwrap()).unwrap();
    let said = reader.metadata().file_metadata().key_value_metadata().unwrap();
    let said = |name: &str| said.iter().find(|entry| entry.key == name).and_then(|entry| entry.value.clone()).unwrap();
    assert!(said(part::COMPUTE).ends_with(&said(part::PRECISION)), "{}", said(part::COMPUTE));
    assert_eq!(said(part::REVISION).len(), 64);
    assert_eq!(rows.iter().map(|(_, _, tokens)| *tokens).collect::<Vec<_>>(), [6, 7], "bytes and the end token");
    assert_near(&rows[0].1, &folder.vector("first", None, 48), ROUNDING);
    assert_near(&rows[1].1, &folder.vector("second", None, 48), ROUNDING);
}

#[test]
fn no_input_gives_no_vectors_and_no_error() {
    let folder = Folder::new();
    for input in ["", "\n", "  \n\n"] {
        let output = run(folder.command("embed", &[]), input);
        assert!(output.status.success(), "{input:?}: {}", stderr(&output));
        assert_eq!((output.stdout.as_slice(), stderr(&output).as_str()), (&b""[..], ""));
    }
    let file = folder.file("none.parquet");
    let output = run(folder.command("embed", &["--output", path(&file)]), "");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(part::decode(std::fs::read(&file).unwrap().into()).unwrap(), []);
}

#[test]
fn a_text_that_comes_alone_is_answered_at_once() {
    let folder = Folder::new();
    let mut child = folder.command("embed", &[]).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let (answered, answers) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut line = String::new();
        while stdout.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
            answered.send(std::mem::take(&mut line)).unwrap();
        }
    });
    for turn in 0..3 {
        writeln!(stdin, "text of turn {turn}").unwrap();
        // The input stays open: nothing else is to come before the answer.
        let line = answers.recv_timeout(Duration::from_secs(60)).expect("an answer");
        assert!(line.starts_with(&format!("{{\"index\":{turn},")), "{line}");
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let folder = Folder::new();
    let mut child = folder.command("embed", &[]).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // Without end, until the program stops reading.
    let feed = std::thread::spawn(move || while stdin.write_all(b"one more line\n").is_ok() {});
    let mut first = String::new();
    // The reader is dropped after one line, and with it the pipe.
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.starts_with("{\"index\":0,"), "{first}");
    let output = child.wait_with_output().unwrap();
    feed.join().unwrap();
    assert_eq!(stderr(&output), "");
    assert!(output.status.success());
}

#[test]
fn damaged_input_keeps_what_came_before() {
    let folder = Folder::new();
    // The head of gzip, and then nothing of it.
    let output = run(folder.command("embed", &[]), b"\x1f\x8b\x08\x00damaged, and not compressed at all");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("gzip"), "{}", stderr(&output));
}

#[test]
fn wrong_settings_are_told() {
    let folder = Folder::new();
    let refused = |args: &[&str], code, says: &str| {
        let output = run(folder.command("embed", args), "text\n");
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        assert!(stderr(&output).contains(says), "{args:?}: {}", stderr(&output));
    };
    refused(&["--dimensions", "65"], 1, "--dimensions is 65");
    refused(&["--dimensions", "31"], 1, "32 or more, up to 64");
    refused(&["--output", "vectors.csv"], 2, "must end in .parquet or .jsonl");
    refused(&["--output", "/no/such/folder/vectors.jsonl"], 1, "/no/such/folder/vectors.jsonl can't be written");
    // Without a folder it is the hub's, and here nobody may be asked.
    let mut nameless = program(&["embed"]);
    nameless.env("HF_HUB_OFFLINE", "1").env("VECMILL_CACHE_DIR", folder.file("cache"));
    let output = run(nameless, "text\n");
    assert_eq!(output.status.code(), Some(1));
    for part in ["Qwen/Qwen3-Embedding-4B", "HF_HUB_OFFLINE forbids", "--model-dir"] {
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
    }
}
