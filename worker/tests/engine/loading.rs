//! Model folders: what is read from them, and what is refused before it can give wrong vectors.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use vecmill_worker::engine::synthetic::{self, Shape, Stored, WriteError, token_ids};
use vecmill_worker::engine::{
    Compute, ComputeDevice, ComputeDtype, ComputePath, CudaAttention, CudaOptions, LoadError, Model, PassedOver,
    Precision,
};

use crate::support::{SEED, difference, edit, loaded, vectors, written};

#[test]
fn says_what_it_loaded() {
    let (_guard, dir) = written(&Shape::tiny());
    let info = Model::load(&dir, &Compute::cpu(ComputeDtype::F32)).unwrap().info().clone();
    assert_eq!((info.name.as_str(), info.hidden, info.tokens_max), ("model", 64, 4096));
    assert_eq!((info.vocab, info.end_token), (257, 256));
    // What sha256sum(1) prints, hashed once more.
    let hex = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let names = ["config.json", "tokenizer.json", "model.safetensors"];
    let lines: String =
        names.iter().map(|name| format!("{}  {name}\n", hex(&std::fs::read(dir.join(name)).unwrap()))).collect();
    assert_eq!(info.revision, hex(lines.as_bytes()));
}

#[test]
fn the_revision_follows_every_file_that_decides_a_vector() {
    let sharded = Shape { shards: 2, ..Shape::tiny() };
    let (_guard, dir) = written(&sharded);
    let revision = || Model::load(&dir, &Compute::cpu(ComputeDtype::F32)).unwrap().info().revision.clone();
    let mut seen = vec![revision()];
    edit(&dir.join("config.json"), |config| config["rope_theta"] = json!(10_000));
    seen.push(revision());
    edit(&dir.join("tokenizer.json"), |tokenizer| tokenizer["normalizer"] = Value::Null);
    seen.push(revision());
    let other = tempfile::tempdir().unwrap();
    synthetic::write(&other.path().join("model"), &sharded, SEED + 1).unwrap();
    let shard = "model-00002-of-00002.safetensors";
    std::fs::copy(other.path().join("model").join(shard), dir.join(shard)).unwrap();
    seen.push(revision());
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 4);
}

#[test]
fn layout_on_disk_does_not_change_vectors() {
    let plain = Shape::tiny();
    let variants = [
        Shape { model_prefix: true, ..plain.clone() },
        Shape { shards: 3, ..plain.clone() },
        Shape { tied: false, ..plain.clone() },
    ];
    let text = token_ids(SEED, 50);
    let wanted = vectors(&loaded(&plain, SEED), &[&text]);
    for shape in variants {
        assert_eq!(vectors(&loaded(&shape, SEED), &[&text]), wanted, "{shape:?}");
    }
    for stored in [Stored::Bf16, Stored::F16] {
        let moved = difference(&vectors(&loaded(&Shape { stored, ..plain.clone() }, SEED), &[&text])[0], &wanted[0]);
        assert!(moved > 0.0 && moved < 0.05, "{stored:?}: rounding moves values by {moved}");
    }
}

#[test]
fn refuses_what_the_forward_pass_does_not_do() {
    let cases = [
        ("use_sliding_window", json!(true)),
        ("attention_bias", json!(true)),
        ("hidden_act", json!("gelu")),
        ("rope_scaling", json!({ "type": "yarn", "factor": 4.0 })),
        ("rope_parameters", json!({ "rope_type": "linear", "rope_theta": 1e6 })),
        ("layer_types", json!(["full_attention", "sliding_attention"])),
        ("model_type", json!("qwen2")),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(15)),
        ("num_hidden_layers", json!(0)),
        ("rms_norm_eps", json!(0.0)),
        ("vocab_size", json!(256)),
    ];
    for (name, bad) in cases {
        let (_guard, dir) = written(&Shape::tiny());
        edit(&dir.join("config.json"), |config| config[name] = bad.clone());
        match Model::load(&dir, &Compute::cpu(ComputeDtype::F32)).err() {
            Some(error @ LoadError::Unsupported { field, .. }) => {
                let message = error.to_string();
                assert_eq!(field, name);
                assert!(message.contains(name) && message.contains(" = "), "{message}");
            }
            other => panic!("{name} = {bad}: {other:?}"),
        }
    }
    let (_guard, dir) = written(&Shape::tiny());
    edit(&dir.join("config.json"), |config| {
        config["sliding_window"] = json!(4096);
        config.as_object_mut().unwrap().remove("use_sliding_window");
    });
    let error = Model::load(&dir, &Compute::cpu(ComputeDtype::F32)).err().unwrap().to_string();
    assert!(error.contains("sliding_window = 4096"), "{error}");
}

#[test]
fn takes_a_window_that_is_switched_off_and_transformers_5s_spelling() {
    let (_guard, dir) = written(&Shape::tiny());
    let text = token_ids(SEED, 20);
    let wanted = vectors(&Model::load(&dir, &Compute::cpu(ComputeDtype::F32)).unwrap(), &[&text]);
    edit(&dir.join("config.json"), |config| {
        config["sliding_window"] = json!(4096);
        config["layer_types"] = json!(["full_attention", "full_attention"]);
        config["rope_parameters"] = json!({ "rope_type": "default", "rope_theta": 1e6 });
        let config = config.as_object_mut().unwrap();
        for gone in ["rope_theta", "rope_scaling", "attention_bias", "max_window_layers"] {
            config.remove(gone);
        }
    });
    assert_eq!(vectors(&Model::load(&dir, &Compute::cpu(ComputeDtype::F32)).unwrap(), &[&text]), wanted);
}

#[test]
fn names_the_file_or_tensor_at_fault() {
    let (_guard, dir) = written(&Shape { shards: 2, ..Shape::tiny() });
    let fails_with = |part: &str| {
        let error = Model::load(&dir, &Compute::cpu(ComputeDtype::F32)).err().unwrap().to_string();
        assert!(error.contains(part), "{error}");
    };
    let index = dir.join("model.safetensors.index.json");
    let original = std::fs::read(&index).unwrap();
    edit(&index, |index| index["weight_map"]["norm.weight"] = json!("../model/config.json"));
    fails_with("points outside its folder");
    edit(&index, |index| index["weight_map"]["norm.weight"] = json!("gone.safetensors"));
    fails_with("gone.safetensors");
    std::fs::write(&index, "{}").unwrap();
    fails_with("weight_map");
    std::fs::remove_file(&index).unwrap();
    fails_with("model.safetensors");
    std::fs::write(&index, original).unwrap();
    edit(&dir.join("config.json"), |config| config["intermediate_size"] = json!(96));
    fails_with("tensor layers.0.mlp.gate_proj.weight: has the shape [128, 64], config.json calls for [96, 64]");
    edit(&dir.join("config.json"), |config| {
        config["intermediate_size"] = json!(128);
        config["num_hidden_layers"] = json!(3);
    });
    fails_with("tensor layers.2.input_layernorm.weight: is absent");
    std::fs::remove_file(dir.join("tokenizer.json")).unwrap();
    fails_with("tokenizer.json");
    std::fs::write(dir.join("config.json"), "{").unwrap();
    fails_with("config.json");
}

#[test]
fn synthetic_models_are_the_same_each_time_and_never_replace_anything() {
    let (_guard, dir) = written(&Shape::tiny());
    let weights = std::fs::read(dir.join("model.safetensors")).unwrap();
    synthetic::write(&dir, &Shape::tiny(), SEED).unwrap();
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), weights);

    let (_other_guard, other) = written(&Shape::tiny());
    assert_eq!(std::fs::read(other.join("model.safetensors")).unwrap(), weights);

    let taken = synthetic::write(&dir, &Shape::tiny(), SEED + 1);
    assert!(matches!(taken, Err(WriteError::Occupied(path)) if path == dir));
    let taken = synthetic::write(dir.parent().unwrap(), &Shape::tiny(), SEED);
    assert!(matches!(taken, Err(WriteError::Occupied(_))));
    let impossible = synthetic::write(&dir, &Shape { vocab: 256, ..Shape::tiny() }, SEED);
    assert!(matches!(impossible, Err(WriteError::Shape(_))));
    let leftovers = std::fs::read_dir(dir.parent().unwrap()).unwrap().count();
    assert_eq!(leftovers, 1, "only the model's folder");
}

#[test]
fn what_the_cpu_lacks_is_refused_and_auto_takes_the_best_there_is() {
    let (_guard, dir) = written(&Shape::tiny());
    let load = |compute: &Compute| Model::load(&dir, compute).map(|model| model.info().clone());
    for path in ComputePath::ON_CPUS {
        match (path.lacking(), load(&Compute::by(path))) {
            (None, Ok(info)) => assert_eq!((info.path, info.precision), (path, path.precision())),
            (Some(lacking), Err(error)) => {
                let said = error.to_string();
                assert!(said.contains(lacking) && said.contains(path.name()) && said.contains("--cpu-path"), "{said}");
            }
            (lacking, loaded) => panic!("{path}: {lacking:?}, {loaded:?}"),
        }
    }
    // The fastest that there is, and why each that is faster was not taken.
    let best_of = |dtype: ComputeDtype, precision: Option<Precision>| {
        let allowed = |path: &ComputePath| precision.is_none_or(|precision| path.precision() == precision);
        let faster = ComputePath::fastest_first();
        let best = faster.iter().position(|path| path.lacking().is_none() && allowed(path)).unwrap();
        let info = load(&Compute::cpu(dtype)).unwrap();
        assert_eq!(info.path, faster[best]);
        let passed_over: Vec<_> = info.passed_over.iter().map(|passed_over| passed_over.path).collect();
        assert_eq!(passed_over, [&[ComputePath::CudaBf16], &faster[..best]].concat());
        for PassedOver { path, reason } in info.passed_over.iter().skip(1) {
            assert_eq!(reason, path.lacking().unwrap_or("--dtype f32 asks for f32"));
        }
    };
    best_of(ComputeDtype::Auto, None);
    best_of(ComputeDtype::F32, Some(Precision::F32));
    match ComputePath::Avx512Bf16.lacking() {
        None => assert_eq!(load(&Compute::cpu(ComputeDtype::Bf16)).unwrap().precision, Precision::Bf16),
        Some(_) => assert!(load(&Compute::cpu(ComputeDtype::Bf16)).unwrap_err().to_string().contains("--dtype f32")),
    }
    let contrary = Compute { dtype: ComputeDtype::Bf16, ..Compute::by(ComputePath::PortableF32) };
    let said = load(&contrary).unwrap_err().to_string();
    assert!(said.contains("--dtype") && said.contains("asks for bf16"), "{said}");
}

#[test]
fn fp8_is_computed_on_hopper_alone() {
    let (_guard, dir) = written(&Shape::tiny());
    let refused = |compute: Compute| Model::load(&dir, &compute).err().unwrap().to_string();
    let error = refused(Compute::cpu(ComputeDtype::Fp8));
    assert!(error.contains("--dtype fp8") && error.contains("Hopper"), "{error}");
    // Whatever else the program was built with.
    let cuda = CudaOptions { attention: CudaAttention::Two, ..CudaOptions::default() };
    let error = refused(Compute { device: ComputeDevice::Cuda, cuda, ..Compute::cpu(ComputeDtype::Fp8) });
    assert!(error.contains("leave --cuda-attention and --cuda-products out"), "{error}");
}

#[test]
#[cfg(not(feature = "cuda"))]
fn a_gpu_that_the_program_can_not_use_is_refused() {
    let (_guard, dir) = written(&Shape::tiny());
    let compute = Compute { device: ComputeDevice::Cuda, ..Compute::default() };
    let error = Model::load(&dir, &compute).err().unwrap().to_string();
    assert!(error.contains("--features cuda") && error.contains("--device cpu"), "{error}");
}
