//! What comes over the network, from bytes that nobody vouched for. `infra/fuzz` runs these for longer.

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
fn manifest() -> Vec<u8> {
    let digest = Digest::of(b"").to_string();
    format!(
        r#"{{"version":1,"job":"{}","spec":{{"model":"m","dimensions":32,"dtype":"f32","instruction":null,"truncate":"none"}},"input":{{"sha256":"{digest}","bytes":9,"format":"jsonl"}},"rows":3,"rejected":1,"text_bytes":30,"chunks":[{{"rows":1,"bytes":7,"sha256":"{digest}"}},{{"rows":2,"bytes":9,"sha256":"{digest}"}}]}}"#,
        "ab".repeat(16)
    )
    .into_bytes()
}

#[test]
fn a_good_manifest_is_one() {
    assert_eq!(Manifest::parse(&manifest()).expect("a manifest").text_bytes(), 30);
}

proptest! {
    #[test]
    fn a_manifest_that_is_read_keeps_to_the_bounds(bytes in changed(manifest())) {
        if let Ok(manifest) = Manifest::parse(&bytes) {
            prop_assert_eq!(manifest.rows, manifest.chunks.iter().map(|chunk| u64::from(chunk.rows)).sum::<u64>());
            for chunk in &manifest.chunks {
                prop_assert!((1..=CHUNK_ROWS_MAX).contains(&chunk.rows) && chunk.bytes as usize <= CHUNK_OBJECT_BYTES_MAX);
            }
        }
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
        rows in 2_u32..5,
    ) {
        if let Ok(read) = read_chunk(&object, rows) {
            prop_assert_eq!(read.len(), rows as usize);
            for row in read {
                prop_assert!(row.id.len() <= ID_BYTES_MAX && row.input.size_bytes() <= TEXT_BYTES_MAX);
            }
        }
    }

    #[test]
    fn a_message_is_read_or_refused(bytes in nearly()) {
        if let Ok(message) = ChunkMessage::parse(&bytes) {
            prop_assert_eq!(ChunkMessage::parse(&message.to_bytes()).expect("its own bytes").to_bytes(), message.to_bytes());
        }
    }

    #[test]
    fn a_manifest_is_read_or_refused(bytes in nearly()) {
        if let Ok(manifest) = Manifest::parse(&bytes) {
            prop_assert_eq!(Manifest::parse(&manifest.to_bytes()).expect("its own bytes").to_bytes(), manifest.to_bytes());
        }
    }

    #[test]
    fn a_chunk_is_read_or_refused(bytes in nearly(), rows in 0_u32..4, damage in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let _ = read_chunk(&bytes, rows);
        // Good compression around any text, and then not so good.
        let mut object = zstd::encode_all(&bytes[..], 1).expect("memory can be written");
        if let Ok(read) = read_chunk(&object, rows) {
            prop_assert_eq!(read.len(), rows as usize);
        }
        let at = damage.index(object.len());
        object[at] ^= 1 << bit;
        let _ = read_chunk(&object, rows);
    }
}
