//! For tests of what work costs when there is more of everything. In processor time, so that what else the machine does
//! is not in it.

use std::{fs, time::Duration};

/// Few and many of what a test makes more of.
pub(crate) const FEW_AND_MANY: [usize; 2] = [500, 4000];

/// The processor time that something takes.
pub(crate) fn time_of<T>(work: impl FnOnce() -> T) -> Duration {
    let begun = processor_time();
    std::hint::black_box(work());
    processor_time() - begun
}

/// Whether many cost as much as so many few do, give or take what larger trees and colder caches cost; not as much as
/// each of many times each.
pub(crate) fn is_linear(of_few: Duration, of_many: Duration) -> bool {
    let [few, many] = FEW_AND_MANY;
    let times = u32::try_from(many / few).unwrap();
    of_many < (of_few + Duration::from_millis(4)) * times * 3
}

/// Of this thread, since it began; exact to a tick of the kernel's clock.
fn processor_time() -> Duration {
    let told = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let first = told.split_whitespace().next().unwrap();
    Duration::from_nanos(first.parse().unwrap())
}
