"""The status page: what a mixer server does right now, for people with a browser."""
