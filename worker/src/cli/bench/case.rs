//! What is measured: `16x128` is 16 texts of 128 tokens, `mixed:2048:32..512` texts of 32 to 512 tokens, 2,048 together,
//! `1x4096+140x200` a long text and many short ones, and `shared:16x100+28` 16 texts of 128 tokens, the first 100 of which they
//! have in common.

use std::str::FromStr;

/// Most tokens of a case: what fits into the memory of the largest machines.
const TOKENS_MAX: usize = 1 << 22;

/// The golden ratio's fraction: its multiples, modulo 1, spread evenly at every count, the same on every machine.
const GOLDEN: f64 = 0.618_033_988_749_895;

/// One batch to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Case {
    /// As it was given.
    pub(super) name: String,
    /// Tokens of each text.
    pub(super) lengths: Vec<usize>,
    /// Tokens that all texts begin with.
    pub(super) shared: usize,
}

impl Case {
    /// Tokens of all texts together.
    pub(super) fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let equal = |equal: &str| -> Option<Vec<usize>> {
            let (texts, tokens) = equal.split_once('x')?;
            let (texts, tokens) =
                (number(texts)?, tokens.split('+').try_fold(0, |sum: usize, part| sum.checked_add(number(part)?))?);
            (texts.checked_mul(tokens)? <= TOKENS_MAX).then(|| vec![tokens; texts])
        };
        let shared = match name.strip_prefix("shared:") {
            None => Some(0),
            Some(shared) => shared.split_once('x').and_then(|(_, tokens)| number(tokens.split_once('+')?.0)),
        };
        let lengths = match (name.strip_prefix("mixed:"), name.strip_prefix("shared:")) {
            (Some(mixed), _) => mixed.split_once(':').and_then(|(total, range)| {
                let (least, most) = range.split_once("..")?;
                mixed_lengths(number(total)?, number(least)?, number(most)?)
            }),
            (None, Some(shared)) => equal(shared),
            (None, None) => name.split('+').map(equal).collect::<Option<Vec<_>>>().map(|parts| parts.concat()),
        };
        let (Some(lengths), Some(shared)) = (lengths, shared) else {
            return Err(format!(
                "write TEXTSxTOKENS, several of them with a +, mixed:TOTAL:LEAST..MOST or shared:TEXTSxSHARED+OWN, for example \
                 16x128, 1x512+9x30, mixed:2048:32..512 or shared:16x100+28, of at most {TOKENS_MAX} tokens"
            ));
        };
        Ok(Self { name: name.to_owned(), lengths, shared })
    }
}

fn number(digits: &str) -> Option<usize> {
    digits.parse().ok().filter(|&number| number > 0)
}

/// Lengths from `least` to `most`, evenly spread and in no order. The last text takes what is left, even if it is less.
fn mixed_lengths(total: usize, least: usize, most: usize) -> Option<Vec<usize>> {
    if least > most || total > TOKENS_MAX {
        return None;
    }
    let drawn = (1u32..).map(|i| least + ((f64::from(i) * GOLDEN).fract() * (most - least + 1) as f64) as usize);
    let mut left = total;
    let lengths = drawn.map_while(|length| {
        let length = length.min(left);
        left -= length;
        (length > 0).then_some(length)
    });
    Some(lengths.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_and_mixed_lengths() {
        let case: Case = "16x128".parse().expect("a case");
        assert_eq!(case.lengths, vec![128; 16]);
        let case: Case = "1x50+2x3".parse().expect("a case");
        assert_eq!(case.lengths, [50, 3, 3]);
        let case: Case = "shared:4x100+28".parse().expect("a case");
        assert_eq!((case.lengths, case.shared), (vec![128; 4], 100));
        let case: Case = "mixed:2048:32..512".parse().expect("a case");
        assert_eq!(case.tokens(), 2048);
        let (last, others) = case.lengths.split_last().expect("texts");
        assert!(others.iter().all(|length| (32..=512).contains(length)) && *last <= 512, "{:?}", case.lengths);
        assert!(others.iter().any(|&length| length < 150) && others.iter().any(|&length| length > 350));
    }

    #[test]
    fn what_is_no_case() {
        for wrong in [
            "",
            "x",
            "16",
            "16x",
            "0x5",
            "5x0",
            "mixed:5",
            "mixed:5:9..2",
            "99999999x99999999",
            "mixed:0:1..2",
            "4x5+6",
            "shared:4x5",
            "shared:4x0+5",
        ] {
            assert!(wrong.parse::<Case>().is_err(), "{wrong}");
        }
    }
}
