//! From the text of a file to documents. A document that is not YAML costs only itself.

use std::sync::Arc;

use serde_json::Value;

use crate::model::{Document, DocumentError};

/// Documents of a file, and those that cannot be read. `file` is its name as people will see it.
pub(crate) fn documents(file: &Arc<str>, text: &str) -> (Vec<Document>, Vec<DocumentError>) {
    let mut documents = Vec::new();
    let mut errors = Vec::new();
    for (part, index) in split(text).into_iter().zip(1..) {
        // Lines before the document stand for themselves, so that line numbers in errors are the file's.
        match serde_saphyr::from_str_with_options::<Value>(&part, options()) {
            Ok(Value::Null) => {}
            Ok(content) => documents.push(Document { file: file.clone(), index, content: Arc::new(content) }),
            Err(error) => errors.push(DocumentError {
                file: file.clone(),
                document: index,
                object: None,
                field: String::new(),
                reason: format!("not YAML: {error}"),
            }),
        }
    }
    (documents, errors)
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        // One line, for a log.
        with_snippet: false,
        // Only `true` and `false`, as Kubernetes writes them; a version "no" stays a text.
        strict_booleans: true,
    }
}

/// Cuts at lines that begin a document (`---`), outside of block scalars, where such a line is indented. Each part keeps its
/// place in the file by leading empty lines.
fn split(text: &str) -> Vec<String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut blank = true;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let starts =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if starts && !blank {
            parts.push(std::mem::take(&mut part));
            part.extend(std::iter::repeat_n('\n', number));
            blank = true;
        }
        // Comments, directives and the mark itself are no content.
        let content = line.trim_start();
        blank &= starts && line.trim_end() == "---" || content.is_empty() || content.starts_with(['#', '%']);
        part.push_str(line);
    }
    parts.push(part);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Vec<(u32, Value)>, Vec<(u32, String)>) {
        let (documents, errors) = documents(&"f.yaml".into(), text);
        let documents = documents.into_iter().map(|document| (document.index, (*document.content).clone())).collect();
        (documents, errors.into_iter().map(|error| (error.document, error.reason)).collect())
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
        assert_eq!(documents[1].1["more"].to_string(), r#"{"x":1,"y":"no","z":"no"}"#);
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
