"""What runs inside the machines of a lab during a campaign: the application with its ledgers, and the clients."""
