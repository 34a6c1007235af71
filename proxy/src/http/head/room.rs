//! Memory that goes from one head to the next of the same thread: most heads are of a size, and there are several to each request.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
};

use super::Entry;

/// What a thread keeps for heads to come,
const KEPT: usize = 64;
/// each with so many bytes and entries at most.
const BYTES: usize = 1024;
const ENTRIES: usize = 32;
/// What most heads need.
const USUAL_ENTRIES: usize = 16;
const USUAL_TEXT: usize = 96;

thread_local! {
    static FIELDS: RefCell<Vec<(Vec<u8>, Vec<Entry>)>> = const { RefCell::new(Vec::new()) };
    static TEXTS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Room for fields: names and values, and entries. It grows as needed; `bytes`: the least if it is made anew.
pub(super) fn take(bytes: usize) -> (Vec<u8>, Vec<Entry>) {
    // None: there is nothing kept, or the thread is ending.
    let kept = FIELDS.try_with(|kept| kept.borrow_mut().pop()).ok().flatten();
    kept.unwrap_or_else(|| (Vec::with_capacity(bytes), Vec::with_capacity(USUAL_ENTRIES)))
}

pub(super) fn give_back(mut bytes: Vec<u8>, mut entries: Vec<Entry>) {
    if bytes.capacity() > BYTES || entries.capacity() > ENTRIES {
        return;
    }
    bytes.clear();
    entries.clear();
    // A thread that is ending keeps nothing.
    let _ = FIELDS.try_with(|kept| {
        let mut kept = kept.borrow_mut();
        if kept.len() < KEPT {
            kept.push((bytes, entries));
        }
    });
}

/// A text whose room is used again.
#[derive(Debug, PartialEq)]
pub(super) struct Text(String);

impl Text {
    pub(super) fn new() -> Self {
        let kept = TEXTS.try_with(|kept| kept.borrow_mut().pop()).ok().flatten();
        Self(kept.unwrap_or_else(|| String::with_capacity(USUAL_TEXT)))
    }
}

impl Clone for Text {
    fn clone(&self) -> Self {
        let mut text = Self::new();
        text.push_str(self);
        text
    }
}

impl Deref for Text {
    type Target = String;

    fn deref(&self) -> &String {
        &self.0
    }
}

impl DerefMut for Text {
    fn deref_mut(&mut self) -> &mut String {
        &mut self.0
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        if self.capacity() > BYTES {
            return;
        }
        let mut text = std::mem::take(&mut self.0);
        text.clear();
        // A thread that is ending keeps nothing.
        let _ = TEXTS.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            if kept.len() < KEPT {
                kept.push(text);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use http::{Method, Version};

    use crate::http::head::{Fields, RequestHead};

    use super::*;

    fn kept() -> (usize, usize) {
        (FIELDS.with_borrow(Vec::len), TEXTS.with_borrow(Vec::len))
    }

    #[test]
    fn room_is_used_again_and_nothing_is_left_in_it() {
        let _ = (FIELDS.take(), TEXTS.take());
        let mut head = RequestHead::new(Version::HTTP_11, Method::GET, "/secret");
        head.fields = Fields::with_capacity(100);
        head.fields.push(b"x-secret", b"1");
        drop(head.clone());
        drop(head);
        assert_eq!(kept(), (2, 2));
        let mut head = RequestHead::new(Version::HTTP_11, Method::GET, "/");
        head.fields = Fields::with_capacity(100);
        assert_eq!(kept(), (1, 1));
        assert!(head.fields.is_empty() && head.authority().is_none() && head.target() == "/");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let _ = (FIELDS.take(), TEXTS.take());
        let heads: Vec<_> = (0..2 * KEPT).map(|_| (Fields::with_capacity(100), Text::new())).collect();
        drop(heads);
        assert_eq!(kept(), (KEPT, KEPT));
        FIELDS.take();
        drop(Fields::with_capacity(2 * BYTES));
        assert_eq!(kept(), (0, KEPT));
    }
}
