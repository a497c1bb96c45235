//! What fails again and again until it works, told once for each cause: that it was tried once more is no news.
//!
//! In: why it failed, each time, and that it works. Out: whether that is to be told. It must not know what is told, nor how.

use std::collections::BTreeSet;

/// Causes remembered of one failure; more are not told.
const MOST_CAUSES: usize = 16;

/// The causes for which something has failed since it last worked.
#[derive(Debug, Clone, Default)]
pub struct Complaint(BTreeSet<String>);

impl Complaint {
    /// It fails for this cause; whether that is another one than those before. The same cause has to come in the same words.
    pub fn is_news(&mut self, why: &str) -> bool {
        self.0.len() < MOST_CAUSES && self.0.insert(why.to_owned())
    }

    /// It works; whether there was anything to complain of.
    pub fn over(&mut self) -> bool {
        !std::mem::take(&mut self.0).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_causes_by_turns_are_told_twice() {
        let mut complaint = Complaint::default();
        assert!(complaint.is_news("networks/") && complaint.is_news("peers/"));
        assert!(!complaint.is_news("networks/") && !complaint.is_news("peers/"));
        assert!(complaint.over() && !complaint.over());
        assert!(complaint.is_news("networks/"));
    }

    #[test]
    fn causes_without_end_are_not_told_without_end() {
        let mut complaint = Complaint::default();
        let told = (0..1000).filter(|n| complaint.is_news(&n.to_string())).count();
        assert_eq!(told, MOST_CAUSES);
    }
}
