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
fn a_batch_operation_by_operation() {
    let folder = Folder::new();
    let args = ["--times", "--json", "--turns", "2", "--case", "3x7,shared:4x30+5", "--cpu-path", "candle-f32"];
    let output = run(folder.command("bench", &args), "");
    assert!(output.status.success(), "{}", stderr(&output));
    let lines = json_lines(&output);
    assert_eq!(lines.iter().map(|line| &line["tokens"]).collect::<Vec<_>>(), [21, 140]);
    assert_eq!(
        lines.iter().map(|line| &line["rows"]).collect::<Vec<_>>(),
        [21, 30 + 4 * 5],
        "shared rows are there once"
    );
    let of = |line: &Value, name: &str| {
        let operations = line["operations"].as_array().unwrap();
        operations.iter().find(|operation| operation["operation"] == name).cloned().unwrap_or(Value::Null)
    };
    for line in &lines {
        let operations = line["operations"].as_array().unwrap();
        let sum: f64 = operations.iter().map(|operation| operation["seconds"].as_f64().unwrap()).sum();
        assert!((sum - line["operations_seconds"].as_f64().unwrap()).abs() < 1e-9 && sum > 0.0);
    }
    // 64 wide, 4 query and 2 key heads of 16, 128 inside; one layer is the last.
    let gate_up = of(&lines[0], "gate/up product");
    assert_eq!((&gate_up["calls"], &gate_up["flop"]), (&1.into(), &(2 * 21 * 64 * 256).into()));
    assert_eq!(of(&lines[0], "last layer: gate/up product")["flop"], 2 * 3 * 64 * 256);
    // Each of 7 tokens sees those before it and itself: 28 pairs a text.
    assert_eq!(of(&lines[0], "attention")["flop"], 4 * 4 * 16 * 3 * 28);
    assert_eq!(of(&lines[0], "keys and values"), Value::Null, "nothing is shared");
    assert_eq!(of(&lines[1], "keys and values")["calls"], 1);
    let pairs = 30 * 31 / 2 + 4 * (31..=35).sum::<i32>();
    assert_eq!(of(&lines[1], "attention")["flop"], 4 * 4 * 16 * pairs);

    let output =
        run(folder.command("bench", &["--times", "--case", "2x9", "--turns", "1", "--cpu-path", "candle-f32"]), "");
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("gate/up product") && table.contains("2x9: 18 tokens, 18 rows"), "{table}");
}

#[test]
fn products_alone() {
    let folder = Folder::new();
    let output = run(folder.command("bench", &["--products", "--json"]), "");
    assert!(output.status.success(), "{}", stderr(&output));
    let lines = json_lines(&output);
    let size = |line: &Value, name: &str| line[name].as_u64().unwrap();
    let shape = |line: &Value| (line["weights"].as_str().unwrap().to_owned(), size(line, "outer"), size(line, "inner"));
    let mut shapes: Vec<_> = lines.iter().map(shape).collect();
    shapes.dedup();
    let expected = [("q/k/v", 128, 64), ("output", 64, 64), ("gate/up", 256, 64), ("down", 64, 128)];
    assert_eq!(shapes, expected.map(|(name, outer, inner)| (name.to_owned(), outer, inner)));
    for line in &lines {
        let algorithm = &line["algorithms"][0];
        let flop = 2.0 * ["outer", "inner", "height"].map(|name| line[name].as_f64().unwrap()).iter().product::<f64>();
        let counted = algorithm["tflops"].as_f64().unwrap() * algorithm["milliseconds"].as_f64().unwrap() * 1e9;
        assert!((counted / flop - 1.0).abs() < 1e-9, "{line}");
    }
    let output = run(folder.command("bench", &["--products"]), "");
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.lines().skip(1).all(|line| line.ends_with("fastest, used")) && table.contains("128 x 64"), "{table}");
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
    let output = run(folder.command("bench", &["--times", "--cpu-path", "portable-f32", "--case", "1x5"]), "");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("--cpu-path candle-f32"), "{}", stderr(&output));
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
