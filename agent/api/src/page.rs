//! Cuts lists into pages that fit a message.
//!
//! In: whole lists in any order and the client's page size and token. Out: the page and the next token, which
//! is the last entry's key: entries that come and go meanwhile neither repeat nor hide others.

use prost::Message;

use crate::ApiError;

/// Most entries of a page, and how many it has if the client does not say.
const MOST_ENTRIES: usize = 1000;

/// A page is closed when its entries reach this many bytes, well under the 4 MiB that clients take by
/// default.
const ENOUGH_BYTES: usize = 1 << 20;

/// The page of `items` after `token`, ordered by `key`, and the token of the next page (empty at the end).
///
/// The parts of a key hold no '/'. Errors: `InvalidArgument` for a page size over 1000 or a token that none
/// of these was.
pub(crate) fn page<T: Message, const N: usize>(
    items: Vec<T>,
    key: impl for<'a> Fn(&'a T) -> [&'a str; N],
    size: u32,
    token: &str,
) -> Result<(Vec<T>, String), ApiError> {
    page_by(items, |item| key(item).map(str::to_owned), size, token)
}

/// The same for keys that are not in the items as they are.
pub(crate) fn page_by<T: Message, const N: usize>(
    mut items: Vec<T>,
    key: impl Fn(&T) -> [String; N],
    size: u32,
    token: &str,
) -> Result<(Vec<T>, String), ApiError> {
    let size = match usize::try_from(size).unwrap_or(usize::MAX) {
        0 => MOST_ENTRIES,
        size if size <= MOST_ENTRIES => size,
        size => {
            return Err(ApiError::invalid(
                "page_size",
                format!("is {size}; at most {MOST_ENTRIES} are given"),
            ));
        }
    };
    items.sort_by_cached_key(&key);
    if !token.is_empty() {
        let last: Vec<String> = token.split('/').map(str::to_owned).collect();
        let Ok(last) = <[String; N]>::try_from(last) else {
            return Err(ApiError::invalid("page_token", "is none that the agent gave out"));
        };
        items.drain(..items.partition_point(|item| key(item) <= last));
    }
    let mut bytes = 0;
    let fitting = items
        .iter()
        .take_while(|item| {
            let fits = bytes < ENOUGH_BYTES;
            bytes += item.encoded_len();
            fits
        })
        .count();
    let taken = fitting.min(size);
    let more = taken < items.len();
    items.truncate(taken);
    let next = match items.last() {
        Some(last) if more => key(last).join("/"),
        _ => String::new(),
    };
    Ok((items, next))
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_proto::v1::Endpoint;

    fn endpoint(network: &str, id: &str) -> Endpoint {
        Endpoint {
            network: network.to_owned(),
            id: id.to_owned(),
            ..Endpoint::default()
        }
    }

    fn key(endpoint: &Endpoint) -> [&str; 3] {
        [&endpoint.network, &endpoint.node, &endpoint.id]
    }

    #[test]
    fn pages_join_to_the_ordered_list() {
        // "a-b" sorts before "a/" as text, after "a" as a name.
        let all = || {
            vec![
                endpoint("a-b", "1"),
                endpoint("a", "2"),
                endpoint("c", "1"),
                endpoint("a", "1"),
            ]
        };
        let (mut token, mut seen) = (String::new(), Vec::new());
        loop {
            let (items, next) = page(all(), key, 1, &token).expect("a page");
            seen.extend(
                items
                    .into_iter()
                    .map(|item| format!("{}/{}", item.network, item.id)),
            );
            if next.is_empty() {
                break;
            }
            token = next;
        }
        assert_eq!(seen, ["a/1", "a/2", "a-b/1", "c/1"]);
    }

    #[test]
    fn big_entries_close_a_page_and_one_always_fits() {
        let big = |id: &str| Endpoint {
            message: "x".repeat(ENOUGH_BYTES),
            ..endpoint("a", id)
        };
        let (items, next) = page(vec![big("1"), big("2")], key, 0, "").expect("a page");
        assert_eq!((items.len(), next.as_str()), (1, "a//1"));
    }

    #[test]
    fn bad_sizes_and_tokens_are_named() {
        let field = |size, token| match page(vec![endpoint("a", "1")], key, size, token) {
            Err(ApiError::InvalidArgument { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(field(1001, ""), "page_size");
        assert_eq!(field(0, "a"), "page_token");
    }
}
