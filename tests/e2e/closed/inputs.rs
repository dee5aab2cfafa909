//! Corpora that are small where they come in and large where they are read.
