"""Who may speak to a server: certificates, tokens, names, limits of connections."""
