//! The examples of RFC 7541, appendix C, and both sides against each other.

use http::{Method, StatusCode, Version};
use proptest::prelude::*;

use super::*;
use crate::http::head::{Fields, RequestHead, ResponseHead};

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

fn read(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<(String, String)>, Malformed> {
    let mut all = Vec::new();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    decoder.decode(block, |name, value, _| all.push((text(name), text(value))))?;
    Ok(all)
}

fn check(table: usize, blocks: &[(&str, &[(&str, &str)])]) {
    let mut decoder = Decoder::new(table);
    for (block, fields) in blocks {
        let expected: Vec<_> = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        assert_eq!(read(&mut decoder, &hex(block)).unwrap(), expected);
    }
}

#[test]
fn single_fields() {
    let literal = "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572";
    check(4096, &[(literal, &[("custom-key", "custom-header")])]);
    check(4096, &[("040c 2f73 616d 706c 652f 7061 7468", &[(":path", "/sample/path")])]);
    check(4096, &[("1008 7061 7373 776f 7264 0673 6563 7265 74", &[("password", "secret")])]);
    check(4096, &[("82", &[(":method", "GET")])]);
}

const FIRST: &[(&str, &str)] =
    &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")];
const SECOND: &[(&str, &str)] = &[
    (":method", "GET"),
    (":scheme", "http"),
    (":path", "/"),
    (":authority", "www.example.com"),
    ("cache-control", "no-cache"),
];
const THIRD: &[(&str, &str)] = &[
    (":method", "GET"),
    (":scheme", "https"),
    (":path", "/index.html"),
    (":authority", "www.example.com"),
    ("custom-key", "custom-value"),
];

#[test]
fn requests() {
    check(
        4096,
        &[
            ("8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d", FIRST),
            ("8286 84be 5808 6e6f 2d63 6163 6865", SECOND),
            ("8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65", THIRD),
        ],
    );
}

#[test]
fn requests_by_huffman() {
    check(
        4096,
        &[
            ("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff", FIRST),
            ("8286 84be 5886 a8eb 1064 9cbf", SECOND),
            ("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf", THIRD),
        ],
    );
}

const DATE: &str = "Mon, 21 Oct 2013 20:13:21 GMT";
const LATER: &str = "Mon, 21 Oct 2013 20:13:22 GMT";
const COOKIE: &str = "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";

#[test]
fn responses_and_what_is_evicted() {
    let location = ("location", "https://www.example.com");
    let first: &[_] = &[(":status", "302"), ("cache-control", "private"), ("date", DATE), location];
    let second: &[_] = &[(":status", "307"), ("cache-control", "private"), ("date", DATE), location];
    let third: &[_] = &[
        (":status", "200"),
        ("cache-control", "private"),
        ("date", LATER),
        location,
        ("content-encoding", "gzip"),
        ("set-cookie", COOKIE),
    ];
    check(
        256,
        &[
            (
                "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 \
                 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
                first,
            ),
            ("4803 3330 37c1 c0bf", second),
            (
                "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738 \
                 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 \
                 3630 303b 2076 6572 7369 6f6e 3d31",
                third,
            ),
        ],
    );
    check(
        256,
        &[
            (
                "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 \
                 63c7 8f0b 97c8 e9ae 82ae 43d3",
                first,
            ),
            ("4883 640e ffc1 c0bf", second),
            (
                "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 \
                 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
                third,
            ),
        ],
    );
}

#[test]
fn what_cannot_be_read_is_refused() {
    let refused = |block: &str| read(&mut Decoder::new(4096), &hex(block)).is_err();
    assert!(refused("80"), "index 0");
    assert!(refused("be"), "an empty table");
    assert!(refused("ff ff ff ff ff 0f"), "an integer without end");
    assert!(refused("00 05 61"), "cut off");
    assert!(refused("00"), "cut off");
    assert!(refused("3f e2 1f"), "a table larger than announced");
    assert!(refused("82 20"), "a table's size after a field");
    assert!(!refused("3f e1 1f 20 82"));
}

#[test]
fn what_comes_again_is_one_byte() {
    let mut encoder = Encoder::default();
    let mut head = RequestHead::new(Version::HTTP_2, Method::GET, "/a?b=c");
    head.set_authority("shop:80");
    head.fields = Fields::from_iter([("user-agent", "curl/8"), ("x-tenant", "blue"), ("authorization", "secret")]);
    let sizes: Vec<usize> = (0..4)
        .map(|_| {
            let mut block = Vec::new();
            encoder.request(&head, &mut block);
            block.len()
        })
        .collect();
    assert_eq!(sizes[2], 2 + 8 + 1 + 1 + 1 + 9, "{sizes:?}");
    assert_eq!(sizes[2], sizes[3]);
}

#[test]
fn what_is_never_to_be_indexed_stays_so() {
    let mut fields = Fields::default();
    fields.push(b"x-key", b"secret");
    fields.seal_last();
    fields.push(b"cookie", b"secret");
    fields.push(b"x-tenant", b"blue");
    let mut encoder = Encoder::default();
    for _ in 0..3 {
        let (mut block, mut sealed) = (Vec::new(), Vec::new());
        encoder.trailers(&fields, &mut block);
        Decoder::new(4096).decode(&block, |_, _, never| sealed.push(never)).unwrap_or_default();
        assert_eq!(sealed.get(..2), Some(&[true, true][..]));
    }
}

#[test]
fn a_peer_may_want_no_table() {
    let mut encoder = Encoder::default();
    let mut decoder = Decoder::new(4096);
    let mut head = ResponseHead::new(StatusCode::OK);
    head.fields = Fields::from_iter([("x-tenant", "blue")]);
    for most in [4096, 4096, 4096, 0, 0, 100_000, 100_000, 100_000] {
        encoder.set_most(most);
        let mut block = Vec::new();
        encoder.response(&head, &mut block);
        assert_eq!(read(&mut decoder, &block).unwrap()[1].1, "blue");
    }
}

fn fields() -> impl Strategy<Value = Vec<(String, String)>> {
    let name =
        prop_oneof!["[a-z-]{1,12}", Just("cookie".to_owned()), Just("date".to_owned()), Just("accept".to_owned())];
    proptest::collection::vec((name, "[ -~]{0,40}|[a-b]{1,2}|[a-z]{300}"), 0..20)
}

proptest! {
    #[test]
    fn what_is_written_is_read(heads in proptest::collection::vec((fields(), 0_usize..5000), 1..20)) {
        let mut encoder = Encoder::default();
        let mut decoder = Decoder::new(4096);
        for (fields, most) in heads {
            if most < 4096 && most % 5 == 0 {
                encoder.set_most(most);
            }
            let mut trailers = Fields::default();
            for (name, value) in &fields {
                trailers.push(name.as_bytes(), value.as_bytes());
            }
            let mut block = Vec::new();
            encoder.trailers(&trailers, &mut block);
            prop_assert_eq!(&read(&mut decoder, &block).unwrap(), &fields);
        }
    }

    #[test]
    fn huffman_or_not_is_the_same(fields in fields()) {
        let (mut plain, mut coded) = (Vec::new(), Vec::new());
        for (name, value) in &fields {
            for (block, huffman) in [(&mut plain, false), (&mut coded, true)] {
                block.push(0x40);
                for text in [name, value] {
                    let mut bytes = text.clone().into_bytes();
                    if huffman {
                        bytes.clear();
                        huffman::encode(text.as_bytes(), &mut bytes);
                    }
                    let flag = if huffman { 0x80 } else { 0 };
                    if bytes.len() < 127 {
                        block.push(flag | bytes.len() as u8);
                    } else {
                        block.push(flag | 127);
                        let rest = bytes.len() - 127;
                        block.extend([rest as u8 | 0x80, (rest >> 7) as u8]);
                    }
                    block.extend_from_slice(&bytes);
                }
            }
        }
        prop_assert_eq!(&read(&mut Decoder::new(4096), &plain).unwrap(), &fields);
        prop_assert_eq!(&read(&mut Decoder::new(4096), &coded).unwrap(), &fields);
    }

    #[test]
    fn nothing_breaks_the_decoder(blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..100), 0..10)) {
        let mut decoder = Decoder::new(4096);
        for block in blocks {
            if read(&mut decoder, &block).is_err() {
                break;
            }
        }
    }
}
