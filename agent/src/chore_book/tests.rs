//! When what is owed is due.

use super::*;

#[tokio::test(start_paused = true)]
async fn what_waits_for_the_kernel_is_due_once_it_has_moved() {
    let mut book = ChoreBook::default();
    let chore = Chore::DetachEndpoint(weft_store_schema::EndpointRef {
        network: "blue".parse().unwrap(),
        node: "host1".parse().unwrap(),
        id: "web".parse().unwrap(),
    });
    let now = Instant::now();
    book.add(chore.clone(), 0, now);
    book.withhold(&chore);
    book.add(chore.clone(), 0, now);
    assert!(book.due(now).is_empty() && book.next_due().is_none());
    assert_eq!(book.networks().count(), 1, "its records stay in view");
    assert!(book.release_withheld() && !book.release_withheld());
    assert_eq!(book.due(now), [chore]);
}

#[tokio::test(start_paused = true)]
async fn a_chore_runs_once_at_a_time_and_ever_less_often() {
    let mut book = ChoreBook::default();
    let chore = Chore::CompleteNetwork("blue".parse().unwrap());
    let now = Instant::now();
    book.add(chore.clone(), 0, now);
    assert_eq!(book.due(now), std::slice::from_ref(&chore));
    book.started(&chore);
    book.add(chore.clone(), 0, now);
    assert!(
        book.due(now + Duration::from_secs(60)).is_empty(),
        "it is under way"
    );
    let mut last = now;
    for _ in 0..12 {
        book.failed(&chore, last);
        let due = book.next_due().unwrap();
        assert!(due > last && due <= last + LONGEST_PAUSE);
        last = due;
        book.started(&chore);
    }
    book.done(&chore);
    assert_eq!(book.next_due(), None);
}

#[tokio::test(start_paused = true)]
async fn what_fails_is_not_tried_for_every_change_but_when_the_store_answers_again() {
    let mut book = ChoreBook::default();
    let now = Instant::now();
    for _ in 0..10 {
        book.add(Chore::PublishPeer, 0, now);
        book.started(&Chore::PublishPeer);
        book.failed(&Chore::PublishPeer, now);
    }
    let due = book.next_due().unwrap();
    assert_eq!(due, now + LONGEST_PAUSE);
    book.add(Chore::PublishPeer, 0, now);
    assert_eq!(book.next_due(), Some(due), "something changed, somewhere");
    book.reconnected(now);
    assert_eq!(book.next_due(), Some(now));
    let chore = Chore::CompleteNetwork("blue".parse().unwrap());
    book.add(chore.clone(), 0, now);
    book.started(&chore);
    book.failed(&chore, now);
    book.add(chore.clone(), 0, now);
    assert!(book.due(now).contains(&chore), "its record changed");
}

#[tokio::test(start_paused = true)]
async fn a_later_rank_waits_but_never_for_ever() {
    let mut book = ChoreBook::default();
    let now = Instant::now();
    let chore = Chore::CompleteNetwork("blue".parse().unwrap());
    book.add(chore.clone(), 1000, now);
    assert_eq!(book.next_due(), Some(now + LONGEST_RANK_PAUSE));
    book.add(chore, 0, now);
    assert_eq!(book.next_due(), Some(now), "it has become this node's own");
}

#[tokio::test(start_paused = true)]
async fn what_somebody_undoes_each_time_is_done_ever_less_often() {
    let mut book = ChoreBook::default();
    let mut now = Instant::now();
    let mut pauses = Vec::new();
    for _ in 0..20 {
        book.add(Chore::PublishPeer, 0, now);
        let due = book.next_due().unwrap();
        pauses.push(due - now);
        now = due;
        book.started(&Chore::PublishPeer);
        book.succeeded(&Chore::PublishPeer, now);
    }
    assert_eq!(pauses[0], Duration::ZERO);
    assert!(
        pauses.is_sorted() && pauses[19] >= Duration::from_secs(20),
        "{pauses:?}"
    );
    book.add(Chore::PublishPeer, 0, now + FORGET * 2);
    assert_eq!(
        book.next_due(),
        Some(now + FORGET * 2),
        "a quiet minute is a fresh start"
    );
    book.succeeded(
        &Chore::FreeVni(weft_store_schema::Vni::new(1).unwrap()),
        now + FORGET * 2,
    );
    assert!(
        !book.lately.contains_key(&Chore::PublishPeer),
        "nothing old is kept"
    );
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_is_detached_at_once_however_often_its_id_comes_back() {
    let mut book = ChoreBook::default();
    let (network, now): (NetworkName, _) = ("blue".parse().unwrap(), Instant::now());
    let endpoint = weft_store_schema::EndpointRef {
        network: network.clone(),
        node: "host1".parse().unwrap(),
        id: "web".parse().unwrap(),
    };
    let address: IpAddr = "10.1.0.2".parse().unwrap();
    for _ in 0..20 {
        for chore in [
            Chore::DetachEndpoint(endpoint.clone()),
            Chore::ReleaseAddress(network.clone(), address),
        ] {
            book.add(chore.clone(), 0, now);
            assert_eq!(book.due(now), std::slice::from_ref(&chore));
            book.started(&chore);
            book.succeeded(&chore, now);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_others_have_to_do_first_is_not_pressed_for() {
    let mut book = ChoreBook::default();
    let (chore, now) = (
        Chore::FreeVni(weft_store_schema::Vni::new(1).unwrap()),
        Instant::now(),
    );
    book.add(chore.clone(), 0, now);
    book.started(&chore);
    book.hindered(&chore, now);
    assert_eq!(book.next_due(), Some(now + HINDERED_PAUSE));
    book.add(chore.clone(), 0, now);
    assert_eq!(book.next_due(), Some(now), "it may succeed now");
    for _ in 0..10 {
        book.hindered(&chore, now);
    }
    assert_eq!(book.next_due(), Some(now + LONGEST_HINDERED_PAUSE));
}

#[tokio::test(start_paused = true)]
async fn so_many_are_under_way_and_no_more() {
    let mut book = ChoreBook::default();
    let (address, now): (IpAddr, _) = ("10.1.0.2".parse().unwrap(), Instant::now());
    for n in 0..=MOST_UNDER_WAY {
        let network = format!("n{n}").parse().unwrap();
        book.add(Chore::ReleaseAddress(network, address), 0, now);
    }
    let due = book.due(now);
    assert_eq!(due.len(), MOST_UNDER_WAY);
    for chore in &due {
        book.started(chore);
    }
    assert!(book.due(now).is_empty() && book.next_due().is_none());
    book.succeeded(&due[0], now);
    assert_eq!((book.due(now).len(), book.next_due()), (1, Some(now)));
}

#[tokio::test(start_paused = true)]
async fn what_becomes_owed_anew_while_it_is_under_way_is_done_anew() {
    let mut book = ChoreBook::default();
    let (chore, now) = (Chore::PublishPeer, Instant::now());
    for anew in [true, false] {
        book.add(chore.clone(), 0, now);
        book.started(&chore);
        if anew {
            book.add(chore.clone(), 0, now);
        }
        book.succeeded(&chore, now);
        assert_eq!(!book.due(now).is_empty(), anew);
    }
}

#[test]
fn addresses_under_way_are_counted() {
    let mut book = ChoreBook::default();
    let network: NetworkName = "blue".parse().unwrap();
    let address: IpAddr = "10.1.0.2".parse().unwrap();
    let transaction = Transaction {
        guards: vec![],
        writes: vec![Write::Put(Key::Address(network.clone(), address), vec![])],
    };
    book.begin_claims(&transaction);
    book.begin_claims(&transaction);
    book.end_claims(&transaction);
    assert_eq!(book.claiming(&network), BTreeSet::from([address]));
    book.end_claims(&transaction);
    assert!(book.claiming(&network).is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_due_longest_does_not_come_before_what_matters_more() {
    let mut book = ChoreBook::default();
    let (network, now): (NetworkName, _) = ("blue".parse().unwrap(), Instant::now());
    for n in 0..2 * MOST_UNDER_WAY {
        let address = IpAddr::from([10, 1, 0, u8::try_from(n).unwrap()]);
        book.add(Chore::ReleaseAddress(network.clone(), address), 0, now);
    }
    assert_eq!(book.releases(&network).count(), 2 * MOST_UNDER_WAY);
    assert_eq!(book.releases(&"red".parse().unwrap()).count(), 0);
    assert_eq!(book.due(now).len(), MOST_UNDER_WAY);
    let later = now + Duration::from_secs(1);
    book.add(Chore::PublishPeer, 0, later);
    assert_eq!(book.due(later).first(), Some(&Chore::PublishPeer));
    book.done(&Chore::PublishPeer);
    assert_eq!(book.next_due(), Some(now));
}

#[tokio::test(start_paused = true)]
async fn what_is_owed_of_a_network_is_known_until_the_last_of_it() {
    let (network, now): (NetworkName, _) = ("blue".parse().unwrap(), Instant::now());
    let endpoint = |n: usize| weft_store_schema::EndpointRef {
        network: network.clone(),
        node: "host1".parse().unwrap(),
        id: format!("e{n}").parse().unwrap(),
    };
    let mut book = ChoreBook::default();
    for n in 0..100 {
        book.add(Chore::CompleteEndpoint(endpoint(n)), 0, now);
    }
    let mut done = 0;
    while let Some(chore) = book.due(now).first() {
        book.started(chore);
        book.succeeded(chore, now);
        // As the loop does after each.
        assert_eq!(book.releases(&network).count(), 0);
        assert!(book.networks().all(|n| *n == network) && !book.release_withheld());
        assert_eq!(book.next_due().is_some(), book.owed() > 0);
        done += 1;
    }
    assert_eq!(done, 100);
}
