//! Where the texts of a batch lie in one packed matrix. Nothing is padded, and what several texts begin with (above all an
//! instruction) lies there once: in a causal model the rows of a prefix do not depend on what follows it.

use std::cmp::Reverse;
use std::ops::Range;

/// The fewest tokens worth sharing: what is shared is a span of its own, whose keys are copied for each text.
const SHARED_MIN: usize = 8;

/// When rows of a beginning are shared on a GPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Sharing {
    /// Where it saves enough of a batch's rows.
    #[default]
    Worth,
    /// Wherever it saves any.
    Always,
    /// Nowhere.
    Never,
}

/// The part of a batch's rows that sharing has to save on a GPU, one in so many: keys and values of all rows are copied for
/// it in each layer, which takes an H100 1 % of its time, and texts no longer lie by their lengths.
const SAVED_MIN: usize = 16;

/// Queries of a block of attention on a GPU. Each span is given as many blocks as the longest.
#[cfg(any(feature = "cuda", test))]
const QUERY_BLOCK: usize = 128;

/// Blocks that have nothing to do, for each head, from which on attention is cut in two. On an H100, FlashAttention 3 takes
/// 0.5 ms longer for 4,200 of them with 32 heads, the copy of 32,000 rows that cutting costs already taken off; that copy
/// is worth some 1,200 of them.
#[cfg(any(feature = "cuda", test))]
const SAVED_BLOCKS_MIN: usize = 2000;

/// A batch, one row a token.
#[derive(Debug, Default)]
pub(super) struct Packed {
    /// Token ids, one a row.
    pub(super) ids: Vec<u32>,
    /// Positions in the text, one a row.
    pub(super) positions: Vec<u32>,
    /// Rows that attend to each other. They cover all rows in order and without gaps.
    pub(super) spans: Vec<Span>,
    /// For each text, in the order given, its span. A text's last token is its span's last row.
    pub(super) pooled: Vec<usize>,
}

/// Consecutive rows of one text, and the rows of a prefix that come before them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    /// Rows of the prefix that the text shares with others; empty if none.
    pub(super) shared: Range<usize>,
    /// The text's own rows.
    pub(super) own: Range<usize>,
}

/// See [`Packed::rows_before`].
#[cfg(any(feature = "cuda", test))]
pub(super) struct RowsBefore {
    pub(super) own: Vec<u32>,
    pub(super) keys: Vec<u32>,
    pub(super) pooled: Vec<u32>,
}

impl Span {
    /// Tokens that the last row sees: shared and own.
    pub(super) fn keys(&self) -> usize {
        self.shared.len() + self.own.len()
    }

    /// The row of the token at a position.
    pub(super) fn row(&self, position: usize) -> usize {
        match position.checked_sub(self.shared.len()) {
            None => self.shared.start + position,
            Some(own) => self.own.start + own,
        }
    }
}

impl Packed {
    /// Packs `texts`, none of which is empty. What several begin with is shared as `sharing` says.
    pub(super) fn with(texts: &[&[u32]], sharing: Sharing) -> Self {
        let packed = match sharing {
            Sharing::Never => None,
            Sharing::Always | Sharing::Worth => Some(Self::new(texts)),
        };
        let tokens: usize = texts.iter().map(|text| text.len()).sum();
        let worth =
            |packed: &Self| sharing == Sharing::Always || tokens - packed.ids.len() >= tokens.div_ceil(SAVED_MIN);
        packed.filter(worth).unwrap_or_else(|| Self::apart(texts))
    }

    /// Packs each text whole, the longest first.
    fn apart(texts: &[&[u32]]) -> Self {
        let mut packed = Self { pooled: vec![0; texts.len()], ..Self::default() };
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&text| Reverse(texts[text].len()));
        for text in order {
            packed.pooled[text] = packed.spans.len();
            packed.push(texts[text], 0..0);
        }
        packed
    }

    /// Where attention on a GPU is cut in two: how many of the first spans are so long that the others would be given many
    /// blocks of queries that have nothing to do. `None` where that is not worth a copy of attention's output, and where
    /// spans do not lie by their lengths.
    #[cfg(any(feature = "cuda", test))]
    pub(super) fn long_spans(&self) -> Option<usize> {
        let blocks: Vec<usize> = self.spans.iter().map(|span| span.own.len().div_ceil(QUERY_BLOCK)).collect();
        let plain = self.spans.iter().all(|span| span.shared.is_empty());
        let (Some(&most), true) = (blocks.first(), plain && blocks.is_sorted_by(|left, right| left >= right)) else {
            return None;
        };
        // Blocks that are not launched for the spans from a place on.
        let saved = |place: usize| (most - blocks[place]) * (blocks.len() - place);
        let cut = (1..blocks.len()).max_by_key(|&place| saved(place))?;
        (saved(cut) >= SAVED_BLOCKS_MIN).then_some(cut)
    }

    /// Packs `texts`, none of which is empty. What several begin with lies there once wherever that saves rows.
    pub(super) fn new(texts: &[&[u32]]) -> Self {
        let mut packed = Self { pooled: vec![0; texts.len()], ..Self::default() };
        // Texts that begin alike become neighbours.
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&text| (texts[text], text));
        let mut rest = order.as_slice();
        while !rest.is_empty() {
            let (members, shared) = family(texts, rest);
            let (family, after) = rest.split_at(members);
            rest = after;
            let shared = packed.push(&texts[family[0]][..shared], 0..0);
            for &text in family {
                packed.push(&texts[text][shared.len()..], shared.clone());
                packed.pooled[text] = packed.spans.len() - 1;
            }
        }
        packed
    }

    /// How many rows lie before each span, and in the end how many there are, `[spans + 1]`: of the spans' own rows, of
    /// the keys that they see, and of their pooled rows.
    #[cfg(any(feature = "cuda", test))]
    pub(super) fn rows_before(&self) -> RowsBefore {
        let mut pooled = vec![0; self.spans.len()];
        self.pooled.iter().for_each(|&span| pooled[span] += 1);
        let before = |lengths: Vec<usize>| {
            let sums = lengths.iter().scan(0, |sum, length| {
                *sum += length;
                Some(*sum as u32)
            });
            std::iter::once(0).chain(sums).collect()
        };
        RowsBefore {
            own: before(self.spans.iter().map(|span| span.own.len()).collect()),
            keys: before(self.spans.iter().map(Span::keys).collect()),
            pooled: before(pooled),
        }
    }

    /// Adds the rows of a span, if any, and gives them.
    fn push(&mut self, tokens: &[u32], shared: Range<usize>) -> Range<usize> {
        let own = self.ids.len()..self.ids.len() + tokens.len();
        if !tokens.is_empty() {
            self.ids.extend_from_slice(tokens);
            self.positions.extend((shared.len() as u32..).take(tokens.len()));
            self.spans.push(Span { shared, own: own.clone() });
        }
        own
    }
}

/// How many of the sorted texts form a family with the first, and how many first tokens they share. A text joins as long
/// as that saves rows; the last token is never shared, so that every text has a row of its own.
fn family(texts: &[&[u32]], sorted: &[usize]) -> (usize, usize) {
    let first = texts[sorted[0]];
    let (mut members, mut shared) = (1, first.len() - 1);
    for &next in &sorted[1..] {
        let next = texts[next];
        let alike = first.iter().zip(next).take(shared.min(next.len() - 1)).take_while(|(a, b)| a == b).count();
        let saved = |members: usize, shared: usize| Reverse((members - 1) * shared);
        if alike < SHARED_MIN || saved(members + 1, alike) > saved(members, shared) {
            break;
        }
        (members, shared) = (members + 1, alike);
    }
    if members == 1 { (1, 0) } else { (members, shared) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packed(texts: &[Vec<u32>]) -> Packed {
        Packed::new(&texts.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }

    #[test]
    fn a_common_instruction_lies_there_once() {
        let query = |own: &[u32]| (100..120).chain(own.iter().copied()).collect::<Vec<u32>>();
        let packed = packed(&[query(&[1, 2, 0]), vec![7, 8, 0], query(&[3, 0]), query(&[1, 0])]);
        assert_eq!(packed.ids.len(), 20 + 3 + 3 + 2 + 2);
        assert_eq!(packed.spans.iter().filter(|span| !span.shared.is_empty()).count(), 3);
    }

    #[test]
    fn a_short_likeness_is_not_worth_a_span() {
        let packed = packed(&[vec![1, 2, 3, 4, 0], vec![1, 2, 3, 5, 0]]);
        assert_eq!(packed.spans.len(), 2);
        assert_eq!(packed.ids.len(), 10);
    }

    #[test]
    fn a_distant_relative_does_not_split_a_family() {
        let long = |end: u32| (0..100).chain([end]).collect::<Vec<u32>>();
        let far: Vec<u32> = (0..8).chain([500, 501]).collect();
        let packed = packed(&[long(200), long(201), long(202), far]);
        assert_eq!(packed.ids.len(), 100 + 3 + 10);
    }

    #[test]
    fn rows_before_each_span() {
        let query = |own: &[u32]| (100..120).chain(own.iter().copied()).collect::<Vec<u32>>();
        let packed = packed(&[vec![7, 0], query(&[2, 0]), query(&[1, 1, 0])]);
        // The short text, the prefix, which nobody pools, and what is left of two texts.
        let RowsBefore { own, keys, pooled } = packed.rows_before();
        assert_eq!(own, [0, 2, 22, 25, 27]);
        assert_eq!(keys, [0, 2, 22, 45, 67]);
        assert_eq!(pooled, [0, 1, 1, 2, 3]);
    }

    #[test]
    fn equal_texts_share_all_but_the_last_token() {
        let text: Vec<u32> = (0..50).collect();
        assert_eq!(packed(&[text.clone(), text.clone(), text]).ids.len(), 49 + 3);
    }

    #[test]
    fn a_gpu_shares_where_it_is_worth_it() {
        let query = |shared: u32, own: u32| (0..shared).chain([1000 + own, 0]).collect::<Vec<u32>>();
        let rows = |texts: &[Vec<u32>], sharing| {
            Packed::with(&texts.iter().map(Vec::as_slice).collect::<Vec<_>>(), sharing).ids.len()
        };
        // Two of four texts begin alike: 20 rows of 384 are saved, or 100 of 544.
        let other = |first: u32| (0..170).map(|id| first + id).collect::<Vec<u32>>();
        for (shared, saved) in [(20, 0), (100, 100)] {
            let texts = [query(shared, 1), other(2000), query(shared, 2), other(4000)];
            let tokens: usize = texts.iter().map(Vec::len).sum();
            assert_eq!(rows(&texts, Sharing::Worth), tokens - saved);
            assert_eq!(rows(&texts, Sharing::Always), tokens - shared as usize);
            assert_eq!(rows(&texts, Sharing::Never), tokens);
        }
    }

    #[test]
    fn long_texts_are_cut_from_short_ones_where_many_blocks_would_be_idle() {
        let texts = |lengths: &[(usize, usize)]| -> Vec<Vec<u32>> {
            let each = lengths.iter().flat_map(|&(texts, tokens)| vec![tokens; texts]);
            each.enumerate().map(|(text, tokens)| vec![text as u32; tokens]).collect()
        };
        let cut = |texts: &[Vec<u32>], sharing| {
            Packed::with(&texts.iter().map(Vec::as_slice).collect::<Vec<_>>(), sharing).long_spans()
        };
        // 32 blocks for each of 141 texts, of which 140 need two.
        let uneven = texts(&[(100, 200), (1, 4096), (40, 200)]);
        assert_eq!(cut(&uneven, Sharing::Never), Some(1));
        assert_eq!(cut(&uneven, Sharing::Worth), Some(1));
        assert_eq!(cut(&texts(&[(64, 512)]), Sharing::Never), None);
        assert_eq!(cut(&texts(&[(3, 4096), (20, 300)]), Sharing::Never), None, "too few");
        assert_eq!(cut(&texts(&[(1, 32_768)]), Sharing::Never), None);
        let mut shared = uneven.clone();
        shared.iter_mut().for_each(|text| text.splice(0..0, 500..600).for_each(drop));
        assert_eq!(cut(&shared, Sharing::Always), None, "what is shared does not lie by its length");
    }

    proptest! {
        #[test]
        fn every_text_can_be_read_back(
            // Few ids and common beginnings, so that families form.
            texts in prop::collection::vec(
                (0..3usize, 0..40usize, prop::collection::vec(0..3u32, 1..20)).prop_map(|(root, shared, own)| {
                    let mut text: Vec<u32> = (0..shared as u32).map(|token| 10 + token + 100 * root as u32).collect();
                    text.extend(own);
                    text
                }),
                1..20,
            ),
            sharing in prop::sample::select(&[Sharing::Worth, Sharing::Always, Sharing::Never]),
        ) {
            let packed = Packed::with(&texts.iter().map(Vec::as_slice).collect::<Vec<_>>(), sharing);
            for (text, &span) in texts.iter().zip(&packed.pooled) {
                let span = &packed.spans[span];
                let read: Vec<u32> = (0..span.keys()).map(|position| packed.ids[span.row(position)]).collect();
                prop_assert_eq!(&read, text);
                for position in 0..span.keys() {
                    prop_assert_eq!(packed.positions[span.row(position)], position as u32);
                }
            }
            let covered: Vec<usize> = packed.spans.iter().flat_map(|span| span.own.clone()).collect();
            prop_assert_eq!(covered, (0..packed.ids.len()).collect::<Vec<_>>());
            prop_assert!(packed.ids.len() <= texts.iter().map(Vec::len).sum());
        }
    }
}
