//! The pure core from outside: records go into a model of etcd, plans into a model of the kernel, and what
//! comes of it is compared with what should.
//!
//! `store` and `kernel` are the models, `agent` ties one host's core between them, `naive` says once more,
//! without any index or increment, what a host should hold. `cases` are stories in files; `convergence`,
//! `audit`, `bytes`, `claims` and `removal` are properties, `choices` and `detaching` are examples; `partial` is about a view that is
//! not whole yet.

#[cfg(test)]
mod agent;
#[cfg(test)]
mod audit;
#[cfg(test)]
mod bytes;
#[cfg(test)]
mod cases;
#[cfg(test)]
mod choices;
#[cfg(test)]
mod claims;
#[cfg(test)]
mod convergence;
#[cfg(test)]
mod damage;
#[cfg(test)]
mod detaching;
#[cfg(test)]
mod kernel;
#[cfg(test)]
mod naive;
#[cfg(test)]
mod partial;
#[cfg(test)]
mod records;
#[cfg(test)]
mod removal;
#[cfg(test)]
mod show;
#[cfg(test)]
mod store;
