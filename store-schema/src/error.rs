//! Why a record was not accepted.

use thiserror::Error;

/// Why a record's bytes are not a valid record. The key is known to whoever asked for the decoding.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RecordError {
    /// The value is larger than any record may be.
    #[error("the value has {bytes} bytes; a record may have at most {limit}")]
    TooLarge {
        /// Size of the value in bytes.
        bytes: usize,
        /// The bound that it exceeds.
        limit: usize,
    },
    /// Not JSON, or JSON of other types than the record's fields have.
    #[error("not a valid JSON record: {why}")]
    Json {
        /// serde's account of it, with line and column.
        why: String,
    },
    /// Written by a version of weft that this one does not know.
    #[error("the record has version {found}; this weft knows versions up to {known} and leaves it alone")]
    Version {
        /// The version found in the record.
        found: u64,
        /// The newest version this code knows.
        known: u64,
    },
    /// A field has a value that is not allowed.
    #[error("{field}: {why}")]
    Field {
        /// Path of the field, as in `subnets[0].gateway`.
        field: String,
        /// What is wrong and what would be right.
        why: String,
    },
}

impl RecordError {
    /// An error about one field.
    #[expect(clippy::needless_pass_by_value, reason = "texts and errors made on the spot")]
    pub fn field(field: impl Into<String>, why: impl ToString) -> Self {
        Self::Field {
            field: field.into(),
            why: why.to_string(),
        }
    }

    /// The path of the field at fault, if one field is.
    pub fn field_path(&self) -> Option<&str> {
        match self {
            Self::Version { .. } => Some("version"),
            Self::Field { field, .. } => Some(field),
            Self::TooLarge { .. } | Self::Json { .. } => None,
        }
    }

    /// What is wrong, without the field's path.
    pub fn why(&self) -> String {
        match self {
            Self::Field { why, .. } => why.clone(),
            other => other.to_string(),
        }
    }
}
