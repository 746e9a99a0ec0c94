"""Training methods: each turns a batch into losses; the loop steps optimisers and knows none of them."""
