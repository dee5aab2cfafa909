//! What comes over the network, from bytes that nobody vouched for. See [`crate::fuzz`].

use serde_json::Value;

use super::*;

/// A manifest that is read keeps to the bounds, and is written and read again as the same.
pub(crate) fn manifest(bytes: &[u8]) {
    let Ok(manifest) = Manifest::parse(bytes) else { return };
    let written = manifest.to_bytes();
    assert_eq!(Manifest::parse(&written).expect("its own bytes").to_bytes(), written);
    assert_eq!(manifest.rows, manifest.chunks.iter().map(|chunk| u64::from(chunk.rows)).sum::<u64>());
    for chunk in &manifest.chunks {
        assert!((1..=CHUNK_ROWS_MAX).contains(&chunk.rows) && chunk.bytes as usize <= CHUNK_OBJECT_BYTES_MAX);
    }
}

/// A message that is read is written and read again as the same.
pub(crate) fn message(bytes: &[u8]) {
    if let Ok(message) = ChunkMessage::parse(bytes) {
        let written = message.to_bytes();
        assert_eq!(ChunkMessage::parse(&written).expect("its own bytes").to_bytes(), written);
    }
}

/// An object that is read as a chunk has the rows it must have, within the bounds of a row.
pub(crate) fn chunk(object: &[u8]) {
    for rows in 1..=3 {
        if let Ok(read) = read_chunk(object, rows) {
            assert_eq!(read.len(), rows as usize);
            for row in read {
                assert!(row.id.len() <= ID_BYTES_MAX && row.input.size_bytes() <= TEXT_BYTES_MAX);
            }
        }
    }
}

/// The same of any text, well compressed.
pub(crate) fn chunk_text(text: &[u8]) {
    chunk(&zstd::encode_all(text, 1).expect("memory can be written"));
}

/// A synchronous request or its answer that is read is written and read again as the same.
pub(crate) fn embed(bytes: &[u8]) {
    if let Ok(request) = EmbedRequest::parse(bytes) {
        assert!((1..=EMBED_INPUTS_MAX).contains(&request.inputs.len()));
        assert_eq!(EmbedRequest::parse(&request.to_bytes()), Ok(request));
    }
    if let Ok(answer) = EmbedAnswer::parse(bytes.to_vec()) {
        assert_eq!(EmbedAnswer::parse(answer.to_bytes()), Ok(answer));
    }
}

/// Inputs are read without a tree of JSON as they would be from one.
pub(crate) fn inputs(json: &[u8]) {
    let read = serde_json::from_slice::<EmbedInputs>(json).map(EmbedInputs::checked);
    // What the tree can't hold, such as numbers beyond a double's in an object that is skipped, may yet be read.
    if let Ok(tree) = serde_json::from_slice::<Value>(json) {
        let read =
            read.expect("JSON").map_err(|fault| Some(fault).filter(|fault| !matches!(fault, InputFault::Entry(..))));
        assert_eq!(read, from_tree(&tree));
    }
}

/// What the inputs are, and what is wrong where it is not one of the entries.
fn from_tree(tree: &Value) -> Result<Vec<EmbedInput>, Option<InputFault>> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = |list: &[Value]| list.iter().map(id).collect::<Option<Vec<_>>>().filter(|ids| !ids.is_empty());
    let entry = |value: &Value| match value {
        Value::String(text) if !text.is_empty() => Some(EmbedInput::Text(text.clone())),
        Value::Array(list) => ids(list).map(EmbedInput::Tokens),
        _ => None,
    };
    let entries: Vec<_> = match tree {
        Value::String(_) => vec![entry(tree)],
        Value::Array(list) if list.first().is_some_and(Value::is_number) => vec![entry(tree)],
        Value::Array(list) => list.iter().map(entry).collect(),
        _ => return Err(Some(InputFault::Shape)),
    };
    match entries.len() {
        1..=EMBED_INPUTS_MAX => entries.into_iter().collect::<Option<_>>().ok_or(None),
        count => Err(Some(InputFault::Count(count))),
    }
}

#[cfg(test)]
mod generated {
    use proptest::prelude::*;
    use vecmill_signer::claims::Digest;

    use super::*;

    /// Documents that are good, cut at places and glued with others: nearer to the edge than noise.
    fn nearly() -> impl Strategy<Value = Vec<u8>> {
        let message = ChunkMessage {
            version: CONTRACT_VERSION,
            job: "ab".repeat(16),
            run: 2,
            chunk: 3,
            sha256: Digest::of(b""),
            grant: "a.b.c".to_owned(),
        };
        let texts = [
            message.to_bytes(),
            br#"{"version":1,"job":"abababababababababababababababab","spec":{"model":"m","dimensions":32},"rows":1,"chunks":[{"rows":1,"bytes":1,"sha256":""}]}"#.to_vec(),
            br#"{"line":1,"id":"a","text":"b"}"#.to_vec(),
            b"\n".to_vec(),
            b"[[[[{\"\\ud800\":1e999,".to_vec(),
            b"\xff\xfe\0".to_vec(),
            b"18446744073709551616".to_vec(),
        ];
        let piece = (prop::sample::select(texts.to_vec()), any::<prop::sample::Index>(), any::<bool>()).prop_map(
            |(text, at, head)| {
                let at = at.index(text.len() + 1);
                if head { text[..at].to_vec() } else { text[at..].to_vec() }
            },
        );
        prop::collection::vec(prop_oneof![4 => piece, 1 => prop::collection::vec(any::<u8>(), 0..12)], 0..8)
            .prop_map(|pieces| pieces.concat())
    }

    /// Good bytes with some of them changed, and cut.
    fn changed(good: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
        let change = (any::<prop::sample::Index>(), any::<u8>());
        (Just(good), prop::collection::vec(change, 0..5), any::<prop::sample::Index>(), any::<bool>()).prop_map(
            |(mut bytes, changes, end, cut)| {
                for (at, byte) in changes {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
                if cut {
                    bytes.truncate(end.index(bytes.len()));
                }
                bytes
            },
        )
    }

    /// A manifest as it is written.
    fn good_manifest() -> Vec<u8> {
        let digest = Digest::of(b"").to_string();
        format!(
            r#"{{"version":1,"job":"{}","spec":{{"model":"m","dimensions":32,"dtype":"f32","instruction":null,"truncate":"none"}},"input":{{"sha256":"{digest}","bytes":9,"format":"jsonl"}},"rows":3,"rejected":1,"text_bytes":30,"chunks":[{{"rows":1,"bytes":7,"sha256":"{digest}"}},{{"rows":2,"bytes":9,"sha256":"{digest}"}}]}}"#,
            "ab".repeat(16)
        )
        .into_bytes()
    }

    #[test]
    fn a_good_manifest_is_one() {
        assert_eq!(Manifest::parse(&good_manifest()).expect("a manifest").text_bytes(), 30);
    }

    proptest! {
        #[test]
        fn a_manifest_that_is_read_keeps_to_the_bounds(bytes in prop_oneof![changed(good_manifest()), nearly()]) {
            manifest(&bytes);
        }

        #[test]
        fn a_chunk_that_is_read_keeps_to_the_bounds(
            object in changed({
                let mut writer = ChunkWriter::new().expect("an encoder");
                for line in 1..=3 {
                    let row = ChunkRow { line, id: "an id".to_owned(), input: RowInput::Text("a text ".repeat(40)) };
                    writer.push(&row).expect("memory");
                }
                writer.finish().expect("memory")
            }),
        ) {
            chunk(&object);
        }

        #[test]
        fn a_message_is_read_or_refused(bytes in nearly()) {
            message(&bytes);
            embed(&bytes);
        }

        #[test]
        fn a_chunk_is_read_or_refused(bytes in nearly(), damage in any::<prop::sample::Index>(), bit in 0_u8..8) {
            chunk(&bytes);
            // Good compression around any text, and then not so good.
            chunk_text(&bytes);
            let mut object = zstd::encode_all(&bytes[..], 1).expect("memory can be written");
            let at = damage.index(object.len());
            object[at] ^= 1 << bit;
            chunk(&object);
        }

        #[test]
        fn inputs_are_read_as_from_a_tree(pieces in prop::collection::vec(
            prop::sample::select(&["[", "]", ",", "\"\"", "\"a\"", "7", "-1", "1.5", "4294967296", "{\"a\":", "}", "null", " "][..]), 0..12,
        )) {
            inputs(pieces.concat().as_bytes());
        }
    }
}
