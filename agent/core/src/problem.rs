//! What is wrong with an object, for people.

use std::fmt;

/// Something that keeps an object from being as its record says. It never blocks other objects.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The record's key without the prefix, as in `endpoints/blue/host1/web`.
    pub key: String,
    /// The record's field, if one is at fault.
    pub field: Option<String>,
    /// What is wrong and what to do.
    pub message: String,
}

impl Problem {
    /// A problem of a whole record.
    pub fn new(key: impl fmt::Display, message: impl Into<String>) -> Self {
        Self {
            key: key.to_string(),
            field: None,
            message: message.into(),
        }
    }

    /// A problem of one field.
    pub fn field(key: impl fmt::Display, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            key: key.to_string(),
            field: Some(field.into()),
            message: message.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.field {
            Some(field) => write!(f, "{}: {field}: {}", self.key, self.message),
            None => write!(f, "{}: {}", self.key, self.message),
        }
    }
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
