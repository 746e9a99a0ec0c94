"""Policy `remote-online`: a server trains the mixer, the ranks train the classifier."""
