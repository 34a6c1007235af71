//! What operators ask proxies, and what comes back: over the proxies' own streams, so that no proxy need be reached otherwise.

use std::{collections::HashMap, time::Duration};

use leno_proto::v1::{Explanation, Question};
use parking_lot::Mutex;
use tokio::{sync::oneshot, time::timeout};

use super::limits;

/// Questions that nobody has answered yet.
#[derive(Default)]
pub struct Questions {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: u64,
    /// Not yet sent, by proxy ("namespace/workload").
    unsent: HashMap<String, Vec<Question>>,
    /// With whom is asked: nobody answers for another.
    asking: HashMap<u64, (String, oneshot::Sender<Explanation>)>,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoAnswer {
    TooManyQuestions,
    NotConnected,
    /// An older proxy does not know the question.
    InTime(Duration),
}

impl Questions {
    /// Asks a proxy; the question's id is made here. `tell` lets its stream know, and says whether there is one.
    ///
    /// # Errors
    /// If no answer comes.
    pub async fn ask(
        &self,
        proxy: &str,
        question: Question,
        within: Duration,
        tell: impl FnOnce(&str) -> bool,
    ) -> Result<Explanation, NoAnswer> {
        let (id, answer) = self.put(proxy, question).ok_or(NoAnswer::TooManyQuestions)?;
        let answer = if tell(proxy) {
            timeout(within, answer).await.map_err(|_| NoAnswer::InTime(within))
        } else {
            Err(NoAnswer::NotConnected)
        };
        self.forget(proxy, id);
        answer?.map_err(|_| NoAnswer::NotConnected)
    }

    fn put(&self, proxy: &str, question: Question) -> Option<(u64, oneshot::Receiver<Explanation>)> {
        let mut state = self.state.lock();
        if state.asking.len() >= limits::QUESTIONS {
            return None;
        }
        state.last += 1;
        let id = state.last;
        let (sender, receiver) = oneshot::channel();
        state.asking.insert(id, (proxy.to_owned(), sender));
        state.unsent.entry(proxy.to_owned()).or_default().push(Question { id, ..question });
        Some((id, receiver))
    }

    fn forget(&self, proxy: &str, id: u64) {
        let mut state = self.state.lock();
        state.asking.remove(&id);
        if let Some(unsent) = state.unsent.get_mut(proxy) {
            unsent.retain(|question| question.id != id);
            if unsent.is_empty() {
                state.unsent.remove(proxy);
            }
        }
    }

    /// What a proxy's stream has to send.
    pub fn take(&self, proxy: &str) -> Vec<Question> {
        self.state.lock().unsent.remove(proxy).unwrap_or_default()
    }

    /// A proxy's answer. One that nobody waits for any more, or that another was asked for, is dropped.
    pub fn answer(&self, proxy: &str, explanation: Explanation) {
        let mut state = self.state.lock();
        if state.asking.get(&explanation.id).is_some_and(|(asked, _)| asked == proxy)
            && let Some((_, asking)) = state.asking.remove(&explanation.id)
        {
            let _ = asking.send(explanation);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_finds_who_asked() {
        let questions = Questions::default();
        let asked = questions.ask("a/b", Question::default(), limits::ANSWER, |proxy| {
            let [question] = questions.take(proxy).try_into().unwrap();
            questions.answer("a/c", Explanation { id: question.id, error: "forged".into(), ..Explanation::default() });
            questions.answer(proxy, Explanation { id: question.id, ..Explanation::default() });
            true
        });
        assert_eq!(asked.await.unwrap().error, "");
        assert!(questions.state.lock().asking.is_empty());
    }

    #[tokio::test]
    async fn nothing_is_left_of_questions_that_nobody_answers() {
        let questions = Questions::default();
        let soon = Duration::from_millis(1);
        let asked = questions.ask("a/b", Question::default(), soon, |_| true).await;
        assert_eq!(asked, Err(NoAnswer::InTime(soon)));
        let asked = questions.ask("a/c", Question::default(), soon, |_| false).await;
        assert_eq!(asked, Err(NoAnswer::NotConnected));
        let state = questions.state.lock();
        assert!(state.asking.is_empty() && state.unsent.is_empty());
    }
}
