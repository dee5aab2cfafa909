"""The parts of `check`: a file for each stage, and what they share."""
