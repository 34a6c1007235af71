//! From the text of a file to documents, read as kubectl reads them. A document that is not YAML costs only itself.

use std::{collections::HashMap, ops::Range, sync::Arc};

use serde_json::{Number, Value};

use crate::model::{Document, DocumentError};

/// Documents that were read before, by the hash of their text.
pub(crate) type Known = HashMap<String, Arc<Value>>;

/// Errors of a file that name the file's line.
const MAX_EXACT: usize = 20;

/// Values in one document.
const MAX_NODES: usize = 4_000_000;

/// Whole numbers below this are exact as floats.
const MAX_WHOLE: f64 = 9_007_199_254_740_992.0;

/// What a file holds.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) documents: Vec<Document>,
    /// Documents that cannot be read.
    pub(crate) unreadable: Vec<DocumentError>,
    /// To be handed in when the file is read again.
    pub(crate) known: Known,
}

/// Documents of a file; `file` is its name as people will see it. A document in `before` is not parsed again.
pub(crate) fn documents(file: &Arc<str>, text: &str, before: &Known) -> Contents {
    let mut contents = Contents::default();
    let text = without_mark(text);
    for (Part { line, range }, index) in split(text).into_iter().zip(1..) {
        let part = text.get(range).unwrap_or_default();
        let key = crate::model::content_hash(part.as_bytes());
        let parsed = match before.get(&key) {
            Some(content) => Ok(content.clone()),
            None => value(part).map(Arc::new),
        };
        match parsed {
            Ok(content) if content.is_null() => {}
            Ok(content) => {
                contents.known.insert(key, content.clone());
                contents.documents.push(Document { file: file.clone(), index, content });
            }
            Err(error) => contents.unreadable.push(DocumentError {
                file: file.clone(),
                document: index,
                object: None,
                field: String::new(),
                reason: match contents.unreadable.len() {
                    ..MAX_EXACT => why(line, part),
                    _ => format!("not YAML: {error} (lines counted from the document's first)"),
                },
                generation: None,
                uid: Arc::default(),
            }),
        }
    }
    contents
}

/// A text without its byte order mark.
pub(crate) fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// One document. kubectl hands numbers on as JSON, where what is whole (`1.0`, `08`) is written as such.
fn value(part: &str) -> Result<Value, serde_saphyr::Error> {
    let mut value = serde_saphyr::from_str_with_options(part, options())?;
    make_whole(&mut value);
    Ok(value)
}

fn make_whole(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(make_whole),
        Value::Object(fields) => fields.values_mut().for_each(make_whole),
        Value::Number(number) => {
            if let Some(float) = number.as_f64().filter(|float| number.is_f64() && float.fract() == 0.0)
                && float.abs() < MAX_WHOLE
            {
                // Exact: it is whole and in range.
                *number = Number::from(float as i64);
            }
        }
        _ => {}
    }
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        // A List of everything in a cluster is one document; files have a limit of their own.
        budget: serde_saphyr::budget! { max_nodes: MAX_NODES, max_events: 2 * MAX_NODES },
        // One line, for a log.
        with_snippet: false,
        // kubectl reads YAML 1.1: `yes`, `no`, `on` and `off` are booleans, 0400 is 256.
        strict_booleans: false,
        legacy_octal_numbers: true,
    }
}

/// Why a part of a file is not YAML, with the line in the file. Parsed a second time, since only errors need the lines before.
fn why(line: usize, part: &str) -> String {
    let padded = "\n".repeat(line) + part;
    match serde_saphyr::from_str_with_options::<Value>(&padded, options()) {
        Ok(_) => "not YAML".to_owned(),
        Err(error) => format!("not YAML: {error}"),
    }
}

/// Where a document is in its file.
#[derive(Debug)]
pub(crate) struct Part {
    /// Lines before it.
    line: usize,
    /// Bytes, with the mark that begins it.
    pub(crate) range: Range<usize>,
}

/// Cuts at lines that begin a document (`---`); in a block scalar such a line is indented. What has no content is no part.
pub(crate) fn split(text: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let (mut start, mut start_line) = (0, 0);
    let mut blank = true;
    let mut at = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let starts =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if starts {
            if !blank {
                parts.push(Part { line: start_line, range: start..at });
            }
            (start, start_line, blank) = (at, number, true);
        }
        // Comments, directives and the mark itself are no content.
        let content = line.trim_start();
        blank &= starts && line.trim_end() == "---" || content.is_empty() || content.starts_with(['#', '%']);
        at += line.len();
    }
    parts.push(Part { line: start_line, range: start..at });
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With their places.
    type Read = (Vec<(u32, Value)>, Vec<(u32, String)>);

    fn read(text: &str) -> Read {
        let contents = documents(&"f.yaml".into(), text, &Known::new());
        let again = documents(&"f.yaml".into(), text, &contents.known);
        let same = |(a, b): (&Document, &Document)| a.index == b.index && Arc::ptr_eq(&a.content, &b.content);
        assert!(contents.documents.iter().zip(&again.documents).all(same));
        let documents = contents.documents.into_iter().map(|document| (document.index, (*document.content).clone()));
        (documents.collect(), contents.unreadable.into_iter().map(|error| (error.document, error.reason)).collect())
    }

    #[test]
    fn several_documents_with_comments_between() {
        let (documents, errors) =
            read("# first\n---\na: 1\n---\n# nothing\n---\nb: |\n  ---\n  x\n--- # third\nc: 3\n---\n");
        assert_eq!(errors, []);
        let values: Vec<_> = documents.iter().map(|(_, value)| value.to_string()).collect();
        assert_eq!(values, [r#"{"a":1}"#, r#"{"b":"---\nx\n"}"#, r#"{"c":3}"#]);
        assert_eq!(documents.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn a_bad_document_hides_no_other_and_names_its_line() {
        let (documents, errors) = read("a: 1\n---\nb: [1\n---\nc: 3\n");
        assert_eq!(documents.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].0, 2);
        assert!(errors[0].1.contains("line 3") || errors[0].1.contains("line 4"), "{}", errors[0].1);
        assert!(!errors[0].1.contains('\n'), "{}", errors[0].1);
    }

    #[test]
    fn json_anchors_and_merge_keys() {
        let (documents, errors) =
            read("{\"a\": [1, null, \"x\"]}\n---\nbase: &b {x: 1}\nmore:\n  <<: *b\n  y: \"no\"\n  z: no\n");
        assert_eq!(errors, []);
        assert_eq!(documents[0].1.to_string(), r#"{"a":[1,null,"x"]}"#);
        assert_eq!(documents[1].1["more"].to_string(), r#"{"x":1,"y":"no","z":false}"#);
    }

    #[test]
    fn scalars_are_what_kubectl_takes_them_for() {
        for (text, expected) in [
            ("[0400, 0644, 0o755, -010, 08, 0x10, 1_000]", "[256,420,493,-8,8,16,1000]"),
            ("[yes, Yes, NO, on, Off, y, N, True]", "[true,true,false,true,false,true,false,true]"),
            (
                "['yes', \"0400\", nope, 2001-01-01, 12:30, 1.2.3]",
                r#"["yes","0400","nope","2001-01-01","12:30","1.2.3"]"#,
            ),
            ("[1.0, 1e3, 0.5, 18446744073709551615]", "[1,1000,0.5,18446744073709551615]"),
            ("[~, null, '']", r#"[null,null,""]"#),
        ] {
            let (documents, errors) = read(&format!("a: {text}\n"));
            assert_eq!(errors, []);
            assert_eq!(documents[0].1["a"].to_string(), expected, "{text}");
        }
    }

    #[test]
    fn duplicate_keys_and_bombs_are_refused() {
        let (_, errors) = read("a: 1\na: 2\n");
        assert_eq!(errors.len(), 1);
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for level in 1..9 {
            let last = format!("*a{}", level - 1);
            bomb.push_str(&format!("a{level}: &a{level} [{}]\n", vec![last; 10].join(",")));
        }
        let (_, errors) = read(&bomb);
        assert_eq!(errors.len(), 1);
    }

    #[test]
    fn nothing_is_nothing() {
        for text in ["", "\n", "---\n", "# only a comment\n", "---\n---\n", "null\n"] {
            assert_eq!(read(text), (vec![], vec![]), "{text:?}");
        }
    }
}
