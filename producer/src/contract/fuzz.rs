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

proptest! {
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
