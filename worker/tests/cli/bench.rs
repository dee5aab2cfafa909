//! `vecmill-worker bench` and `random-model`.

use serde_json::{Value, json};
use vecmill_worker::engine::{Model, finish};

use crate::support::{Folder, assert_near, exact, json_lines, numbers, path, program, run, stderr};

#[test]
fn figures_fit_each_other() {
    let folder = Folder::new();
    let args = ["--json", "--turns", "3", "--case", "3x7", "--case", "mixed:300:5..50"];
    let output = run(folder.command("bench", &args), "");
    assert!(output.status.success(), "{}", stderr(&output));
    let lines = json_lines(&output);
    assert_eq!(lines.iter().map(|line| &line["case"]).collect::<Vec<_>>(), ["3x7", "mixed:300:5..50"]);
    assert_eq!(lines.iter().map(|line| &line["tokens"]).collect::<Vec<_>>(), [21, 300]);
    for line in &lines {
        let figure = |name: &str| line[name].as_f64().unwrap();
        assert_eq!((&line["turns"], &line["layers"], &line["dtype"]), (&3.into(), &2.into(), &"f32".into()));
        assert!(figure("seconds_best") <= figure("seconds_median"));
        let tokens = figure("tokens_per_second_median") * figure("seconds_median");
        assert!((tokens - figure("tokens")).abs() < 1e-6, "{line}");
        assert!(figure("gflops") > figure("gflops_matrices"));
        assert!(figure("peak_memory_bytes") > 1e6);
    }
    // 2 layers, 64 wide, 4 query and 2 key heads of 16, 128 inside; the last layer's q, o and MLP for 3 pooled tokens.
    let (keys_values, rest) = (64 * 2 * 32, 64 * (2 * 64 + 3 * 128));
    let matrices = 2 * (2 * 21 * keys_values + 21 * rest + 3 * rest);
    let counted = lines[0]["gflops_matrices"].as_f64().unwrap() * lines[0]["seconds_median"].as_f64().unwrap() * 1e9;
    assert!((counted / f64::from(matrices) - 1.0).abs() < 1e-9, "{counted} is not {matrices}");
}

#[test]
fn a_table_for_people() {
    let folder = Folder::new();
    let output = run(folder.command("bench", &["--turns", "1", "--case", "2x16,1x8"]), "");
    assert!(output.status.success(), "{}", stderr(&output));
    let table = String::from_utf8(output.stdout).unwrap();
    let firsts: Vec<&str> = table.lines().filter_map(|line| line.split_whitespace().next()).collect();
    // Beneath the model, why no faster path was taken.
    let figures: Vec<&str> = firsts.iter().copied().filter(|first| *first != "not").collect();
    assert_eq!(figures, ["model:", "case", "2x16", "1x8"], "{table}");
    assert!(firsts[1] == "not" && table.contains("not cuda-bf16: this program was built without CUDA"), "{table}");
}

#[test]
fn what_can_not_be_measured() {
    let folder = Folder::new();
    let output = run(folder.command("bench", &["--case", "1x5000"]), "");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("--case 1x5000: the model takes texts of 4096 tokens"), "{}", stderr(&output));
    let output = run(folder.command("bench", &["--case", "many"]), "");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("TEXTSxTOKENS"), "{}", stderr(&output));
}

#[test]
fn other_programs_can_ask_for_turns() {
    let folder = Folder::new();
    let (first, second) = ([1, 2, 3, 256], [9, 256]);
    let asked = [
        json!({"texts": [first, second], "vectors": true}),
        json!({"texts": [[9999]]}),
        json!({"words": []}),
        json!({"texts": [second]}),
    ];
    let input: String = asked.iter().map(|line| format!("{line}\n")).collect();
    let output = run(folder.command("bench", &["--interactive"]), input);
    assert!(output.status.success(), "{}", stderr(&output));
    let lines = json_lines(&output);
    assert_eq!(lines.len(), 5);
    assert_eq!((&lines[0]["ready"], &lines[0]["end_token"]), (&true.into(), &256.into()));
    assert_eq!((&lines[1]["texts"], &lines[1]["tokens"]), (&2.into(), &6.into()));
    assert!(lines[1]["seconds"].as_f64().unwrap() > 0.0);
    let model = Model::load(&folder.model, &exact()).unwrap();
    for (text, found) in [&first[..], &second[..]].into_iter().zip(lines[1]["vectors"].as_array().unwrap()) {
        let expected = finish(&model.forward(&[text]).unwrap()[0], 64).unwrap();
        assert_near(&numbers(found), &expected, 1e-5);
    }
    assert!(lines[2]["error"].as_str().unwrap().contains("token id of 9999"), "{}", lines[2]);
    assert!(lines[3]["error"].as_str().unwrap().contains("words"), "{}", lines[3]);
    assert_eq!((&lines[4]["tokens"], &lines[4]["vectors"]), (&2.into(), &Value::Null));
}

#[test]
fn a_random_model_with_layers_of_ones_own() {
    let folder = Folder::new();
    let dir = folder.file("three");
    let output = run(program(&["random-model", path(&dir), "--shape", "tiny", "--layers", "3"]), "");
    assert!(output.status.success(), "{}", stderr(&output));
    let config: Value = serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["num_hidden_layers"], 3);
    Model::load(&dir, &exact()).unwrap();
}
