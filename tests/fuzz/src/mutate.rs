//! Bytes made from other bytes by a seeded chance.

use fastrand::Rng;

/// No input gets longer.
const LONGEST: usize = 4096;

/// Numbers at which readers of numbers go wrong.
const EDGES: [u64; 12] = [
    0,
    1,
    3,
    4,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    u64::MAX,
];

/// Changes an input a little, once or a few times. `other` is another input to take parts from.
pub(crate) fn mutate(rng: &mut Rng, input: &mut Vec<u8>, other: &[u8], words: &[&[u8]]) {
    for _ in 0..1 + rng.usize(..5) {
        once(rng, input, other, words);
    }
    input.truncate(LONGEST);
}

fn once(rng: &mut Rng, input: &mut Vec<u8>, other: &[u8], words: &[&[u8]]) {
    let at = rng.usize(..=input.len());
    match rng.u8(..10) {
        0 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << rng.u8(..8);
            }
        }
        1 => {
            if let Some(byte) = input.get_mut(at) {
                *byte = rng.u8(..);
            }
        }
        2 => drop(input.splice(at..at, [rng.u8(..)])),
        3 => {
            let span = span(rng, input.len());
            input.drain(span);
        }
        4 => {
            // A part once more, elsewhere.
            let part = input[span(rng, input.len())].to_vec();
            input.splice(at..at, part);
        }
        5 => {
            let part = other[span(rng, other.len())].to_vec();
            input.splice(at..at, part);
        }
        6 => {
            input.truncate(at);
            let from = rng.usize(..=other.len());
            input.extend_from_slice(&other[from..]);
        }
        7 => {
            let number = EDGES[rng.usize(..EDGES.len())].to_le_bytes();
            let width = [1, 2, 4, 8][rng.usize(..4)];
            let end = (at + width).min(input.len());
            input.splice(at..end, number[..width].iter().copied());
        }
        8 if !words.is_empty() => {
            let word = words[rng.usize(..words.len())];
            let end = if rng.bool() {
                at
            } else {
                (at + word.len()).min(input.len())
            };
            input.splice(at..end, word.iter().copied());
        }
        _ => {
            // A number in text.
            let digits: Vec<usize> = (0..input.len()).filter(|i| input[*i].is_ascii_digit()).collect();
            if let Some(at) = rng.choice(digits) {
                let number = EDGES[rng.usize(..EDGES.len())].to_string();
                input.splice(at..=at, number.into_bytes());
            }
        }
    }
}

/// A part of something this long, mostly short.
fn span(rng: &mut Rng, length: usize) -> std::ops::Range<usize> {
    let from = rng.usize(..=length);
    let most = if rng.bool() { 16 } else { length };
    from..(from + rng.usize(..=most)).min(length)
}
