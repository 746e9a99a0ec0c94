"""The mixer server: hosts frozen mixers and answers gRPC."""
