//! What changed in a page: patches of bytes, each behind a gap of bytes that did not change.
//!
//! A delta is a list of patches `{gap, length, bytes}` in the order of the page. Gap and length are numbers of
//! one or two bytes: seven bits each, lowest first, the eighth set if another follows. A page that did not
//! change has an empty delta.

use thiserror::Error;

use super::PAGE;

/// The longest delta that is sent. What has changed more goes whole: then it may compress, and costs the
/// destination less.
pub const MAX_DELTA: usize = PAGE / 2;

/// Patches nearer to each other than this are sent as one: a patch costs two bytes itself.
const JOIN: usize = 3;

/// Bytes that are not a delta, or not one of the page at hand.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DeltaError {
    /// It ends within a patch.
    #[error("the delta ends within a patch")]
    Short,
    /// A number of more than two bytes.
    #[error("a number in the delta has more than two bytes")]
    Number,
    /// A patch of no bytes.
    #[error("a patch of no bytes")]
    Empty,
    /// A patch that does not end within the page.
    #[error("a patch ends at byte {0}, beyond the page")]
    Outside(usize),
}

/// Appends the delta from `old` to `new` and says whether it did: not if it is longer than [`MAX_DELTA`].
pub fn encode(old: &[u8; PAGE], new: &[u8; PAGE], into: &mut Vec<u8>) -> bool {
    let began = into.len();
    let mut at = 0;
    while let Some(start) = difference(old, new, at) {
        let mut end = start + 1;
        while let Some(next) = difference(old, new, end).filter(|next| next - end < JOIN) {
            end = next + 1;
        }
        put(start - at, into);
        put(end - start, into);
        if into.len() - began + end - start > MAX_DELTA {
            into.truncate(began);
            return false;
        }
        into.extend_from_slice(&new[start..end]);
        at = end;
    }
    true
}

/// Where `old` and `new` differ next, from byte `from` on.
fn difference(old: &[u8; PAGE], new: &[u8; PAGE], from: usize) -> Option<usize> {
    const LINE: usize = 64;
    let (mut at, mut old, mut new) = (from, &old[from..], &new[from..]);
    // Whole lines first: most of a page has not changed.
    while let (Some((a, old_rest)), Some((b, new_rest))) = (
        old.split_first_chunk::<LINE>(),
        new.split_first_chunk::<LINE>(),
    ) {
        if a != b {
            break;
        }
        (at, old, new) = (at + LINE, old_rest, new_rest);
    }
    let within = old.iter().zip(new).position(|(a, b)| a != b)?;
    Some(at + within)
}

fn put(number: usize, into: &mut Vec<u8>) {
    // At most 4096, so two bytes of seven bits do; each part is masked to seven bits.
    let [low, high] = [number & 0x7f, number >> 7 & 0x7f].map(|bits| bits.to_le_bytes()[0]);
    if high == 0 {
        into.push(low);
    } else {
        into.extend_from_slice(&[low | 0x80, high]);
    }
}

/// Changes `page` as the delta says.
///
/// # Errors
/// It is not a delta; `page` may be changed in part.
pub fn apply(delta: &[u8], page: &mut [u8; PAGE]) -> Result<(), DeltaError> {
    let (mut rest, mut at) = (delta, 0);
    while !rest.is_empty() {
        let (gap, behind_gap) = take(rest)?;
        let (len, behind_len) = take(behind_gap)?;
        if len == 0 {
            return Err(DeltaError::Empty);
        }
        // Numbers of 14 bits: no sum overflows.
        let (start, end) = (at + gap, at + gap + len);
        let place = page.get_mut(start..end).ok_or(DeltaError::Outside(end))?;
        let (bytes, behind) = behind_len.split_at_checked(len).ok_or(DeltaError::Short)?;
        place.copy_from_slice(bytes);
        (rest, at) = (behind, end);
    }
    Ok(())
}

fn take(from: &[u8]) -> Result<(usize, &[u8]), DeltaError> {
    match from {
        [low, rest @ ..] if low & 0x80 == 0 => Ok((usize::from(*low), rest)),
        [low, high, rest @ ..] if high & 0x80 == 0 => {
            Ok((usize::from(low & 0x7f) | usize::from(*high) << 7, rest))
        }
        [_, _, ..] => Err(DeltaError::Number),
        _ => Err(DeltaError::Short),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn delta(old: &[u8; PAGE], new: &[u8; PAGE]) -> Option<Vec<u8>> {
        let mut bytes = vec![0xee];
        encode(old, new, &mut bytes).then(|| bytes.split_off(1))
    }

    #[test]
    fn the_bytes_are_those_of_the_description() {
        let old = [0; PAGE];
        let mut new = old;
        assert_eq!(delta(&old, &new).unwrap(), []);
        new[0] = 1;
        assert_eq!(delta(&old, &new).unwrap(), [0, 1, 1]);
        // Two bytes apart they are one patch, three apart two; a gap of 3999 is 0x1f << 7 | 0x1f.
        new[3] = 2;
        new[4003] = 3;
        assert_eq!(
            delta(&old, &new).unwrap(),
            [0, 4, 1, 0, 0, 2, 0x80 | 0x1f, 0x1f, 1, 3]
        );
        new[3] = 0;
        new[4] = 4;
        new[4003] = 0;
        assert_eq!(delta(&old, &new).unwrap(), [0, 1, 1, 3, 1, 4]);
    }

    #[test]
    fn a_page_that_changed_too_much_has_none_and_leaves_nothing() {
        let (old, new) = ([0; PAGE], [7; PAGE]);
        let mut bytes = vec![1, 2];
        assert!(!encode(&old, &new, &mut bytes));
        assert_eq!(bytes, [1, 2]);
        let mut half = old;
        half[..MAX_DELTA - 3].fill(1);
        assert_eq!(delta(&old, &half).unwrap().len(), MAX_DELTA);
        half[..MAX_DELTA - 2].fill(1);
        assert_eq!(delta(&old, &half), None);
    }

    #[test]
    fn what_is_no_delta_is_refused() {
        for (bytes, error) in [
            (&[0u8][..], DeltaError::Short),
            (&[0x80], DeltaError::Short),
            (&[0, 2, 1], DeltaError::Short),
            (&[0x80, 0x80, 1], DeltaError::Number),
            (&[5, 0], DeltaError::Empty),
            // A gap of 4096 and one byte; 4095 and two.
            (&[0x80, 0x20, 1, 9], DeltaError::Outside(4097)),
            (&[0xff, 0x1f, 2, 9, 9], DeltaError::Outside(4097)),
            (&[0xff, 0x7f, 0xff, 0x7f], DeltaError::Outside(32766)),
            // The second of two begins where the page ends.
            (&[0xff, 0x1f, 1, 9, 0, 1, 9], DeltaError::Outside(4097)),
        ] {
            assert_eq!(apply(bytes, &mut [0; PAGE]), Err(error), "{bytes:?}");
        }
        let mut page = [0; PAGE];
        apply(&[0xff, 0x1f, 1, 9], &mut page).unwrap();
        assert_eq!(page[PAGE - 1], 9);
    }

    fn page() -> impl Strategy<Value = Box<[u8; PAGE]>> {
        vec(any::<u8>(), PAGE).prop_map(|bytes| Box::new(bytes.try_into().unwrap()))
    }

    proptest! {
        #[test]
        fn what_changed_is_what_is_changed(
            old in page(),
            changes in vec((0..PAGE, any::<u8>()), 0..200),
        ) {
            let mut new = old.clone();
            for (at, byte) in changes {
                new[at] = byte;
            }
            let mut bytes = Vec::new();
            if encode(&old, &new, &mut bytes) {
                prop_assert!(bytes.len() <= MAX_DELTA);
                let mut page = old;
                apply(&bytes, &mut page).unwrap();
                prop_assert!(page == new);
            }
        }

        #[test]
        fn random_bytes_stay_within_the_page(bytes in vec(any::<u8>(), 0..300)) {
            let _ = apply(&bytes, &mut [0; PAGE]);
        }
    }
}
