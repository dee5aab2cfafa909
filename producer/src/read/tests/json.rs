use super::*;

#[test]
fn json_lines_in_all_their_forms() {
    let input = concat!(
        "\u{feff}{\"id\":\"a\",\"text\":\"one\",\"more\":{\"deep\":[1,2.5,null,true,-3,\"\\u00e9\"]}}\r\n",
        "{\"text\":\"two\"}\n",
        " \t\r\n",
        "\"three\"\n",
        " {\"id\":4,\"text\":\"fo\\u0075r\"} \n",
        "{\"custom_id\":\"r6\",\"method\":\"POST\",\"url\":\"/v1/embeddings\",\"body\":{\"input\":\"six\",\"model\":\"m\"}}\n",
        "{\"custom_id\":\"r7\",\"body\":{\"dimensions\":64,\"input\":[\"seven\"],\"encoding_format\":\"float\",\"model\":null}}\n",
        "{\"id\":-8,\"text\":\"eight\",\"body\":[1],\"url\":7}\n",
        "{\"id\":18446744073709551615,\"text\":\"a\\u0000b \\ud83d\\ude00\"}",
    );
    let (good, bad) = read(input.as_bytes(), InputFormat::Jsonl);
    assert_eq!(bad, []);
    let expected = [
        row(1, "a", "one"),
        row(2, "2", "two"),
        row(4, "4", "three"),
        row(5, "4", "four"),
        row(6, "r6", "six"),
        row(7, "r7", "seven"),
        row(8, "-8", "eight"),
        row(9, "18446744073709551615", "a\0b 😀"),
    ];
    assert_eq!(good, expected);
}

#[test]
fn a_text_may_be_its_token_ids() {
    let input = concat!(
        "{\"id\":\"a\",\"input\":[1,2,151643]}\n",
        "{\"id\":\"b\",\"input\":\"a text\"}\n",
        "{\"id\":\"c\",\"text\":[4294967295],\"input\":\"not this\"}\n",
        "{\"custom_id\":\"d\",\"body\":{\"input\":[3,4]}}\n",
        "{\"custom_id\":\"e\",\"body\":{\"input\":[[5]]}}\n",
    );
    let (good, bad) = read(input.as_bytes(), InputFormat::Jsonl);
    assert_eq!(bad, []);
    let expected = [
        token_row(1, "a", &[1, 2, 151_643]),
        row(2, "b", "a text"),
        token_row(3, "c", &[u32::MAX]),
        token_row(4, "d", &[3, 4]),
        token_row(5, "e", &[5]),
    ];
    assert_eq!(good, expected);
    // A name that was asked for has no stand-in.
    let options = ReadOptions { text_field: "ids".to_owned(), ..options() };
    let input = file(b"{\"ids\":[1]}\n{\"input\":[1]}");
    let (good, bad) = sort(open(input.path(), InputFormat::Jsonl, &options).expect("an input"));
    assert_eq!((good, codes(&bad)), (vec![token_row(1, "1", &[1])], vec![(2, "no_text")]));
}

#[test]
fn fields_have_the_names_that_were_asked_for() {
    let options = ReadOptions { id_field: "url".to_owned(), text_field: "body".to_owned(), ..options() };
    let input = file(b"{\"url\":\"u\",\"body\":\"b\",\"text\":\"no\",\"id\":\"no\"}");
    let (good, bad) = sort(open(input.path(), InputFormat::Jsonl, &options).expect("an input"));
    assert_eq!((good, bad), (vec![row(1, "u", "b")], vec![]));
}

#[test]
fn each_bad_json_line_is_named_and_the_good_ones_go_on() {
    let long_id = format!("{{\"id\":\"{}\",\"text\":\"x\"}}", "i".repeat(513));
    let long_text = format!("{{\"text\":\"{}\"}}", "x".repeat((1 << 20) + 1));
    let too_many_tokens = format!("{{\"input\":[{}1]}}", "1,".repeat(1 << 18));
    let long_line = format!("{{\"more\":\"{}\",\"text\":\"x\"}}", "y".repeat(8 << 20));
    let deep = format!("{{\"text\":{}{}}}", "[".repeat(300_000), "]".repeat(300_000));
    let deep_beside = format!("{{\"text\":\"x\",\"more\":{}{}}}", "[".repeat(200), "]".repeat(200));
    let cases: &[(&[u8], &str)] = &[
        (b"{\"text\":\"secret", "bad_json"),
        (b"{\"text\":\"secret\"", "bad_json"),
        (b"{'text':'secret'}", "bad_json"),
        (b"{\"text\":\"secret\"} trailing", "bad_json"),
        (b"{\"text\":\"secret \\ud800\"}", "bad_json"),
        (b"{\"text\":\"secret \\udc00\\ud800\"}", "bad_json"),
        (b"{\"text\":\"secret\",\"text\":\"secret\"}", "bad_json"),
        (b"{\"text\":\"secret\0\"}", "bad_json"),
        (b"[\"secret\"]", "bad_json"),
        (b"7", "bad_json"),
        (b"null", "bad_json"),
        (b"secret", "bad_json"),
        (deep.as_bytes(), "bad_json"),
        (deep_beside.as_bytes(), "bad_json"),
        (b"{\"text\":\"secret \xff\"}", "not_utf8"),
        (b"{\"text\":\"\xed\xa0\x80\"}", "not_utf8"),
        (b"{\"id\":\"secret\"}", "no_text"),
        (b"{\"text\":null}", "bad_json"),
        (b"{\"text\":7}", "bad_json"),
        (b"{\"text\":[\"secret\"]}", "bad_tokens"),
        (b"{\"text\":[1,null]}", "bad_tokens"),
        (b"{\"text\":[]}", "empty_text"),
        (b"{\"input\":[true]}", "bad_tokens"),
        (b"{\"input\":{}}", "bad_json"),
        (too_many_tokens.as_bytes(), "text_too_long"),
        (b"{\"text\":\"\"}", "empty_text"),
        (b"\"\"", "empty_text"),
        (b"{\"text\":\" \\t\\n\\u00a0\\u3000 \"}", "empty_text"),
        (b"{\"id\":\"\",\"text\":\"secret\"}", "bad_id"),
        (b"{\"id\":null,\"text\":\"secret\"}", "bad_id"),
        (b"{\"id\":1.5,\"text\":\"secret\"}", "bad_id"),
        (b"{\"id\":18446744073709551616,\"text\":\"secret\"}", "bad_id"),
        (b"{\"id\":\"secret\\u0000\",\"text\":\"secret\"}", "bad_id"),
        (long_id.as_bytes(), "bad_id"),
        (long_text.as_bytes(), "text_too_long"),
        (long_line.as_bytes(), "line_too_long"),
    ];
    expect_each(cases);
}

#[test]
fn each_bad_batch_line_is_named() {
    expect_each(&[
        (b"{\"custom_id\":\"a\"}", "no_text"),
        (b"{\"body\":\"secret\"}", "bad_input"),
        (b"{\"body\":{}}", "no_text"),
        (b"{\"body\":{\"input\":null}}", "bad_input"),
        (b"{\"body\":{\"input\":[]}}", "no_text"),
        (b"{\"body\":{\"input\":\"\"}}", "empty_text"),
        (b"{\"body\":{\"input\":[\"secret\",\"secret\"]}}", "several_inputs"),
        (b"{\"body\":{\"input\":[[1,2],[3]]}}", "several_inputs"),
        (b"{\"body\":{\"input\":[[]]}}", "no_text"),
        (b"{\"body\":{\"input\":[1,-2]}}", "bad_tokens"),
        (b"{\"body\":{\"input\":[1,\"secret\"]}}", "bad_tokens"),
        (b"{\"body\":{\"input\":[4294967296]}}", "bad_tokens"),
        (b"{\"body\":{\"input\":[1.0]}}", "bad_tokens"),
        (b"{\"body\":{\"input\":7}}", "bad_input"),
        (b"{\"body\":{\"input\":{\"text\":\"secret\"}}}", "bad_input"),
        (b"{\"url\":\"/v1/chat/completions\",\"body\":{\"input\":\"secret\"}}", "wrong_url"),
        (b"{\"method\":\"GET\",\"body\":{\"input\":\"secret\"}}", "wrong_method"),
        (b"{\"body\":{\"input\":\"secret\",\"dimensions\":32}}", "wrong_dimensions"),
        (b"{\"body\":{\"input\":\"secret\",\"dimensions\":\"64\"}}", "wrong_dimensions"),
        (b"{\"body\":{\"input\":\"secret\",\"model\":\"other\"}}", "wrong_model"),
        (b"{\"body\":{\"input\":\"secret\",\"instruction\":\"secret\"}}", "wrong_instruction"),
        (b"{\"custom_id\":\"\",\"body\":{\"input\":\"secret\"}}", "bad_id"),
    ]);
}

#[test]
fn a_batch_line_can_not_ask_for_what_the_job_does_not_say() {
    let input = file(b"{\"body\":{\"input\":\"x\",\"dimensions\":64}}\n{\"body\":{\"input\":\"x\",\"model\":\"any\"}}");
    let (good, bad) = sort(open(input.path(), InputFormat::Jsonl, &ReadOptions::default()).expect("an input"));
    assert_eq!((good, codes(&bad)), (vec![row(2, "2", "x")], vec![(1, "wrong_dimensions")]));
}

/// Puts a good line before and after every bad one.
fn expect_each(cases: &[(&[u8], &'static str)]) {
    let mut input = b"{\"text\":\"good\"}\n".to_vec();
    for (line, _) in cases {
        input.extend_from_slice(line);
        input.extend_from_slice(b"\n{\"text\":\"good\"}\n");
    }
    let (good, bad) = read(&input, InputFormat::Jsonl);
    let expected: Vec<(u64, &str)> = (1..).map(|case| 2 * case).zip(cases.iter().map(|(_, code)| *code)).collect();
    assert_eq!(codes(&bad), expected);
    let lines: Vec<u64> = good.iter().map(|row| row.line).collect();
    assert_eq!(lines, (0..=cases.len() as u64).map(|case| 2 * case + 1).collect::<Vec<_>>());
    for bad in bad {
        assert!(!bad.reason.contains("secret") && (10..200).contains(&bad.reason.len()), "{}", bad.reason);
    }
}
