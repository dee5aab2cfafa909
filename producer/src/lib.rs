//! The producer: the job contract and everything that hands a job in.
