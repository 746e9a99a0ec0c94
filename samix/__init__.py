"""SAMix, a learned image mixer: mathematics, in-process engine and client of the mixer service."""
