//! The kernel's tables of neighbours: one for each family, for all namespaces of a machine together. Whoever fills one,
//! everybody's packets to who is not in it any more are lost, so a test that loses some can say whose fault it was not.

use std::fs;

/// A count of what was refused, to compare with.
#[derive(Debug, Clone, Copy)]
pub struct NeighbourTables {
    refused: u64,
}

impl NeighbourTables {
    /// As they are now.
    #[must_use]
    pub fn now() -> Self {
        // A kernel without these files has no IPv6, or tells nothing.
        let read = |name| fs::read_to_string(format!("/proc/net/stat/{name}")).unwrap_or_default();
        Self {
            refused: ["arp_cache", "ndisc_cache"]
                .map(|name| refused(&read(name)))
                .iter()
                .sum(),
        }
    }

    /// What to say of packets lost since: that a table was full, if one was.
    #[must_use]
    pub fn excuse(&self) -> Option<String> {
        let refused = Self::now().refused.saturating_sub(self.refused);
        (refused > 0).then(|| {
            format!(
                "the kernel refused {refused} neighbour entries meanwhile, for all namespaces of this machine share its tables: \
                 try again with less going on beside, or with larger net.ipv4.neigh.default.gc_thresh3 and \
                 net.ipv6.neigh.default.gc_thresh3"
            )
        })
    }
}

/// The sum of `table_fulls` over all processors (`neigh_stat_seq_show`, net/core/neighbour.c): hexadecimal, by column.
fn refused(statistics: &str) -> u64 {
    let mut lines = statistics.lines();
    let header = lines.next().unwrap_or_default();
    let Some(column) = header.split_whitespace().position(|name| name == "table_fulls") else {
        return 0;
    };
    let of_processor = |line: &str| u64::from_str_radix(line.split_whitespace().nth(column)?, 16).ok();
    lines.filter_map(of_processor).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_all_processors_are_counted() {
        let text = "entries  allocs   forced_gc_runs unresolved_discards table_fulls\n\
                    00000006 000922f4 00000851       00000093            0000055c\n\
                    00000006 00092582 0000087d       00000227            00000570\n";
        assert_eq!(refused(text), 0x55c + 0x570);
        assert_eq!(refused(""), 0);
    }

    #[test]
    fn this_kernel_tells() {
        let text = fs::read_to_string("/proc/net/stat/arp_cache").unwrap();
        assert!(text.contains("table_fulls"), "{text}");
    }
}
