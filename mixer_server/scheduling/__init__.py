"""Which request is computed when: the queue, equal shares, deadlines, memory."""
