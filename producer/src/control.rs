//! What a tenant may do to a job that is under way: cancel it, hold it up, let it go on. Each is an entry of its ledger, which
//! workers look at before they compute a chunk, so that it holds whatever becomes of the broker.

use crate::life::{Appended, Event, Ledger, LedgerError};

/// Wants no more of the job. Workers stop within seconds; what is finished stays.
pub async fn cancel(ledger: &Ledger) -> Result<Appended, LedgerError> {
    ledger.append(|_| Ok(Event::Cancel)).await
}

/// Holds the job up: within seconds no chunk of it is begun. Its completion window goes on.
pub async fn pause(ledger: &Ledger) -> Result<Appended, LedgerError> {
    ledger.append(|_| Ok(Event::Pause)).await
}

/// Lets a job go on that was held up: within the time that its chunks wait between two looks, half a minute.
pub async fn resume(ledger: &Ledger) -> Result<Appended, LedgerError> {
    ledger.append(|_| Ok(Event::Resume)).await
}
