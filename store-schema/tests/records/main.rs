//! The records from outside: files of sound and bad ones, schemas, the reference, and properties over all
//! that could be written.

#[cfg(test)]
mod bad_records;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod kinds;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod schemas;
