"""The mathematics of mixing, in pure torch: plans, policies, the SAMix mixing block, masks and artefacts."""
