//! What sentence-transformers' files beside the weights say about pooling and prompts. Where they are, they must say what
//! the engine does: last token, then L2. A folder without them is taken for what Qwen ships.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use serde_json::{Map, Value};

use super::LoadError;

const MODULES: &str = "modules.json";
const PROMPTS: &str = "config_sentence_transformers.json";

/// The steps, in order: each module's type and folder. The folder of the pooling's configuration is the card's to name;
/// Qwen's is `1_Pooling`.
const STEPS: [&str; 3] = ["Transformer", "Pooling", "Normalize"];

/// What the card adds to the weights.
#[derive(Debug, Default)]
pub(super) struct Card {
    pub(super) prompts: BTreeMap<String, String>,
}

impl Card {
    /// Reads and checks what is there.
    pub(super) fn load(dir: &Path, hidden: usize) -> Result<Self, LoadError> {
        let pooling = match File::read(dir, MODULES)? {
            Some(modules) => Some(modules.pooling_folder()?),
            None => None,
        };
        let path = format!("{}/config.json", pooling.as_deref().unwrap_or("1_Pooling"));
        match File::read(dir, &path)? {
            Some(file) => file.check_pooling(hidden)?,
            None if pooling.is_some() => {
                let absent = std::io::Error::new(ErrorKind::NotFound, "it is absent, but modules.json names it");
                return Err(LoadError::read(&dir.join(path))(absent));
            }
            None => {}
        }
        let prompts = File::read(dir, PROMPTS)?.map_or(Ok(BTreeMap::new()), |file| file.prompts())?;
        Ok(Self { prompts })
    }
}

/// A JSON file of the card.
struct File<'a> {
    dir: &'a Path,
    name: &'a str,
    value: Value,
}

impl<'a> File<'a> {
    /// `None` where there is none.
    fn read(dir: &'a Path, name: &'a str) -> Result<Option<Self>, LoadError> {
        let path = dir.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => {
                let value = serde_json::from_slice(&bytes).map_err(LoadError::json(&path))?;
                Ok(Some(Self { dir, name, value }))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(LoadError::read(&path)(error)),
        }
    }

    fn refuse<T>(&self, field: impl Into<String>, value: &Value, expected: impl Into<String>) -> Result<T, LoadError> {
        let (field, value, expected) = (field.into(), value.to_string(), expected.into());
        Err(LoadError::Card { path: self.dir.join(self.name), field, value, expected })
    }

    fn object(&self) -> Result<&Map<String, Value>, LoadError> {
        match &self.value {
            Value::Object(fields) => Ok(fields),
            other => self.refuse("the file", other, "must be an object"),
        }
    }

    /// Checks `modules.json`; gives the folder of the pooling's configuration.
    fn pooling_folder(&self) -> Result<String, LoadError> {
        let modules = self.value.as_array().map_or(&[][..], Vec::as_slice);
        if modules.len() != STEPS.len() {
            return self.refuse("the list", &self.value, format!("must have the modules {}", STEPS.join(", ")));
        }
        for (place, (module, step)) in modules.iter().zip(STEPS).enumerate() {
            let kind = &module["type"];
            // "sentence_transformers.models.Pooling"; later versions put more modules in between.
            let parts: Vec<&str> = kind.as_str().unwrap_or_default().split('.').collect();
            if parts.first() != Some(&"sentence_transformers") || parts.last() != Some(&step) {
                return self.refuse(format!("[{place}].type"), kind, format!("must be sentence_transformers' {step}"));
            }
        }
        let path = &modules[0]["path"];
        if path != "" {
            return self.refuse("[0].path", path, "must be \"\": the weights lie in the model's own folder");
        }
        match &modules[1]["path"] {
            Value::String(folder) if is_folder_name(folder) => Ok(folder.clone()),
            other => self.refuse("[1].path", other, "must be a folder's name, for example \"1_Pooling\""),
        }
    }

    fn check_pooling(&self, hidden: usize) -> Result<(), LoadError> {
        let fields = self.object()?;
        let (true_, false_) = (Value::Bool(true), Value::Bool(false));
        match fields.get("pooling_mode") {
            // sentence-transformers 5 names the one mode; before, there was a switch for each.
            Some(mode) if mode != "lasttoken" => {
                return self.refuse("pooling_mode", mode, "must be \"lasttoken\"");
            }
            Some(_) => {}
            None => {
                let last = fields.get("pooling_mode_lasttoken").unwrap_or(&false_);
                if *last != true_ {
                    return self.refuse("pooling_mode_lasttoken", last, "must be true: the last token is the text's");
                }
            }
        }
        let others =
            fields.iter().filter(|(field, _)| field.starts_with("pooling_mode_") && *field != "pooling_mode_lasttoken");
        for (field, value) in others {
            if *value != false_ {
                return self.refuse(field, value, "must be false: the last token alone is the text's");
            }
        }
        for field in ["word_embedding_dimension", "embedding_dimension"] {
            if let Some(width) = fields.get(field).filter(|width| width.as_u64() != Some(hidden as u64)) {
                return self.refuse(field, width, format!("must be config.json's hidden_size, {hidden}"));
            }
        }
        match fields.get("include_prompt") {
            Some(include) if *include != true_ => {
                self.refuse("include_prompt", include, "must be true: a prompt's tokens are seen like the text's")
            }
            _ => Ok(()),
        }
    }

    fn prompts(&self) -> Result<BTreeMap<String, String>, LoadError> {
        let fields = self.object()?;
        let mut prompts = BTreeMap::new();
        match fields.get("prompts") {
            None | Some(Value::Null) => {}
            Some(Value::Object(named)) => {
                for (name, prompt) in named {
                    let Value::String(text) = prompt else {
                        return self.refuse(format!("prompts.{name}"), prompt, "must be a string");
                    };
                    prompts.insert(name.clone(), text.clone());
                }
            }
            Some(other) => return self.refuse("prompts", other, "must be an object of strings"),
        }
        // A document is embedded as it stands.
        match fields.get("default_prompt_name") {
            None | Some(Value::Null) => Ok(prompts),
            Some(Value::String(name)) if prompts.get(name).is_some_and(String::is_empty) => Ok(prompts),
            Some(other) => {
                self.refuse("default_prompt_name", other, "must be null: a text without an instruction gets no prompt")
            }
        }
    }
}

/// One plain name: a card is data and must not lead out of the model's folder.
fn is_folder_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}
