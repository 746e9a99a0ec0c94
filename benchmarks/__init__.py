"""Commands that measure what the texts of this project claim; each prints machine, commit and date."""
