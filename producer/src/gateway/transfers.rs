//! Paying for a place that takes longer than a request: uploads, downloads, watches are shared out by tenant, and who does not take
//! what it downloads has its place taken away. Who does not send what it uploads is the edge's to cut off.

use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};

use crate::shares::Share;

/// Bytes a second that a caller must take, over the time that it is waited for: as many as the edge asks of uploads, and more than
/// it asks of answers, which hold no place. A modem of the year 2000 is slower; nobody who has a gigabyte to download is.
const RATE_MIN: u64 = 16 << 10;
/// Time before that is asked for: a connection that stands still for a moment is not given up.
const GRACE: Duration = Duration::from_secs(30);

/// How long a caller has been waited for, and what came of it.
#[derive(Debug, Default)]
struct Pace {
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// `bytes` more after another wait; gives whether the place is still paid for.
    fn goes_on(&mut self, waited: Duration, bytes: usize) -> bool {
        self.waited += waited;
        self.bytes += bytes as u64;
        let owed_s = self.waited.saturating_sub(GRACE).as_secs();
        self.bytes >= owed_s * RATE_MIN
    }
}

/// A body that holds its place until its end, and ends before it where the caller takes it too slowly. One that is not taken at
/// all is not asked for here, and cut off by the connection's own limit.
pub(super) fn paid<E>(pieces: impl Stream<Item = Result<Bytes, E>> + Send + 'static, place: Share) -> Body
where
    E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    let state = (Box::pin(pieces), place, Pace::default(), None::<(Instant, usize)>);
    Body::from_stream(stream::unfold(Some(state), async |state| {
        let (mut pieces, place, mut pace, given) = state?;
        if let Some((at, bytes)) = given
            && !pace.goes_on(at.elapsed(), bytes)
        {
            return Some((Err("the reader takes less than 16 KiB a second".into()), None));
        }
        match pieces.next().await? {
            Ok(piece) => {
                let given = Some((Instant::now(), piece.len()));
                Some((Ok::<_, Box<dyn std::error::Error + Send + Sync>>(piece), Some((pieces, place, pace, given))))
            }
            Err(error) => Some((Err(error.into()), None)),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_now_and_then_does_not_pay() {
        let mut slow = Pace::default();
        let kept = (0..100).take_while(|_| slow.goes_on(Duration::from_secs(20), 1)).count();
        assert_eq!(kept, 1);
        let mut honest = Pace::default();
        assert!((0..1000).all(|_| honest.goes_on(Duration::from_secs(1), 20 << 10)));
    }
}
