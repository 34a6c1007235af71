use proptest::prelude::*;

use super::*;

/// Data, trailers, and what follows.
type Whole = (Vec<u8>, Option<Fields>, Vec<u8>);

/// The body, its trailers, and what is left of the bytes, read from parts cut at `cuts`.
fn read(bytes: &[u8], cuts: &[usize]) -> Result<Option<Whole>, Malformed> {
    let mut decoder = Decoder::new(Framing::Chunked);
    let mut held = BytesMut::new();
    let mut body = Vec::new();
    let mut ends: Vec<_> = cuts.iter().map(|cut| (*cut).min(bytes.len())).chain([bytes.len()]).collect();
    ends.sort_unstable();
    let mut from = 0;
    for end in ends {
        held.extend_from_slice(&bytes[from..end]);
        from = end;
        let trailers = loop {
            match decoder.decode(&mut held)? {
                Decoded::Data(data) => body.extend_from_slice(&data),
                Decoded::More => break None,
                Decoded::End => break Some(None),
                Decoded::Trailers(trailers) => break Some(Some(trailers)),
            }
        };
        if let Some(trailers) = trailers {
            assert!(decoder.is_done());
            assert_eq!(decoder.decode(&mut BytesMut::from(&b"x"[..])), Ok(Decoded::End));
            return Ok(Some((body, trailers, [&held[..], &bytes[from..]].concat())));
        }
    }
    assert!(!decoder.is_done() && decoder.end().is_err());
    Ok(None)
}

fn whole(text: &str) -> (String, Option<Fields>, String) {
    let (body, trailers, rest) = read(text.as_bytes(), &[]).unwrap().expect("a whole body");
    for cut in 0..text.len() {
        assert_eq!(read(text.as_bytes(), &[cut]).unwrap().unwrap(), (body.clone(), trailers.clone(), rest.clone()));
    }
    (String::from_utf8(body).unwrap(), trailers, String::from_utf8(rest).unwrap())
}

#[test]
fn chunks_are_put_together() {
    for (text, body, rest) in [
        ("0\r\n\r\n", "", ""),
        ("5\r\nhello\r\n0\r\n\r\nGET", "hello", "GET"),
        ("1\r\na\r\n02\r\nbc\r\n000\r\n\r\n", "abc", ""),
        ("A;x=y\r\n0123456789\r\n0;z\r\n\r\n\r\n", "0123456789", "\r\n"),
        ("1 \t; a = \"b\" \r\nx\r\n0\r\n\r\n", "x", ""),
        ("2\r\n\r\n\r\n0\r\n\r\n", "\r\n", ""),
    ] {
        let read = whole(text);
        assert_eq!((read.0.as_str(), read.2.as_str()), (body, rest), "{text:?}");
        assert_eq!(read.1, None);
    }
    let (body, trailers, _) = whole("3\r\nabc\r\n0\r\nSum: 1\r\nx:\r\nsum: 2 \r\n\r\n");
    assert_eq!(body, "abc");
    assert_eq!(trailers, Some(Fields::from_iter([("sum", "1"), ("x", ""), ("sum", "2")])));
}

#[test]
fn broken_chunks_are_refused() {
    for text in [
        "\r\n",
        "\n",
        " 5\r\nhello",
        "+5\r\n",
        "-5\r\n",
        "0x5\r\n",
        "5\nhello",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello\n0\r\n",
        "5\r\nhello\r0\r\n",
        "5\rx\n",
        "5 5\rx",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "5 a=b\r\n",
        "5;a\nhello",
        "5;a\rb\r\n",
        "5;\0\r\n",
        "5;\x7f\r\n",
        "g\r\n",
        "5,5\r\n",
        "5;a\r\r\n",
        "1000000000000000\r\n",
        "0000000000000005\r\n",
        "ffffffffffffffff\r\n",
        "0\r\nx: y\n\r\n",
        "0\r\nx : y\r\n\r\n",
        "0\r\n x\r\n\r\n",
        "0\r\nx\r\n\r\n",
        "0\r\nx: \0\r\n\r\n",
        "0\r\n\n\r\n",
        "0\r\nx: y\r\n z\r\n\r\n",
    ] {
        assert!(read(text.as_bytes(), &[]).is_err(), "{text:?}");
        for cut in 0..text.len() {
            assert!(read(text.as_bytes(), &[cut]).is_err(), "{text:?} cut at {cut}");
        }
    }
    for (before, filler, after) in [
        ("5;", "x", ""),
        ("0\r\nx: ", "y", ""),
        ("0\r\nx: ", "y", "\r\n\r\n"),
        ("0\r\n", "x: y\r\n", ""),
        ("", "1;abcdefghijklmnop\r\nx\r\n", ""),
    ] {
        let text = format!("{before}{}{after}", filler.repeat(TRAILER_BYTES + 1));
        assert!(read(text.as_bytes(), &[]).is_err(), "{before:?}");
        assert!(read(text.as_bytes(), &[1, 5000, 10_000]).is_err(), "{before:?}");
    }
}

#[test]
fn lengths_are_kept_to() {
    let mut decoder = Decoder::new(Framing::Length(5));
    let mut bytes = BytesMut::from(&b"hel"[..]);
    assert_eq!(decoder.decode(&mut bytes), Ok(Decoded::Data(Bytes::from_static(b"hel"))));
    assert_eq!((decoder.exact(), decoder.decode(&mut bytes)), (Some(2), Ok(Decoded::More)));
    assert!(decoder.end().is_err());
    bytes.extend_from_slice(b"loGET");
    assert_eq!(decoder.decode(&mut bytes), Ok(Decoded::Data(Bytes::from_static(b"lo"))));
    assert!(decoder.is_done() && decoder.end().is_ok());
    assert_eq!((decoder.decode(&mut bytes), &bytes[..]), (Ok(Decoded::End), &b"GET"[..]));
    assert!(Decoder::new(Framing::Length(0)).is_done());

    let mut decoder = Decoder::new(Framing::Close);
    assert_eq!(decoder.decode(&mut bytes), Ok(Decoded::Data(Bytes::from_static(b"GET"))));
    assert_eq!(decoder.decode(&mut bytes), Ok(Decoded::More));
    assert!(decoder.end().is_ok() && decoder.is_done());
}

#[test]
fn large_chunks_are_not_put_together_without_end() {
    let mut decoder = Decoder::new(Framing::Chunked);
    let mut bytes = BytesMut::new();
    for _ in 0..40 {
        bytes.extend_from_slice(format!("{:x}\r\n{}\r\n", 5000, "x".repeat(5000)).as_bytes());
    }
    let mut all = 0;
    while let Decoded::Data(data) = decoder.decode(&mut bytes).unwrap() {
        assert!(!data.is_empty() && data.len() <= TOGETHER);
        all += data.len();
    }
    assert_eq!(all, 40 * 5000);
}

proptest! {
    /// However a body is cut, it is the same.
    #[test]
    fn cuts_change_nothing(
        chunks in proptest::collection::vec((1_usize..20_000, "(;[a-z=\"]{0,8})?"), 0..6),
        trailers in "(x: [a-z]{0,9}\r\n){0,3}",
        cuts in proptest::collection::vec(0_usize..60_000, 0..8),
    ) {
        let mut text = String::new();
        let mut body = Vec::new();
        for (length, extension) in &chunks {
            text += &format!("{length:X}{extension}\r\n{}\r\n", "z".repeat(*length));
            body.resize(body.len() + length, b'z');
        }
        text += &format!("0\r\n{trailers}\r\nrest");
        let read = read(text.as_bytes(), &cuts).unwrap().unwrap();
        prop_assert_eq!(&read.0, &body);
        prop_assert_eq!(read.1.map_or(0, |fields| fields.len()), trailers.matches("x:").count());
        prop_assert_eq!(read.2, b"rest");
    }

    /// Nonsense too: the verdict is the same, and so is the body if there is one.
    #[test]
    fn cuts_change_nothing_in_nonsense(
        text in "([0-3]{1,2}|\r\n|\r|\n|;a| |x: y|[a-f]){0,24}",
        cuts in proptest::collection::vec(0_usize..60, 0..4),
    ) {
        prop_assert_eq!(read(text.as_bytes(), &cuts), read(text.as_bytes(), &[]));
    }
}
