"""Co-training: the server trains mixers with the batches of the trainers it mixes for."""
