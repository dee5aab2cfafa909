use super::*;

#[test]
fn csv_by_the_headers_names() {
    let input = "\u{feff}text, more ,id\r\n\"one, with a \"\"comma\"\"\",x,a\r\n\r\n\"two\nlines\",x,b\r\ntoo,few\r\n,x,c\r\n\
                 too,many,by,one\nx,x,\nlast,x,d";
    let (good, bad) = read(input.as_bytes(), InputFormat::Csv);
    assert_eq!(good, [row(2, "a", "one, with a \"comma\""), row(4, "b", "two\nlines"), row(9 + 1, "d", "last")]);
    assert_eq!(codes(&bad), [(6, "wrong_fields"), (7, "empty_text"), (8, "wrong_fields"), (9, "bad_id")]);
}

#[test]
fn bad_utf8_matters_where_it_is_read() {
    let (good, bad) = read(b"id,text,more\na,one,\xff\n\xff,two,x\nc,\xff,x\nd,four,x\n", InputFormat::Csv);
    assert_eq!(good, [row(2, "a", "one"), row(5, "d", "four")]);
    assert_eq!(codes(&bad), [(3, "not_utf8"), (4, "not_utf8")]);
}

#[test]
fn tabs_are_known_by_the_header_or_by_the_name() {
    let expected = (vec![row(2, "a", "one, two")], vec![]);
    assert_eq!(read(b"text\tid\none, two\ta\n", InputFormat::Csv), expected);
    let named = tempfile::Builder::new().suffix(".tsv").tempfile().expect("a file");
    std::fs::write(named.path(), "text\tid\ta,b\none, two\ta\t\n").expect("bytes");
    assert_eq!(sort(open(named.path(), InputFormat::Csv, &options()).expect("an input")), expected);
}

#[test]
fn a_header_alone_gives_no_rows_and_no_header_is_refused() {
    for empty in ["id,text", "id,text\n\n"] {
        assert_eq!(read(empty.as_bytes(), InputFormat::Csv), (vec![], vec![]), "{empty:?}");
    }
    for empty in ["", "\u{feff}", "\n\r\n"] {
        let error = refusal(empty.as_bytes(), InputFormat::Csv, &options()).to_string();
        assert!(error.contains("no column \"text\"") && error.contains("there are: none"), "{error}");
    }
}

#[test]
fn a_missing_column_is_named_beside_those_there_are() {
    let error = refusal(b"key,body\na,b\n", InputFormat::Csv, &options()).to_string();
    assert!(error.contains("\"text\"") && error.contains("key, body"), "{error}");
    let typo = ReadOptions { id_field: "kye".to_owned(), text_field: "body".to_owned(), ..options() };
    assert!(matches!(refusal(b"key,body\na,b\n", InputFormat::Csv, &typo), ReadError::NoColumn { .. }));
    let twice = refusal(b"text,text\na,b\n", InputFormat::Csv, &options());
    assert!(matches!(twice, ReadError::DuplicateColumn(_)), "{twice}");
    // Without a header the first record stands in its place: no more of it is shown than a name would have.
    let spilled = refusal(format!("a,{}\n", "secret ".repeat(100)).as_bytes(), InputFormat::Csv, &options());
    assert!(spilled.to_string().len() < 200, "{spilled}");
}

#[test]
fn without_a_column_of_ids_the_line_is_the_id() {
    let (good, bad) = read(b"text,more\n\"one\n\",x\ntwo,x\n", InputFormat::Csv);
    assert_eq!((good, bad), (vec![row(2, "2", "one\n"), row(4, "4", "two")], vec![]));
}

#[test]
fn a_record_over_the_bound_is_skipped_and_the_next_one_read() {
    let long = "x".repeat(9 << 20);
    let wide = ",".repeat(10_000);
    let text = "y".repeat(1 << 20);
    let input = format!("id,text\na,one\nb,\"{long}\n\"\"{long}\"\nc,three\n{wide}\nd,{text}\ne,{text}y\nf,six\n");
    let (good, bad) = read(input.as_bytes(), InputFormat::Csv);
    assert_eq!(good, [row(2, "a", "one"), row(5, "c", "three"), row(7, "d", &text), row(9, "f", "six")]);
    assert_eq!(codes(&bad), [(3, "record_too_long"), (6, "record_too_long"), (8, "text_too_long")]);
}

#[test]
fn a_quote_that_is_never_closed_is_named_where_it_opens() {
    for length in [0, 10, 40 << 20] {
        let input = format!("id,text\na,good\nb,\"{}\nc,lost\n", "x".repeat(length));
        let (good, bad) = read(input.as_bytes(), InputFormat::Csv);
        assert_eq!(good, [row(2, "a", "good")]);
        assert_eq!(codes(&bad), [(3, "unclosed_quote")]);
    }
    let header = refusal(b"id,\"text\na,b\n", InputFormat::Csv, &options());
    assert!(matches!(header, ReadError::Header(_)), "{header}");
}

#[test]
fn lines_are_counted_whatever_ends_them() {
    for end in ["\n", "\r\n", "\r"] {
        let input = ["id,text", "a,one", "", "b,two", "c", "", "", "d,four"].join(end);
        let (good, bad) = read(input.as_bytes(), InputFormat::Csv);
        assert_eq!(good, [row(2, "a", "one"), row(4, "b", "two"), row(8, "d", "four")], "{end:?}");
        assert_eq!(codes(&bad), [(5, "wrong_fields")], "{end:?}");
    }
}

#[test]
fn records_that_end_with_the_file() {
    for end in ["", "\n", "\r\n", "\r"] {
        for last in ["b,two", "b,\"two\""] {
            let (good, bad) = read(format!("id,text\na,one\n{last}{end}").as_bytes(), InputFormat::Csv);
            assert_eq!((good, bad), (vec![row(2, "a", "one"), row(3, "b", "two")], vec![]), "{last}{end:?}");
        }
    }
}
