//! Which part of a benchmark is wanted.

use anyhow::{Result, ensure};

/// The part that the variable `ONLY` names, for looking closer; without it, all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Only(Option<String>);

impl Only {
    /// What `ONLY` says, which has to be one of these parts.
    ///
    /// # Errors
    /// When it is none of them.
    pub fn of(parts: &[&str]) -> Result<Self> {
        Self::named(std::env::var("ONLY").ok(), parts)
    }

    fn named(name: Option<String>, parts: &[&str]) -> Result<Self> {
        let name = name.filter(|name| !name.is_empty());
        if let Some(name) = &name {
            ensure!(
                parts.contains(&name.as_str()),
                "ONLY={name} is none of {}",
                parts.join(", ")
            );
        }
        Ok(Self(name))
    }

    /// Whether this part is wanted.
    #[must_use]
    pub fn wants(&self, part: &str) -> bool {
        self.is_all() || self.names(part)
    }

    /// Whether this part is wanted and no other.
    #[must_use]
    pub fn names(&self, part: &str) -> bool {
        self.0.as_deref() == Some(part)
    }

    /// Whether all is wanted: only then is there a report to be published.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.0.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_does_not_exist_is_refused() {
        let named = |name: &str| Only::named(Some(name.to_owned()), &["attach", "storm"]);
        let all = named("").unwrap();
        assert!(all.is_all() && all.wants("attach") && !all.names("attach"));
        let storm = named("storm").unwrap();
        assert!(!storm.is_all() && storm.wants("storm") && !storm.wants("attach"));
        let why = named("stomr").unwrap_err().to_string();
        assert_eq!(why, "ONLY=stomr is none of attach, storm");
    }
}
