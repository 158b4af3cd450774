"""Who may do what: API keys, the server's secret, guards."""
